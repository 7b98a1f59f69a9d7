"""Data loader: batches of training images on the device of the training.

The position, the number of images shown so far, is its only state. If the device has all images (a CPU, through the
memory map, or a GPU with enough memory), a batch is one pass over them by `fastgan.ops.image_batch`. Otherwise a thread
prefetches batches into pinned memory, and a CUDA stream of its own copies them while the step before computes.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastgan.data.image_dataset import ImageDataset, MappedImages
from fastgan.data.shards import SHUFFLED_SHARDS, ShardedImages, ShardedStream
from fastgan.data.shuffle import CoinFlips, ShuffledStream, Stream
from fastgan.ops import image_batch

RESIDENT_SHARE = 0.25  # share of a GPU's free memory, before the first step, that a data set may take
PREFETCH = 2  # batches made ahead
THREAD_NAME = "fastgan-data"

Item = TypeVar("Item")


class Batch(NamedTuple):
    """One batch."""

    images: Tensor  # fp32 [N, C, H, W] in [-1, 1], channels_last
    labels: Tensor | None  # int64 [N]


class ImageLoader:
    """Data loader: batches of images in [-1, 1] and labels, on the device of the training.

    A batch is a function of the seed and the position, so a resumed training continues exactly. Call `close` at the
    end, also after an exception: there may be a thread.

    Args:
        dataset: its memory map is read in place, its shards as they are needed.
        device: of the batches.
        seed: of the order and of the mirroring.
        batch_at: batch size as a function of the position.
        labels: whether batches have labels.
        share: (rank, count): this process's part of each batch, the `rank`-th of `count` equal ones.
        mirror: whether each image is flipped horizontally with probability 1/2 whenever it is shown.
        transfer: copies batches to the device if the data set is not resident; by default `GpuTransfer` on a GPU.
        resident: whether a GPU holds the whole data set; by default if it fits. Ignored on a CPU.

    Attributes:
        how: where images are read from, for logs.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        device: torch.device,
        seed: int,
        batch_at: Callable[[int], int],
        *,
        share: tuple[int, int] = (0, 1),
        labels: bool = False,
        mirror: bool = False,
        transfer: Transfer | None = None,
        resident: bool | None = None,
    ):
        self._device, self._batch_at, self._share = device, batch_at, share
        self._flips = CoinFlips(seed) if mirror else None
        self._shards = dataset.images if isinstance(dataset.images, ShardedImages) else None
        self._order: Stream
        if self._shards:
            self._order = self._shard_order = ShardedStream(self._shards.counts, seed)
            resident = False
        else:
            self._order, self._images = ShuffledStream(len(dataset), seed), _as_tensor(dataset)
        self._mapped = dataset.images if isinstance(dataset.images, MappedImages) else None
        self._labels = torch.from_numpy(dataset.labels) if labels else None
        self._prefetcher: Prefetcher[Sent] | None = None
        if device.type == "cuda" and (fits(self._images, device) if resident is None else resident):
            if self._mapped:
                self._mapped.check()
            self._images = self._images.to(device)
            self._labels = None if self._labels is None else self._labels.to(device)
            self.how = f"resident on {device}"
        elif device.type == "cuda" or transfer:
            self._transfer = transfer or GpuTransfer(device)
            self._prefetcher = Prefetcher(self._send, lambda position: position + batch_at(position))
            self.how = "prefetched from a memory map"
        else:
            self.how = "read from a memory map"
        if self._shards:
            self.how = f"{SHUFFLED_SHARDS} shards at a time"

    def batch(self, position: int) -> Batch:
        """The batch at a position. Raises the errors of the prefetch thread."""
        if self._prefetcher:
            pixels, mirrored, labels = self._transfer.receive(self._prefetcher.take(position))
            assert pixels is not None, "_send sends them"
            return Batch(image_batch(pixels, None, mirrored), labels)
        index, mirrored = self._select(position)
        if self._device.type == "cuda":
            index = _to_device(index, self._device)
            mirrored = None if mirrored is None else _to_device(mirrored, self._device)
        labels = None if self._labels is None else self._labels[index]
        if self._shards:
            pixels = torch.empty((len(index), *self._shards.shape[1:]), dtype=torch.uint8)
            return Batch(image_batch(self._gather(position, index, pixels), None, mirrored), labels)
        return Batch(image_batch(self._images, index, mirrored), labels)

    def close(self) -> None:
        """Stop the threads, if there are any."""
        if self._prefetcher:
            self._prefetcher.close()
        if self._shards:
            self._shards.close()

    def _select(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Indices of the batch's images, int64 [N], and which of them are mirrored, bool [N]."""
        rank, processes = self._share
        count = self._batch_at(position) // processes
        position += rank * count
        order = self._order.take(position, count)
        if self._mapped:
            self._mapped.check(order)
        index = torch.from_numpy(order)
        return index, torch.from_numpy(self._flips.take(position, count)) if self._flips else None

    def _gather(self, position: int, index: Tensor, out: Tensor) -> Tensor:
        """Copy the images of the batch at `position` into `out`, uint8 [N, H, W, C]."""
        if self._shards is None:
            return torch.index_select(self._images, 0, index, out=out)
        self._shards.gather(index.numpy(), out.numpy())
        self._shards.prefetch(self._shard_order.next_group(position))  # after the shards in use are loaded
        return out

    def _send(self, position: int) -> Sent:
        """Start the transfer of a batch: images, mirroring, labels. Runs in the prefetch thread."""
        index, mirrored = self._select(position)
        shape = self._shards.shape if self._shards else self._images.shape
        pixels = self._gather(position, index, self._transfer.buffer((len(index), *shape[1:]), torch.uint8))
        if mirrored is not None:
            mirrored = self._transfer.buffer((len(index),), torch.bool).copy_(mirrored)
        labels = None
        if self._labels is not None:
            labels = self._transfer.buffer((len(index),), torch.int64)
            torch.index_select(self._labels, 0, index, out=labels)
        return self._transfer.send(pixels, mirrored, labels)


def pixels_of(dataset: ImageDataset) -> Tensor:
    """The images of a data set as a tensor, uint8 [n, H, W, C], over the memory map, after a check of all.

    Never write to it: the map is read-only, and a write ends the process.
    """
    if isinstance(dataset.images, MappedImages):
        dataset.images.check()
    return _as_tensor(dataset)


def _as_tensor(dataset: ImageDataset) -> Tensor:
    images = dataset.images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # about the read-only map
        return torch.from_numpy(images.array if isinstance(images, MappedImages) else images)


def fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether `pixels` take at most RESIDENT_SHARE of a GPU's free memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes <= RESIDENT_SHARE * free


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


# Prefetching ---------------------------------------------------------------------------------------------------------


class Prefetcher(Generic[Item]):
    """Makes items in a thread before they are needed. For work that releases the GIL.

    Args:
        make: makes the item at a position; called in the thread, one call at a time.
        following: the position after a position.
        count: maximal number of items made ahead.
    """

    def __init__(self, make: Callable[[int], Item], following: Callable[[int], int], count: int = PREFETCH):
        self._make, self._following, self._count = make, following, count
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)  # the thread starts with the first item
        self._pending: deque[tuple[int, Future[Item]]] = deque()

    def take(self, position: int) -> Item:
        """The item at a position; waits for it, and raises what `make` raised.

        A position other than the next one discards the items made ahead.
        """
        if self._pending and self._pending[0][0] != position:
            for _, future in self._pending:
                future.cancel()
            self._pending.clear()
        while len(self._pending) <= self._count:
            at = self._following(self._pending[-1][0]) if self._pending else position
            self._pending.append((at, self._pool.submit(self._make, at)))
        _, future = self._pending.popleft()
        return future.result()

    def close(self) -> None:
        """Stop the thread after its current item, and discard all items."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


class Sent(NamedTuple):
    """Tensors whose copy to a device has started."""

    tensors: tuple[Tensor | None, ...]  # on the device
    arrival: torch.cuda.Event | None


class Transfer(Protocol):
    """Copies from the host to a device: `buffer` and `send` in the prefetch thread, `receive` in the training's."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory to fill and send."""

    def send(self, *tensors: Tensor | None) -> Sent:
        """Start copying filled buffers, without waiting; None stays None. Do not touch the buffers afterwards."""

    def receive(self, sent: Sent) -> tuple[Tensor | None, ...]:
        """The tensors on the device; work queued from here on waits for them, the host does not."""


class GpuTransfer:
    """`Transfer` through pinned memory on a CUDA stream of its own.

    torch's allocators own the memory on both sides. They reuse a pinned buffer only after the copies that read it. GPU
    memory belongs to the copy stream, so `receive` records its use on the training's stream: without that a later copy
    could overwrite a batch that is still read.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, shape, dtype):
        with torch.cuda.device(self._device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, *tensors):
        with torch.cuda.stream(self._stream):
            there = tuple(None if t is None else t.to(self._device, non_blocking=True) for t in tensors)
            return Sent(there, self._stream.record_event())

    def receive(self, sent):
        current = torch.cuda.current_stream(self._device)
        current.wait_event(sent.arrival)
        for tensor in sent.tensors:
            if tensor is not None:
                tensor.record_stream(current)
        return sent.tensors
