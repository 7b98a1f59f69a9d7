"""Training on tar shards, for sets larger than a disk: a few shards at a time are at hand, decoded, in the cache.

`python -m fastgan.dataset SOURCE --shards MB` writes them, and an index, shards.json, that says beforehand how many
images each has, and their classes. So the order of images is, as for any other set, a function of the seed and of the
number of images shown before, and a resumed training goes on exactly. What differs is how well it is shuffled: an epoch
goes through the shards in random order, AT_ONCE together, whose images are shuffled among each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastgan.cores import usable_cpus
from fastgan.data import cache
from fastgan.data.cache import SHARD_INDEX, ImageDataset
from fastgan.data.order import Stream
from fastgan.data.pictures import CHANNELS, Unusable, decode, plain, reason, size_text
from fastgan.data.sources import samples_of_shard
from fastgan.data.urls import is_url, open_url
from fastgan.errors import UserError
from fastgan.files import copy_and_digest, lock, sync

AT_ONCE = 4  # shards whose images are shuffled together
KEPT = 2 * AT_ONCE + 1  # decoded shards in the cache: those in use, those that come next, and one that is written
PAUSES = (1, 5, 25)  # seconds before a server is asked again
STALE = 3600  # seconds after which a shard is not being fetched any more
MOST_INDEX_BYTES = 2**30


def is_index(spec: str) -> bool:
    """Whether `spec` names shards that can be trained on: shards.json, also as a URL, or the folder it lies in."""
    return spec.rpartition("/")[2] == SHARD_INDEX or (not is_url(spec) and (Path(spec) / SHARD_INDEX).is_file())


def open_shards(spec: str, size: tuple[int, int], channels: int, cache_dir: Path | None) -> ImageDataset:
    """The data set that an index describes. Raises UserError if there is none, or its images are not as asked for."""
    if not is_url(spec) and Path(spec).is_dir():
        spec = str(Path(spec) / SHARD_INDEX)
    place = spec.rpartition("/")[0] or "."
    try:
        with _open(spec) as file:
            raw = file.read(MOST_INDEX_BYTES)
        content = json.loads(raw)
        shards, found = content["shards"], (tuple(content["size"]), content["channels"])
        names, counts = [shard["file"] for shard in shards], [shard["images"] for shard in shards]
        digests, class_names = [shard["sha256"] for shard in shards], content["class_names"]
        labels = np.array(content["labels"], dtype=np.int64) if class_names else None
        good = (
            content["format"] == 1
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
    except Exception as error:  # whatever is wrong with bytes that should be such an index
        raise UserError(f"--data {spec} is not an index as python -m fastgan.dataset writes it") from error
    if not good:
        raise UserError(f"--data {spec} is not an index as python -m fastgan.dataset writes it, or is damaged")
    if found != (size, channels):
        raise UserError(
            f"--data {spec} has {CHANNELS[found[1]]} images of {size_text(found[0])}; "
            f"give --resolution {size_text(found[0])} --channels {found[1]}"
        )
    root = Path(cache_dir) if cache_dir is not None else cache.default_cache_dir()
    everything = hashlib.sha256("".join(digests).encode()).hexdigest()
    pixels = ShardedPixels(
        [f"{place}/{name}" for name in names],
        counts,
        digests,
        (size[1], size[0], channels),
        root / f"shards-{everything[:20]}",
    )
    both = {"images": everything, "labels": hashlib.sha256(b"" if labels is None else labels).hexdigest()}
    return ImageDataset(pixels, labels, class_names, f"{content.get('source', spec)} in {len(names)} shards", both)


class ShardedPixels:
    """Images in tar files, to be had by their numbers like rows of an array uint8 [n, H, W, C].

    A shard is fetched whole when one of its images is asked for, checked against its digest, and decoded into the
    cache, where it is mapped into memory; what was not asked for lately makes room. Threads may ask at once.
    Asking raises UserError for a shard that is missing or damaged.

    Args:
        shards: paths or URLs. counts: how many images each has. digests: SHA-256 of each, in hex.
        shape: [H, W, C] of all images.
        folder: for the decoded shards, KEPT of them at most.
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
        self._maps: dict[int, np.ndarray] = {}  # the last used at the end
        self._coming: dict[int, Future] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        """Images of an index array of any shape, or of one number: uint8 [*index.shape, H, W, C]."""
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

    def expect(self, numbers: Sequence[int]) -> None:
        """These shards will be wanted next: a thread fetches them meanwhile."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastgan-data-shards")
            for number in numbers:
                if number not in self._maps and number not in self._coming:
                    self._coming[number] = self._pool.submit(self._made, number)

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._coming.clear()

    def _map(self, number: int) -> np.ndarray:
        with self._lock:
            coming = self._coming.pop(number, None)
        found = coming.result() if coming else self._maps.get(number)
        found = self._made(number) if found is None else found
        with self._lock:
            self._maps.pop(number, None)
            self._maps[number] = found
            while len(self._maps) > AT_ONCE:
                del self._maps[next(iter(self._maps))]
        return found

    def _made(self, number: int) -> np.ndarray:
        """The decoded shard, out of the cache or put there."""
        path = self._folder / f"{number:06d}.npy"
        try:
            if (found := self._mapped(path, number)) is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                with lock(self._folder / f"{number:06d}.lock", waiting=cache.WAITING):
                    if (found := self._mapped(path, number)) is None:
                        self._make_room()
                        self._decode(number, path)
                        found = self._mapped(path, number)
            if found is None:
                raise UserError(f"the data cache {path} cannot be read back; check the disk, or set FASTGAN_CACHE")
            return found
        except OSError as error:
            raise UserError(
                f"cannot write the data cache {self._folder}: {error.strerror or error}; "
                "free space there, or set FASTGAN_CACHE to a writable folder"
            ) from error

    def _mapped(self, path: Path, number: int) -> np.ndarray | None:
        try:
            found = np.load(path, mmap_mode="r")
            os.utime(path)  # the oldest make room
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == (self.counts[number], *self.shape[1:]) else None

    def _make_room(self) -> None:
        """Delete the decoded shards that were used least lately, and what a kill left. Maps of them stay readable."""
        ages = []
        for path in self._folder.glob("*.npy"):
            with contextlib.suppress(OSError):
                ages.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ages, reverse=True)[KEPT - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()
        for path in self._folder.glob("fetching-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path, ignore_errors=True)

    def _decode(self, number: int, path: Path) -> None:
        shard = self._shards[number]
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="fetching-") as folder:
            local = self._fetched(shard, self._digests[number], Path(folder))
            temporary = Path(folder) / "images.npy"
            with open(temporary, "wb") as file, ThreadPoolExecutor(min(4, usable_cpus())) as pool:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.counts[number], *self.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                count, block = 0, []
                for item in samples_of_shard(str(local)):
                    block.append(item.data)
                    if len(block) == 32:
                        count += self._write(file, pool, block, shard)
                        block = []
                count += self._write(file, pool, block, shard)
                if count != self.counts[number]:
                    raise UserError(f"{shard} has {count} images, not {self.counts[number]} as its index says")
                sync(file)
            os.replace(temporary, path)

    def _write(self, file, pool: ThreadPoolExecutor, block: list, shard: str) -> int:
        for pixels in pool.map(lambda data: self._pixels(data, shard), block):
            file.write(pixels.tobytes())
        return len(block)

    def _pixels(self, data, shard: str) -> np.ndarray:
        try:
            if isinstance(data, Unusable):
                raise data
            image = plain(decode(data)).convert({1: "L", 3: "RGB", 4: "RGBA"}[self.shape[3]])
            pixels = np.asarray(image).reshape(*image.size[::-1], -1)
            if pixels.shape != self.shape[1:]:
                raise Unusable(f"is {size_text(image.size)}")
        except Unusable as error:
            raise UserError(f"{shard}: an image {error}; write the shards anew") from error
        return pixels

    def _fetched(self, shard: str, digest: str, folder: Path) -> Path:
        """The shard as a file here, whose digest is right. Servers are asked again if they fail."""
        for pause in PAUSES if is_url(shard) else ():
            try:
                return self._fetched_once(shard, digest, folder)
            except UserError:
                time.sleep(pause)
        return self._fetched_once(shard, digest, folder)

    def _fetched_once(self, shard: str, digest: str, folder: Path) -> Path:
        local = folder / "shard.tar" if is_url(shard) else Path(shard)
        try:
            with _open(shard) as file, open(local, "wb") if is_url(shard) else contextlib.nullcontext() as copy:
                found = copy_and_digest(file, copy)
        except UserError:
            raise
        except Exception as error:  # of files, sockets, TLS and HTTP
            raise UserError(f"cannot read {shard}: {reason(error)}") from error
        if found != digest:
            raise UserError(f"{shard} is damaged, or not the shard that its index describes; fetch or write it anew")
        return local


class ShardedStream(Stream):
    """An endless stream of epochs over images in shards: indices, int64. Each epoch has every image once.

    The shards of an epoch are in a random order; the images of AT_ONCE of them that follow each other are shuffled.
    All of it is determined by (seed, epoch).
    """

    dtype = np.int64

    def __init__(self, counts: Sequence[int], seed: int = 0):
        super().__init__(sum(counts), seed)
        self._counts = np.asarray(counts)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._epochs: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def _groups(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards of an epoch, those that are shuffled together together, and where in the epoch each group ends."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self._counts))
            groups = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
            self._epochs[epoch] = groups, np.cumsum([self._counts[group].sum() for group in groups])
        return self._epochs[epoch]

    def _make(self, number):
        rng = np.random.default_rng([self.seed, number, 3])
        parts = []
        for group in self._groups(number)[0]:
            images = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in group])
            parts.append(rng.permutation(images))
        return np.concatenate(parts)

    def following(self, position: int) -> list[int]:
        """The shards that come after those in use at a position."""
        epoch, offset = divmod(position, self.size)
        groups, ends = self._groups(epoch)
        after = int(np.searchsorted(ends, offset, side="right")) + 1
        return (groups[after] if after < len(groups) else self._groups(epoch + 1)[0][0]).tolist()


def _open(place: str):
    return open_url(place) if is_url(place) else open(place, "rb")
