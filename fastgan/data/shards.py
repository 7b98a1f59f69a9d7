"""Training on tar shards, for data sets larger than a disk: only a few decoded shards are in the cache at a time.

`fastgan dataset SOURCE --shards MB` writes the shards and an index, shards.json, with the number of images in
each and all labels. So the order of the images is a function of the seed and the position, as for other data sets, and
a resumed training continues exactly. Shuffling is weaker: an epoch visits the shards in random order, SHUFFLED_SHARDS
at a time, and shuffles the images within each such group.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastgan.cores import usable_cpus
from fastgan.data import cache
from fastgan.data.image_dataset import ImageDataset, array_digest, json_digest
from fastgan.data.images import CHANNELS, MODES, UnusableImage, decode, open_regular, reason, simplify_mode, size_text
from fastgan.data.readers.tar import read_shard
from fastgan.data.shuffle import Stream
from fastgan.data.urls import is_url, open_path_or_url
from fastgan.errors import UserError, program
from fastgan.files import copy_and_digest, is_unlocked, lock, remove, sync

SHARD_INDEX = "shards.json"
SHUFFLED_SHARDS = 4  # shards whose images are shuffled together
CACHED_SHARDS = 2 * SHUFFLED_SHARDS + 1  # the shards in use, the next ones, and one being written
RETRY_PAUSES = (1, 5, 25)  # seconds before a server is asked again
UNFINISHED = ".unfinished"  # suffix of the folder in which a shard is downloaded and decoded
STALE = 3600  # seconds after which it is known to be left by a killed process, where locks do not say so
CHECKSUM_BYTES = 4
MAX_INDEX_BYTES = 2**30


def is_index(spec: str) -> bool:
    """Whether `spec` names a set of shards: shards.json, by path or URL, or the folder with it."""
    return spec.rpartition("/")[2] == SHARD_INDEX or (not is_url(spec) and (Path(spec) / SHARD_INDEX).is_file())


def read_index(spec: str) -> bytes:
    """Content of the shards.json that `spec` names. Raises OSError or ValueError."""
    with open_path_or_url(_index_of(spec)) as file:
        return file.read(MAX_INDEX_BYTES)


def _index_of(spec: str) -> str:
    return str(Path(spec) / SHARD_INDEX) if not is_url(spec) and Path(spec).is_dir() else spec


def open_shards(spec: str, size: tuple[int, int], channels: int, cache_dir: Path | None) -> ImageDataset:
    """Open the data set of an index. Raises UserError if there is none, or its images have another size or channels."""
    spec = _index_of(spec)
    place = spec.rpartition("/")[0] or "."
    try:
        content = json.loads(read_index(spec))
        shards, found = content["shards"], (tuple(content["size"]), content["channels"])
        names, counts = [shard["file"] for shard in shards], [shard["images"] for shard in shards]
        digests, class_names = [shard["sha256"] for shard in shards], content["class_names"]
        labels = np.array(content["labels"], dtype=np.int64) if class_names else None
        valid = (
            content["format"] == 1
            and content.pop("digest") == json_digest(content)
            and all(re.fullmatch(r"[\w-][\w.-]*\.tar", name) for name in names)
            and all(type(count) is int and count > 0 for count in counts)
            and sum(counts) > 0
            and (
                labels is None or (len(labels) == sum(counts) and 0 <= labels.min() <= labels.max() < len(class_names))
            )
            and (len(found[0]), found[1] in CHANNELS) == (2, True)
        )
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--data {spec}: cannot be read ({reason(error)})") from error
    except Exception as error:  # not JSON, or other fields
        raise UserError(f"--data {spec} is not an index written by {program('dataset')}") from error
    if not valid:
        raise UserError(f"--data {spec} is not an index written by {program('dataset')}, or is damaged")
    if found != (size, channels):
        raise UserError(
            f"--data {spec} has {CHANNELS[found[1]]} images of {size_text(found[0])}; "
            f"give --resolution {size_text(found[0])} --channels {found[1]}"
        )
    root = Path(cache_dir) if cache_dir is not None else cache.default_cache_dir()
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    images = ShardedImages(
        [f"{place}/{name}" for name in names],
        counts,
        digests,
        (size[1], size[0], channels),
        root / f"shards-{digest[:20]}",
    )
    source = f"{content.get('source', spec)} in {len(names)} shards"
    return ImageDataset(images, labels, class_names, source, {"images": digest, "labels": array_digest(labels)})


class ShardedImages:
    """Images in tar files, indexed like an array uint8 [n, H, W, C]. Thread-safe.

    Reading an image downloads its whole shard, checks the digest, decodes the shard into the cache and memory-maps it
    from there; the least recently used shards are deleted. Raises UserError for a shard that is missing or damaged.

    Args:
        shards: paths or URLs. counts: number of images in each. digests: SHA-256 of each, in hex.
        shape: [H, W, C] of all images.
        folder: for the decoded shards, at most CACHED_SHARDS of them.
    """

    def __init__(
        self,
        shards: Sequence[str],
        counts: Sequence[int],
        digests: Sequence[str],
        shape: tuple[int, int, int],
        folder: Path,
    ):
        self.counts = list(counts)
        self.shape = (sum(counts), *shape)
        self._shards, self._digests, self._folder = list(shards), list(digests), folder
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._maps: dict[int, np.ndarray] = {}  # in the order of their last use
        self._prefetched: dict[int, Future] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._remove_abandoned()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        """Images of an integer or an index array: uint8 [*index.shape, H, W, C]."""
        index = np.asarray(index)
        out = np.empty((index.size, *self.shape[1:]), np.uint8)
        self.gather(index.reshape(-1), out)
        return out.reshape(*index.shape, *self.shape[1:])

    def gather(self, index: np.ndarray, out: np.ndarray) -> None:
        """Copy the images of `index`, int [N], into `out`, uint8 [N, H, W, C]."""
        numbers = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(numbers):
            rows = numbers == number
            out[rows] = self._map(int(number))[index[rows] - self._starts[number]]

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Load these shards into the cache in a background thread."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastgan-data-shards")
            for number in numbers:
                if number not in self._maps and number not in self._prefetched:
                    self._prefetched[number] = self._pool.submit(self._load, number)

    def close(self) -> None:
        """Stop the thread, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._prefetched.clear()

    def _map(self, number: int) -> np.ndarray:
        with self._lock:
            future = self._prefetched.pop(number, None)
        found = future.result() if future else self._maps.get(number)
        found = self._load(number) if found is None else found
        with self._lock:
            self._maps.pop(number, None)
            self._maps[number] = found
            while len(self._maps) > SHUFFLED_SHARDS:
                del self._maps[next(iter(self._maps))]
        return found

    def _load(self, number: int) -> np.ndarray:
        """The decoded shard as a memory map; decodes it into the cache if it is absent."""
        path = self._folder / f"{number:06d}.npy"
        try:
            if (found := self._open_cached(path, number)) is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                with lock(self._folder / f"{number:06d}.lock", waiting=cache.WAITING):
                    if (found := self._open_cached(path, number)) is None:
                        self._make_room()
                        self._decode(number, path)
                        found = self._open_cached(path, number)
            if found is None:
                raise cache.unreadable(path)
            return found
        except OSError as error:
            raise cache.cannot_write(self._folder, error) from error

    def _open_cached(self, path: Path, number: int) -> np.ndarray | None:
        try:
            with open_regular(path) as file:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
                file.seek(-CHECKSUM_BYTES, os.SEEK_END)
                checksum = int.from_bytes(file.read(), "big")
            os.utime(path)  # `_make_room` deletes the oldest
        except Exception:  # absent or damaged; NumPy parses the header as Python
            return None
        whole = found.shape == (self.counts[number], *self.shape[1:]) and found.dtype == np.uint8
        return found if whole and found.flags.c_contiguous and zlib.crc32(found) == checksum else None

    def _make_room(self) -> None:
        """Delete the least recently used decoded shards. Open maps stay readable."""
        ages = []
        for path in self._folder.glob("*.npy"):
            with contextlib.suppress(OSError):
                ages.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ages, reverse=True)[CACHED_SHARDS - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were writing."""
        for path in self._folder.glob(f"*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                old = time.time() - path.stat().st_mtime > STALE
                if old or is_unlocked(path.with_name(path.name.removesuffix(UNFINISHED) + ".lock")):
                    remove(path)

    def _decode(self, number: int, path: Path) -> None:
        """Write the decoded shard, and the CRC-32 of its pixels after them. Holds the lock of this shard."""
        shard = self._shards[number]
        with self._temporary_folder(number) as folder:
            local = self._download(shard, self._digests[number], folder)
            temporary = folder / "images.npy"
            with open(temporary, "wb") as file, ThreadPoolExecutor(min(4, usable_cpus())) as pool:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.counts[number], *self.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                count, checksum, block = 0, 0, []
                for item in read_shard(str(local)):
                    block.append(item.data)
                    if len(block) == 32:
                        checksum = self._write(file, pool, block, shard, checksum)
                        count, block = count + len(block), []
                checksum, count = self._write(file, pool, block, shard, checksum), count + len(block)
                if count != self.counts[number]:
                    raise UserError(f"{shard} has {count} images, not {self.counts[number]} as its index says")
                file.write(checksum.to_bytes(CHECKSUM_BYTES, "big"))
                sync(file)
            os.replace(temporary, path)

    @contextlib.contextmanager
    def _temporary_folder(self, number: int) -> Iterator[Path]:
        folder = self._folder / f"{number:06d}{UNFINISHED}"
        remove(folder)  # left by a killed process: this one has the lock
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, file, pool: ThreadPoolExecutor, block: list, shard: str, checksum: int) -> int:
        """Write the images of a block; returns the CRC-32 of all so far."""
        for pixels in pool.map(lambda data: self._pixels(data, shard), block):
            file.write(pixels.tobytes())
            checksum = zlib.crc32(pixels.tobytes(), checksum)
        return checksum

    def _pixels(self, data, shard: str) -> np.ndarray:
        try:
            if isinstance(data, UnusableImage):
                raise data
            image = simplify_mode(decode(data)).convert(MODES[self.shape[3]])
            pixels = np.asarray(image).reshape(*image.size[::-1], -1)
            if pixels.shape != self.shape[1:]:
                raise UnusableImage(f"is {size_text(image.size)}")
        except UnusableImage as error:
            raise UserError(f"{shard}: an image {error}; write the shards again") from error
        return pixels

    def _download(self, shard: str, digest: str, folder: Path) -> Path:
        """The shard as a local file with the right digest. Asks a server that fails again."""
        for pause in RETRY_PAUSES if is_url(shard) else ():
            try:
                return self._download_once(shard, digest, folder)
            except UserError:
                time.sleep(pause)
        return self._download_once(shard, digest, folder)

    def _download_once(self, shard: str, digest: str, folder: Path) -> Path:
        local = folder / "shard.tar" if is_url(shard) else Path(shard)
        try:
            with (
                open_path_or_url(shard) as file,
                open(local, "wb") if is_url(shard) else contextlib.nullcontext() as copy,
            ):
                found = copy_and_digest(file, copy)
        except UserError:
            raise
        except Exception as error:  # files, sockets, TLS and HTTP
            raise UserError(f"cannot read {shard}: {reason(error)}") from error
        if found != digest:
            raise UserError(f"{shard} is damaged, or not the shard in its index; download or write it again")
        return local


class ShardedStream(Stream):
    """Indices of shuffled epochs over images in shards, int64; each epoch has every image once.

    An epoch is a random order of the shards, in groups of SHUFFLED_SHARDS, and a random order of the images within each
    group. It is determined by (seed, epoch).
    """

    dtype = np.int64

    def __init__(self, counts: Sequence[int], seed: int = 0):
        super().__init__(sum(counts), seed)
        self._counts = np.asarray(counts)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._epochs: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def _groups(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The groups of shards of an epoch, and the position in the epoch where each ends."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self._counts))
            groups = [order[start : start + SHUFFLED_SHARDS] for start in range(0, len(order), SHUFFLED_SHARDS)]
            self._epochs[epoch] = groups, np.cumsum([self._counts[group].sum() for group in groups])
        return self._epochs[epoch]

    def _generate(self, number):
        rng = np.random.default_rng([self.seed, number, 3])
        parts = []
        for group in self._groups(number)[0]:
            images = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in group])
            parts.append(rng.permutation(images))
        return np.concatenate(parts)

    def next_group(self, position: int) -> list[int]:
        """The group of shards after the one in use at `position`."""
        epoch, offset = divmod(position, self.size)
        groups, ends = self._groups(epoch)
        after = int(np.searchsorted(ends, offset, side="right")) + 1
        return (groups[after] if after < len(groups) else self._groups(epoch + 1)[0][0]).tolist()
