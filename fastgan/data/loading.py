"""The way of training images into a step: batches on its device, of which the position in the stream is all the state.

Where the bytes are on the device of the training (a memory map, for a CPU; a GPU that has room for all of them), a
batch is one pass over them, `fastgan.ops.image_batch`. For a GPU that has not, a thread makes batches ahead: it gathers
their bytes in pinned memory, and a stream of their own carries them over while the step before computes.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastgan.data.cache import ImageDataset
from fastgan.data.order import CoinFlips, ShuffledStream, Stream
from fastgan.data.shards import AT_ONCE, ShardedPixels, ShardedStream
from fastgan.ops import image_batch

RESIDENT_SHARE = 0.25  # of a GPU's free memory, before the first step, that the bytes of a data set may take
AHEAD = 2  # batches that are made while one is trained on
THREAD_NAME = "fastgan-data"

Item = TypeVar("Item")


class Batch(NamedTuple):
    """What a step trains on."""

    images: Tensor  # fp32 [N, C, H, W] of range [-1, 1], channels_last
    labels: Tensor | None  # int64 [N]


class ImageLoader:
    """Hands a training its batches, on its device.

    What is in a batch follows from the seed and from the number of images shown before it: a resumed training goes on
    as if it had never stopped. To be closed in the end, also after an exception: there may be a thread.

    Args:
        dataset: where the images come from; its memory map is read in place, its shards as they are needed.
        device: of the batches.
        seed: of the order, and of which images are mirrored.
        batch_at: the size of a batch, from the number of images shown before it.
        labels: whether there are labels.
        share: (rank, count): this process's part of each batch, the `rank`-th of `count` equal ones.
        mirror: whether an image is turned left to right with probability 1/2, each time that it is shown.
        transfer: brings bytes that are not held to the device; by default `GpuTransfer` where the device is a GPU.
        resident: whether all bytes are held on the device; by default if they fit. A CPU has them in any case.

    Attributes:
        how: where batches come from, in words.
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
        self._shards = dataset.images if isinstance(dataset.images, ShardedPixels) else None
        self._order: Stream
        if self._shards:
            self._order, resident = ShardedStream(self._shards.counts, seed), False
        else:
            self._order, self._pixels = ShuffledStream(len(dataset), seed), pixels_of(dataset)
        self._labels = torch.from_numpy(dataset.labels) if labels else None
        self._ahead: Ahead[Sent] | None = None
        if device.type == "cuda" and (fits(self._pixels, device) if resident is None else resident):
            self._pixels = self._pixels.to(device)
            self._labels = None if self._labels is None else self._labels.to(device)
            self.how = f"held on {device}"
        elif device.type == "cuda" or transfer:
            self._transfer = transfer or GpuTransfer(device)
            self._ahead = Ahead(self._send, lambda position: position + batch_at(position))
            self.how = "read ahead from a memory map"
        else:
            self.how = "read from a memory map"
        if self._shards:
            self.how = f"{AT_ONCE} shards at a time"

    def batch(self, position: int) -> Batch:
        """The batch after so many images shown. What went wrong in the thread is raised here."""
        if self._ahead:
            pixels, mirrored, labels = self._transfer.receive(self._ahead.take(position))
            return Batch(image_batch(pixels, None, mirrored), labels)
        index, mirrored = (_to_device(t, self._device) for t in self._selected(position))
        labels = None if self._labels is None else self._labels[index]
        if self._shards:
            pixels = torch.empty((len(index), *self._shards.shape[1:]), dtype=torch.uint8)
            return Batch(image_batch(self._gather(position, index, pixels), None, mirrored), labels)
        return Batch(image_batch(self._pixels, index, mirrored), labels)

    def close(self) -> None:
        """Ends the thread, if there is one, and waits for its end."""
        if self._ahead:
            self._ahead.close()
        if self._shards:
            self._shards.close()

    def _selected(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Which images the batch has, int64 [N], and which of them are mirrored, bool [N]."""
        rank, processes = self._share
        count = self._batch_at(position) // processes
        position += rank * count
        index = torch.from_numpy(self._order.take(position, count))
        return index, torch.from_numpy(self._flips.take(position, count)) if self._flips else None

    def _gather(self, position: int, index: Tensor, out: Tensor) -> Tensor:
        """The bytes of the batch at a position, in `out`."""
        if self._shards is None:
            return torch.index_select(self._pixels, 0, index, out=out)
        self._shards.gather(index.numpy(), out.numpy())
        self._shards.expect(self._order.following(position))  # once those in use are there
        return out

    def _send(self, position: int) -> Sent:
        """Puts a batch on its way: bytes, which are mirrored, labels. In the thread."""
        index, mirrored = self._selected(position)
        shape = self._shards.shape if self._shards else self._pixels.shape
        pixels = self._gather(position, index, self._transfer.buffer((len(index), *shape[1:]), torch.uint8))
        if mirrored is not None:
            mirrored = self._transfer.buffer((len(index),), torch.bool).copy_(mirrored)
        labels = None
        if self._labels is not None:
            labels = self._transfer.buffer((len(index),), torch.int64)
            torch.index_select(self._labels, 0, index, out=labels)
        return self._transfer.send(pixels, mirrored, labels)


def pixels_of(dataset: ImageDataset) -> Tensor:
    """The bytes of a data set, uint8 [n, H, W, C], in place: they are read from the disk when they are asked for.

    Not to be written to: the memory map is read-only, and the system ends a process that tries.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # torch has no read-only tensors
        return torch.from_numpy(dataset.images)


def fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether bytes may be held on a GPU: in `RESIDENT_SHARE` of the memory that is free there now."""
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes <= RESIDENT_SHARE * free


def _to_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    if tensor is None or device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


# Ahead ---------------------------------------------------------------------------------------------------------------


class Ahead(Generic[Item]):
    """Makes items in a thread before they are asked for: the thing for work that neither Python nor this thread does.

    Args:
        make: the item at a position; called in the thread, one call after the other.
        following: the position after a position.
        count: items that are made or waited for by nobody yet, at most.
    """

    def __init__(self, make: Callable[[int], Item], following: Callable[[int], int], count: int = AHEAD):
        self._make, self._following, self._count = make, following, count
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)  # its thread begins with the first item
        self._pending: deque[tuple[int, Future[Item]]] = deque()

    def take(self, position: int) -> Item:
        """The item at a position; waits for it. Raises what `make` raised there.

        Elsewhere than behind the last one, it is made now, and so are those behind it.
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
        """Ends the thread once it has made the item that it is at. What has not been taken is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


class Sent(NamedTuple):
    """Tensors on their way to a device."""

    tensors: tuple[Tensor | None, ...]  # there
    arrival: torch.cuda.Event | None


class Transfer(Protocol):
    """How tensors come from the host to a device: `buffer` and `send` in a thread, `receive` where they are used."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory to be filled and sent."""

    def send(self, *tensors: Tensor | None) -> Sent:
        """Puts filled buffers on their way, without waiting; None stays None. They are not to be touched again."""

    def receive(self, sent: Sent) -> tuple[Tensor | None, ...]:
        """The tensors on the device, for whatever is computed from here on. Does not wait for them on the host."""


class GpuTransfer:
    """A `Transfer` through pinned memory and a stream of its own.

    Memory on both sides is torch's allocators'. Pinned memory is handed out again only after the copies that read it,
    which torch notes as it makes them; memory on the GPU belongs to the stream of the copies, and `receive` notes that
    another stream uses it, so that no later copy overwrites what is still read.
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
