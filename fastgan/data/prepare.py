"""The work of `fastgan dataset`: read images, convert them in worker processes, write them to an output.

A stopped preparation continues where it was. OUT.unfinished/ holds the output so far and a journal with a line for each
image of the source, written once the image itself is on the disk. The same source and options give the same bytes,
however often the preparation was stopped and whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgan.data import labels
from fastgan.data.images import Converted, Target, convert
from fastgan.data.readers import Item, Reader
from fastgan.data.writers import ArrayWriter, Damaged, ShardWriter, Writer, Written, ZipWriter
from fastgan.errors import UserError
from fastgan.files import lock, remove, sync, sync_directory

FORMAT = 3  # of the journal; increase it when the same options would give other bytes
PREFETCH = 4  # images read ahead for each worker
RESTARTS = 3  # times that workers may die before it is an error
SYNC_IMAGES, SYNC_SECONDS = 256, 5.0  # a kill loses at most this many images, or the work of this time
SMALLER = "smaller than wanted"  # kind of a reason
_DETAILS = re.compile(r"(?<=the label ).+?(?=, not| in one)|\d(?:[\d,.x]*\d)?")
ORDER_SEED = 0  # of the order of the images in shards


@dataclass(frozen=True)
class Job:
    """One preparation.

    source: description for the output. out: file or folder to write. shard_bytes: maximal size of a tar shard, 0 for no
    shards. labels: whether to keep labels. workers: processes; 1 works in this process.
    """

    source: str
    out: Path
    target: Target
    shard_bytes: int = 0
    labels: bool = True
    workers: int = 1


@dataclass(frozen=True)
class Result:
    """Outcome.

    images: number written. skipped: name and reason of every image left out, also in `skipped_file`. losses: what was
    left out of images that were written, with their number. notes: of the reader.
    """

    images: int
    class_names: list[str]
    skipped: list[tuple[str, str]]
    skipped_file: Path | None
    losses: Counter[str]
    notes: list[str]


def run(job: Job, reader: Reader, progress: bool = True) -> Result:
    """Run a preparation, or continue it. Raises UserError; the work done by then is kept."""
    work = job.out.with_name(job.out.name + ".unfinished")
    content, journal_file = work / "content", work / "journal.jsonl"
    skipped_file = job.out.with_name(job.out.name + ".skipped.txt")
    taken = UserError(f"{job.out} exists already; remove it, or choose another name with --out")
    is_taken = os.path.lexists(job.out)
    try:
        if is_taken and not journal_file.exists():
            if work.is_dir() and not work.is_symlink() and {path.name for path in work.iterdir()} <= {"lock"}:
                remove(work)  # its process was killed while it removed it
            raise taken
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                lock(work / "lock", refusal=f"another process is preparing {job.out}; wait until it has ended")
            )
            journal = stack.enter_context(contextlib.closing(Journal(journal_file, _identity(job, reader))))
            if not is_taken:
                writer = stack.enter_context(contextlib.closing(_open_writer(job, content, journal)))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's, about files that are then listed as skipped
                    _fill(job, reader, writer, journal, progress)
            elif content.exists() or not journal.finished:
                raise taken
            # Otherwise a process was killed between the renaming and the removal of its work: all is done.
            class_names = _class_names(job, reader, journal)
            if journal.written and not is_taken:
                reasons = Counter(kind_of(reason) for _, reason in journal.skipped)
                writer.finish(class_names, job.source, dict(sorted(reasons.items())))
                _write_skipped(skipped_file, journal.skipped)
                journal.finish()
                os.rename(content, job.out)
                sync_directory(job.out.parent)
        remove(work)
    except OSError as error:
        raise UserError(
            f"cannot write {job.out}: {error.strerror or error}; make room or choose another place with --out, "
            "and run the same command again to continue"
        ) from error
    if not journal.written:
        first = f": {journal.skipped[0][0]} {journal.skipped[0][1]}" if journal.skipped else ""
        raise UserError(f"{job.source}: none of its {len(journal):,} images can be used{first}")
    listed = skipped_file if journal.skipped else None
    losses = Counter(loss for entry in journal.written for loss in entry.losses)
    return Result(len(journal.written), class_names, journal.skipped, listed, losses, list(reader.notes))


def kind_of(reason: str) -> str:
    """A reason without the details of one image, for counts."""
    return SMALLER if ", smaller than" in reason else _DETAILS.sub("...", reason)


def images_done(out: Path) -> int | None:
    """Number of images of the source that an unfinished preparation of `out` has done; None if there is none."""
    try:
        *lines, _ = (out.with_name(out.name + ".unfinished") / "journal.jsonl").read_bytes().split(b"\n")
    except OSError:
        return None
    return sum(line.startswith((b'["written"', b'["skipped"')) for line in lines)  # without the last, cut by a kill


def _identity(job: Job, reader: Reader) -> dict:
    """Everything the bytes of the output depend on."""
    state = hashlib.sha256(json.dumps(reader.state, sort_keys=True).encode()).hexdigest()
    target = {**job.target._asdict(), "size": list(job.target.size)}
    shape = {"shard_bytes": job.shard_bytes, "labels": job.labels, "ending": job.out.suffix.lower()}
    return {"format": FORMAT, "source": job.source, "state": state, **target, **shape}


class Journal:
    """File with a line of JSON for each image of the source: written with these bytes, or skipped for this reason.

    Attributes:
        written: the images in the output, in order. skipped: name and reason of the others.
        finished: whether the output is complete, perhaps renamed.
    """

    def __init__(self, path: Path, identity: dict):
        self.written: list[Written] = []
        self.skipped: list[tuple[str, str]] = []
        self.finished = False
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line
        lines = complete.splitlines()
        try:
            if lines:
                self._require_same(path, lines[0], identity)
            for line in lines[1:]:
                self._count(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):  # lines that no preparation wrote
            raise _damaged(path.parent) from None
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._file.truncate(len(complete))
        self._file.seek(len(complete))
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
                f"{path.parent} is an unfinished preparation, {what}; remove that folder to start again, "
                "or choose another name with --out"
            )

    def __len__(self) -> int:
        return len(self.written) + len(self.skipped)

    def _count(self, entry: list) -> None:
        if entry[0] == "finished":
            self.finished = True
        elif entry[0] == "written":
            size, crc, label, losses = entry[1:]
            self.written.append(Written(size, crc, label, tuple(losses)))
        else:
            self.skipped.append((entry[1], entry[2]))

    def add(self, entries: list[list]) -> None:
        """Append lines for images that are on the disk, and flush them to the disk."""
        for entry in entries:
            self._count(entry)
        self._write(entries)

    def finish(self) -> None:
        """Note that the output is complete."""
        self.add([["finished"]])

    def _write(self, entries: list) -> None:
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        sync(self._file)

    def close(self) -> None:
        self._file.close()


def _open_writer(job: Job, content: Path, journal: Journal) -> Writer:
    """Writer with the images that the journal lists."""
    try:
        if job.shard_bytes:
            return ShardWriter(content, job.target, journal.written, job.shard_bytes)
        kind = ZipWriter if job.out.suffix.lower() == ".zip" else ArrayWriter
        return kind(content, job.target, journal.written)
    except Damaged:
        raise _damaged(content.parent) from None


def _damaged(work: Path) -> UserError:
    return UserError(f"{work} has been damaged; remove that folder to start again")


def _fill(job: Job, reader: Reader, writer: Writer, journal: Journal, progress: bool) -> None:
    """Append all images that the output does not have yet."""
    from fastgan.progress import ProgressBar

    unsaved: list[list] = []
    skipped = len(journal.skipped)
    labelled = None if reader.labels is None else True
    if labelled is None and journal.written:
        labelled = journal.written[0].label is not None
    last = time.monotonic()

    def save() -> None:
        writer.sync()
        entries = unsaved.copy()
        unsaved.clear()  # first: if the journal cannot be flushed, `finally` must not add them again
        journal.add(entries)

    done = len(journal)
    items = reader.items(itertools.islice(_order(job, reader), done, None))
    with (
        contextlib.closing(_converted(items, job, writer.png)) as converted,
        ProgressBar(total=reader.count, initial=done, desc="preparing", unit=" images", disable=not progress) as bar,
    ):
        try:
            for item, found in converted:
                label = item.label if job.labels else None
                if job.labels and item.label_problem and not isinstance(found, str):
                    found = item.label_problem
                elif job.labels and not isinstance(found, str):
                    labelled = label is not None if labelled is None else labelled
                    if labelled and label is None:
                        found = "has no label"
                    elif label is not None and not labelled:
                        raise UserError(
                            f"{item.name} has a label, but the images before it have none; "
                            "start again with --no-labels to leave labels out"
                        )
                if isinstance(found, str):
                    unsaved.append(["skipped", item.name, found])
                    skipped += 1
                    bar.set_postfix(skipped=skipped, refresh=False)
                else:
                    entry = Written(len(found.content), found.crc, label, tuple(found.losses))
                    writer.append(found.content, entry)
                    unsaved.append(["written", *entry])
                bar.update()
                if len(unsaved) >= SYNC_IMAGES or time.monotonic() - last > SYNC_SECONDS:
                    save()
                    last = time.monotonic()
        finally:
            save()  # also after Ctrl-C or an error of the reader


def _order(job: Job, reader: Reader) -> Iterable[int]:
    """Order of the images in the output. Random in shards, because training shuffles only a few shards at a time."""
    if reader.count is None:
        return itertools.count()
    if job.shard_bytes and reader.random_access:
        return np.random.default_rng(ORDER_SEED).permutation(reader.count).tolist()
    return range(reader.count)


def _converted(items: Iterator[Item], job: Job, png: bool) -> Generator[tuple[Item, Converted | str], None, None]:
    """Each image and the result of `convert`, in order, by `job.workers` processes."""
    if job.workers == 1:
        for item in items:
            yield item, convert(item.data, job.target, png)
        return
    workers = _Workers(job, png)
    try:
        for item in items:
            workers.submit(item)
            if len(workers.pending) > PREFETCH * job.workers:
                yield workers.take()
        while workers.pending:
            yield workers.take()
    finally:
        workers.close()


class _Workers:
    """Worker processes that convert images ahead. One that dies breaks the pool; then all are started again."""

    def __init__(self, job: Job, png: bool):
        self._job, self._png, self._restarts = job, png, 0
        self.pending: deque[tuple[Item, Future]] = deque()
        self._pool = self._start()

    def submit(self, item: Item) -> None:
        try:
            self.pending.append((item, self._pool.submit(convert, item.data, self._job.target, self._png)))
        except BrokenProcessPool:
            self._restart()
            self.submit(item)

    def take(self) -> tuple[Item, Converted | str]:
        """The oldest pending image and its result; waits for it."""
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
        context = multiprocessing.get_context("spawn")  # after a fork the threads of this process would be missing
        return ProcessPoolExecutor(self._job.workers, context, initializer=_start_worker)

    def _restart(self) -> None:
        self._restarts += 1
        waiting = [item for item, _ in self.pending]
        if self._restarts > RESTARTS:
            near = f" near {waiting[0].name}" if waiting else ""
            raise UserError(
                f"worker processes keep dying{near}, perhaps because memory runs out; "
                "run the same command again with fewer --workers to continue"
            )
        self.close()
        self._pool = self._start()
        self.pending.clear()
        for item in waiting:
            self.submit(item)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops its workers
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent does. A killed parent cannot stop its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _class_names(job: Job, reader: Reader, journal: Journal) -> list[str]:
    found = [entry.label for entry in journal.written if entry.label is not None]
    if not found:
        return []
    names = reader.class_names or []
    if len(names) > max(found):
        return [labels.printable(name) for name in names]
    labels.require_dense(max(found), len(journal), job.source)
    return [str(i) for i in range(max(found) + 1)]


def _write_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
    """Write the list of skipped images beside the output; no file if there are none."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = [f"{' '.join(name.split())}\t{reason}\n" for name, reason in skipped]
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(lines)
        sync(file)
