"""The work of `python -m fastgan.dataset`: images out of a source, made fit by several processes, into an output.

It goes on where it was stopped. Beside the output there is, while it is unfinished, OUT.unfinished/: the output so far
and a journal with a line for every image of the source, written after the image itself is on the disk. The same source
and options give the same bytes, however often it was stopped and by however many processes it is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgan.data import labels
from fastgan.data.outputs import ArrayOutput, Damaged, Kept, Output, ShardOutput, ZipOutput
from fastgan.data.pictures import Wanted, prepare
from fastgan.data.sources import Item, Source
from fastgan.errors import UserError
from fastgan.files import lock, sync, sync_directory

FORMAT = 1  # of the journal: raise it when the same options would give other bytes
AHEAD = 4  # images a process that are read before they are asked for
RESTARTS = 3  # of worker processes that have died, before it is a mistake
SYNC_IMAGES, SYNC_SECONDS = 256, 5.0  # what a kill loses at most
ORDER_SEED = 0  # of the order in which images go into shards


@dataclass(frozen=True)
class Job:
    """What to make of a source.

    out: file or folder to be. shard_bytes: 0, or the size of tar shards. labels: whether classes are kept.
    source: in words, for the output. workers: processes; 1 does it in this one.
    """

    source: str
    out: Path
    wanted: Wanted
    shard_bytes: int = 0
    labels: bool = True
    workers: int = 1


@dataclass(frozen=True)
class Result:
    """What became of it. skipped: name and reason of every image left out."""

    images: int
    class_names: list[str]
    skipped: list[tuple[str, str]]
    skipped_file: Path | None


def run(job: Job, source: Source, progress: bool = True) -> Result:
    """Do it, or go on with it. Raises UserError for what a user can put right; what is done by then is kept."""
    work = job.out.with_name(job.out.name + ".unfinished")
    skipped_file = job.out.with_name(job.out.name + ".skipped.txt")
    if job.out.exists() or job.out.is_symlink():
        raise UserError(f"{job.out} is there already; remove it, or choose another name with --out")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                lock(work / "lock", refusal=f"another process prepares {job.out} just now; wait for it")
            )
            journal = stack.enter_context(contextlib.closing(Journal(work / "journal.jsonl", _identity(job, source))))
            output = stack.enter_context(contextlib.closing(_reopen(job, work / "content", journal)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, about files that are then listed
                _fill(job, source, output, journal, progress)
            class_names = _class_names(job, source, journal)
            if journal.kept:
                output.finish(class_names, job.source)
                _write_skipped(skipped_file, journal.skipped)
                os.rename(work / "content", job.out)
                sync_directory(job.out.parent)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"cannot write {job.out}: {error.strerror or error}; make room or choose another place with --out, "
            "and run the same command again to go on"
        ) from error
    if not journal.kept:
        first = f": {journal.skipped[0][0]} {journal.skipped[0][1]}" if journal.skipped else ""
        raise UserError(f"{job.source}: none of its {len(journal):,} images can be used{first}")
    listed = skipped_file if journal.skipped else None
    return Result(len(journal.kept), class_names, journal.skipped, listed)


def unfinished(out: Path) -> int | None:
    """How many images of the source an unfinished `out` has done; None if there is none."""
    try:
        lines = (out.with_name(out.name + ".unfinished") / "journal.jsonl").read_bytes().count(b"\n")
    except OSError:
        return None
    return max(0, lines - 1)


def _identity(job: Job, source: Source) -> dict:
    """All that the bytes of the output depend on."""
    state = hashlib.sha256(json.dumps(source.state, sort_keys=True).encode()).hexdigest()
    wanted = {**job.wanted._asdict(), "size": list(job.wanted.size)}
    shape = {"shard_bytes": job.shard_bytes, "labels": job.labels, "ending": job.out.suffix.lower()}
    return {"format": FORMAT, "source": job.source, "state": state, **wanted, **shape}


class Journal:
    """A line of JSON for every image of the source: what was written, or why nothing was.

    Attributes:
        kept: what was written, in order. skipped: name and reason of the rest.
    """

    def __init__(self, path: Path, identity: dict):
        self.kept: list[Kept] = []
        self.skipped: list[tuple[str, str]] = []
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line
        lines = whole.splitlines()
        try:
            if lines:
                self._require_same(path, lines[0], identity)
            for line in lines[1:]:
                self._count(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):  # no lines that were written here
            raise _damaged(path.parent) from None
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not lines:
            self._write([identity])

    @staticmethod
    def _require_same(path: Path, line: bytes, identity: dict) -> None:
        before = json.loads(line)
        different = sorted(name for name in before.keys() | identity.keys() if before.get(name) != identity.get(name))
        if different:
            what = (
                "the source has changed" if different == ["state"] else f"with other options ({', '.join(different)})"
            )
            raise UserError(
                f"{path.parent} is an unfinished preparation, {what}; remove that folder to start anew, "
                "or choose another name with --out"
            )

    def __len__(self) -> int:
        return len(self.kept) + len(self.skipped)

    def _count(self, entry: list) -> None:
        if entry[0] == "kept":
            self.kept.append(Kept(*entry[1:]))
        else:
            self.skipped.append((entry[1], entry[2]))

    def add(self, entries: list[list]) -> None:
        """Lines for images that are on the disk; they are on the disk when this returns."""
        for entry in entries:
            self._count(entry)
        self._write(entries)

    def _write(self, entries: list) -> None:
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        sync(self._file)

    def close(self) -> None:
        self._file.close()


def _reopen(job: Job, content: Path, journal: Journal) -> Output:
    """The output with what the journal says, ready for more."""
    try:
        if job.shard_bytes:
            return ShardOutput(content, job.wanted, journal.kept, job.shard_bytes)
        make = ZipOutput if job.out.suffix.lower() == ".zip" else ArrayOutput
        return make(content, job.wanted, journal.kept)
    except Damaged:
        raise _damaged(content.parent) from None


def _damaged(work: Path) -> UserError:
    return UserError(f"{work} has been damaged; remove that folder to start anew")


def _fill(job: Job, source: Source, output: Output, journal: Journal, progress: bool) -> None:
    """Append all images that are not there yet."""
    from fastgan.progress import ProgressBar

    waiting: list[list] = []
    count, before = len(journal.kept), len(journal.skipped)
    labelled = None if source.labels is None else True
    if labelled is None and journal.kept:
        labelled = journal.kept[0].label is not None
    last = time.monotonic()

    def save() -> None:
        output.sync()
        journal.add(waiting)
        waiting.clear()

    order = _order(job, source)
    done = len(journal)
    items = source.items(itertools.islice(order, done, None))
    with (
        contextlib.closing(_prepared(items, job, output.png)) as prepared,
        ProgressBar(total=source.count, initial=done, desc="preparing", unit=" images", disable=not progress) as bar,
    ):
        try:
            for item, found in prepared:
                label = item.label if job.labels else None
                if not isinstance(found, str) and job.labels:
                    labelled = label is not None if labelled is None else labelled
                    if labelled and label is None:
                        found = "has no label"
                    elif label is not None and not labelled:
                        raise UserError(
                            f"{item.name} has a label, and the images before it have none; "
                            "start anew with --no-labels to leave labels out"
                        )
                if isinstance(found, str):
                    waiting.append(["skipped", item.name, found])
                    before += 1
                    bar.set_postfix(skipped=before, refresh=False)
                else:
                    content, crc = found
                    kept = Kept(len(content), crc, label)
                    output.append(content, kept)
                    waiting.append(["kept", *kept])
                    count += 1
                bar.update()
                if len(waiting) >= SYNC_IMAGES or time.monotonic() - last > SYNC_SECONDS:
                    save()
                    last = time.monotonic()
        finally:
            save()  # also after Ctrl-C or a failing source: as much as there is


def _order(job: Job, source: Source) -> Iterable[int]:
    """Of the images of the source. Shards are shuffled, since a training has a few of them at a time."""
    if source.count is None:
        return itertools.count()
    if job.shard_bytes and source.shuffled:
        return np.random.default_rng(ORDER_SEED).permutation(source.count).tolist()
    return range(source.count)


def _prepared(items: Iterator[Item], job: Job, png: bool) -> Iterator[tuple[Item, tuple[bytes, int] | str]]:
    """Each image and what became of it, in order, by so many processes. Those that die are started again."""
    if job.workers == 1:
        for item in items:
            yield item, prepare(item.data, job.wanted, png)
        return
    workers = _Workers(job, png)
    try:
        for item in items:
            workers.submit(item)
            if len(workers.pending) > AHEAD * job.workers:
                yield workers.take()
        while workers.pending:
            yield workers.take()
    finally:
        workers.close()


class _Workers:
    """Processes that prepare images ahead. One that dies takes the others with it; then all are started again."""

    def __init__(self, job: Job, png: bool):
        self._job, self._png, self._restarts = job, png, 0
        self.pending: deque[tuple[Item, Future]] = deque()
        self._pool = self._start()

    def submit(self, item: Item) -> None:
        try:
            self.pending.append((item, self._pool.submit(prepare, item.data, self._job.wanted, self._png)))
        except BrokenProcessPool:
            self._restart()
            self.submit(item)

    def take(self) -> tuple[Item, tuple[bytes, int] | str]:
        """The oldest image, and what became of it."""
        while True:
            item, future = self.pending[0]
            try:
                found = future.result()
            except BrokenProcessPool:
                self._restart()
                continue
            self.pending.popleft()
            return item._replace(data=b""), found

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads that do not live there
        return ProcessPoolExecutor(self._job.workers, context, initializer=_start_worker)

    def _restart(self) -> None:
        self._restarts += 1
        waiting = [item for item, _ in self.pending]
        if self._restarts > RESTARTS:
            near = f" near {waiting[0].name}" if waiting else ""
            raise UserError(
                f"worker processes die again and again{near}, perhaps for want of memory; "
                "run the same command again, with fewer --workers, to go on"
            )
        self.close()
        self._pool = self._start()
        self.pending.clear()
        for item in waiting:
            self.submit(item)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends them
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to end, and they would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _class_names(job: Job, source: Source, journal: Journal) -> list[str]:
    found = [kept.label for kept in journal.kept if kept.label is not None]
    if not found:
        return []
    names = source.class_names or []
    if len(names) > max(found):
        return [labels.printable(name) for name in names]
    labels.require_dense(max(found), len(journal), job.source)
    return [str(i) for i in range(max(found) + 1)]


def _write_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
    """The list beside the output; none if nothing was left out."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = [f"{' '.join(name.split())}\t{reason}\n" for name, reason in skipped]
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(lines)
        sync(file)
