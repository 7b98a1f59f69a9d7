"""Data loader: batches depend on seed and position only, prefetched or not; no thread outlives it."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from fastgan import data
from fastgan.data import ImageDataset, ImageLoader, ShuffledStream, pixels_of
from fastgan.data.loader import PREFETCH, THREAD_NAME, Prefetcher, Sent, fits
from fastgan.data.shuffle import CoinFlips
from fastgan.ops import image_batch
from tests.support.processes import LONG
from tests.support.tiny_run import assert_same_checkpoint, log_lines, tensors, train

pytestmark = pytest.mark.usefixtures("one_cache")
CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def dataset(request, tmp_path):
    """37 images in a read-only memory map, like an entry of the cache."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (37, 8, 8, request.param), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    return ImageDataset(images, rng.integers(0, 3, 37), ["a", "b", "c"], "a test", {})


class HostTransfer:
    """Transfer to a "device" in host memory. It copies, then overwrites the buffers, so that a missing copy shows."""

    def __init__(self, fails_at: int = -1):
        self.sent = self.received = 0
        self.fails_at = fails_at

    def buffer(self, shape, dtype):
        assert threading.current_thread().name.startswith(THREAD_NAME)
        return torch.empty(shape, dtype=dtype)

    def send(self, *tensors):
        if self.sent == self.fails_at:
            raise OSError("the disk is gone")
        self.sent += 1
        there = tuple(None if t is None else t.clone() for t in tensors)
        for t in tensors:
            if t is not None:
                t.fill_(77)
        return Sent(there, None)

    def receive(self, sent):
        assert threading.current_thread() is threading.main_thread()
        self.received += 1
        return sent.tensors


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def by_stage(position: int) -> int:
    """Batch size of a progressive training: smaller in later stages."""
    return 16 if position < 64 else 8 if position < 128 else 5


def positions(batch_at, count: int) -> list[int]:
    found = [0]
    while len(found) < count:
        found.append(found[-1] + batch_at(found[-1]))
    return found


@pytest.fixture(params=["in place", "ahead"])
def load(request):
    """Function that makes loaders; they are closed at the end."""
    made = []

    def make(dataset, batch_at, **options):
        ahead = {"transfer": HostTransfer()} if request.param == "ahead" else {}
        made.append(ImageLoader(dataset, CPU, 5, batch_at, **ahead, **options))
        return made[-1]

    yield make
    for loader in made:
        loader.close()
    assert not threads()


def test_batches_are_the_images_of_the_stream_with_their_labels(load, dataset):
    loader = load(dataset, by_stage, labels=True)
    for position in positions(by_stage, 20):
        index = ShuffledStream(37, 5).take(position, by_stage(position))
        images, labels = loader.batch(position)
        assert torch.equal(images, image_batch(torch.from_numpy(dataset.images[index])))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.tolist() == dataset.labels[index].tolist()


def test_coin_flips_decide_which_images_are_mirrored(load, dataset):
    loader = load(dataset, by_stage, labels=True, mirror=True)
    for position in positions(by_stage, 20):
        index = ShuffledStream(37, 5).take(position, by_stage(position))
        flips = CoinFlips(5).take(position, len(index))
        images, labels = loader.batch(position)
        turned = np.where(flips[:, None, None, None], dataset.images[index][:, :, ::-1], dataset.images[index])
        assert torch.equal(images, image_batch(torch.from_numpy(turned)))
        assert labels.tolist() == dataset.labels[index].tolist()


def test_batches_may_be_taken_at_any_position(load, dataset):
    loader = load(dataset, by_stage, mirror=True)
    expected = {position: loader.batch(position).images for position in positions(by_stage, 20)}
    other = load(dataset, by_stage, mirror=True)
    for position in (96, 104, 64, 16, 32, 96, 143, 0):
        batch = other.batch(position)
        assert torch.equal(batch.images, expected[position]) and batch.labels is None


def test_the_memory_map_is_read_in_place(dataset):
    pixels = pixels_of(dataset)
    assert pixels.data_ptr() == dataset.images.ctypes.data and pixels.shape == dataset.images.shape


def test_the_read_only_map_gives_no_warning(dataset, recwarn):
    pixels_of(dataset)
    assert not recwarn.list


