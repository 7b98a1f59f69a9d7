"""Gradio's queue of requests, bounded so that clients which never fetch their answers cannot stop it or fill memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

MAX_WAITING = 500  # requests; further ones are told to wait
MAX_MAILBOXES = 1000  # sessions with answers that nobody has fetched


class Mailboxes(OrderedDict):
    """Answers by session. The ones used longest ago are dropped, but never those of requests that wait or run.

    Gradio's own drops any: the queue then stops for ever at the next message to a dropped session.
    """

    def __init__(self, queue: Any):
        super().__init__()
        self._queue = queue

    def __getitem__(self, session: str) -> Any:
        self.move_to_end(session)
        return super().__getitem__(session)

    def __setitem__(self, session: str, messages: Any) -> None:
        super().__setitem__(session, messages)
        if len(self) > MAX_MAILBOXES:
            busy = {session, *(event.session_hash for event in _unfinished(self._queue))}
            for dropped in [each for each in self if each not in busy][: len(self) - MAX_MAILBOXES]:
                del self[dropped]
                self._queue.pending_event_ids_session.pop(dropped, None)


def bound(blocks: Any) -> None:
    """Give `blocks`, a `gr.Blocks`, a bounded queue."""
    blocks.queue(max_size=MAX_WAITING)
    blocks._queue.pending_messages_per_session = Mailboxes(blocks._queue)


def health(blocks: Any) -> tuple[int, str]:
    """HTTP status and a line of text: whether the queue works, and how full it is."""
    if blocks._queue.stopped:
        return 503, "the queue has stopped: restart fastgan view"
    waiting = len(blocks._queue)
    return 200, f"ok: {waiting} of at most {MAX_WAITING} requests wait"


def _unfinished(queue: Any) -> list[Any]:
    """Events that wait or run."""
    waiting = [event for each in queue.event_queue_per_concurrency_id.values() for event in each.queue]
    return waiting + [event for job in queue.active_jobs if job for event in job]