def test_the_next_batch_is_prefetched_while_one_is_used(dataset):
    transfer = HostTransfer()
    loader = ImageLoader(dataset, CPU, 0, lambda position: 4, transfer=transfer)
    try:
        loader.batch(0)
        deadline = time.monotonic() + LONG
        while transfer.sent < 1 + PREFETCH:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05)
        assert transfer.sent == 1 + PREFETCH and transfer.received == 1  # and no further
    finally:
        loader.close()
    assert not threads()


def test_errors_of_the_thread_are_raised_at_their_batch(dataset):
    loader = ImageLoader(dataset, CPU, 0, lambda position: 4, transfer=HostTransfer(fails_at=2))
    loader.batch(0), loader.batch(4)
    with pytest.raises(OSError, match="the disk is gone"):
        loader.batch(8)
    loader.close()
    assert not threads()


def test_ctrl_c_while_waiting_ends_the_thread():
    go_on = threading.Event()
    ahead = Prefetcher(lambda position: go_on.wait(30), lambda position: position + 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            ahead.take(0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads()
    go_on.set()
    ahead.close()
    assert not threads()


def test_items_after_a_jump_are_made_in_order():
    made = []

    def make(position):
        made.append(position)
        return position

    ahead = Prefetcher(make, lambda position: position + 10, count=1)
    assert [ahead.take(position) for position in (0, 10, 20, 7, 17)] == [0, 10, 20, 7, 17]
    ahead.close()
    assert made[-2:] in ([7, 17], [17, 27]) and set(made) <= {0, 10, 20, 30, 7, 17, 27}


@pytest.mark.parametrize("free, fitting", [(4000, True), (3999, False)])
def test_a_data_set_is_resident_if_it_fits_in_a_quarter_of_free_memory(monkeypatch, free, fitting):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert fits(torch.empty(1000, 1, 1, 1, dtype=torch.uint8), torch.device("cuda")) == fitting


@pytest.mark.slow
def test_prefetching_gives_the_same_training(folder, tmp_path, monkeypatch):
    plain = train(folder, tmp_path / "plain", "--mirror")
    weights, others = (
        tensors(run)["discriminator.from_rgb.weight"] for run in (plain, train(folder, tmp_path / "unmirrored"))
    )
    assert not np.array_equal(weights, others)
    monkeypatch.setattr(
        data, "ImageLoader", lambda *args, **named: ImageLoader(*args, **named, transfer=HostTransfer())
    )
    ahead = train(folder, tmp_path / "ahead", "--mirror")
    assert log_lines(ahead) == log_lines(plain)
    assert_same_checkpoint(ahead, plain)
    assert not threads()


def test_a_failed_training_leaves_no_thread(folder, tmp_path, monkeypatch):
    transfer = HostTransfer(fails_at=5)
    monkeypatch.setattr(data, "ImageLoader", lambda *args, **named: ImageLoader(*args, **named, transfer=transfer))
    with pytest.raises(OSError, match="the disk is gone"):
        train(folder, tmp_path / "run")
    assert transfer.received == 5 and not threads()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_a_gpu_equal_those_on_a_cpu(dataset, resident):
    """The device is kept busy, so that a batch that does not wait for its copy is wrong."""
    device = torch.device("cuda")
    there = ImageLoader(dataset, device, 5, by_stage, labels=True, mirror=True, resident=resident)
    here = ImageLoader(dataset, CPU, 5, by_stage, labels=True, mirror=True)
    work = torch.randn(4096, 4096, device=device)
    found = []
    try:
        for position in positions(by_stage, 40):
            work = (work @ work).clamp(-1, 1)
            found.append((position, there.batch(position)))
    finally:
        there.close()
    for position, batch in found:
        expected = here.batch(position)
        assert torch.equal(batch.images.cpu(), expected.images) and torch.equal(batch.labels.cpu(), expected.labels)
    assert not threads()


@pytest.mark.parametrize("mirror", [False, True])
def test_shares_make_up_the_batch(folder, mirror):
    from fastgan.data import open_dataset

    dataset = open_dataset(str(folder), 8, 1)
    load = lambda share: ImageLoader(
        dataset, torch.device("cpu"), 3, lambda _: 12, share=share, labels=True, mirror=mirror
    )
    whole, shares = load((0, 1)).batch(24), [load((rank, 3)).batch(24) for rank in range(3)]
    assert torch.equal(torch.cat([each.images for each in shares]), whole.images)
    assert torch.equal(torch.cat([each.labels for each in shares]), whole.labels)
