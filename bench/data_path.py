"""Times the data path: `image_batch` alone, and the data loader against the training step that it feeds.

- `image_batch` against plain PyTorch and `torch.compile`: a batch gathered from bytes, with and without mirroring.
- `fastgan.data.ImageLoader`, with mirroring, against a loader as usually written and against the plain step (without
  penalties, the shortest). Headroom is the loader's images per second over the step's. On a CPU both share the cores,
  and a step loses 1 / headroom of its time to its data. On a GPU two forms are timed: all bytes held on the GPU, and
  prefetched batches. Bytes are random and cached by the system, so disk time is not included.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import measure, report, textbook
from bench.forms import IMAGES
from bench.operations import DTYPES, SECONDS
from bench.training_step import CASES, LR, Ours
from fastgan import models, ops
from fastgan.data import ImageDataset, ImageLoader, ShuffledStream
from fastgan.data.shuffle import CoinFlips
from fastgan.ops import backends
from fastgan.runs import precision
from fastgan.runs.config import Config, TrainingOptions
from fastgan.runs.graphs import WARM_UPS
from fastgan.training.averages import Averages
from fastgan.training.configure import resolve
from fastgan.training.state import new_state
from fastgan.training.step import Step

SET_BYTES = 64 << 20  # size of the data set: more than caches hold
SHAPES = {"cpu": ((32, 1, 32, 32), *IMAGES["cpu"]), "cuda": IMAGES["cuda"]}  # shapes of batches [N, C, H, W]
FORMS = {"gathered": False, "mirrored": True}
LOADER_SECONDS, ROUNDS = {"cpu": 6.0, "cuda": 2.0}, (5, 100)


# ---- image_batch -----------------------------------------------------------------------------------------------------


def cases() -> list[tuple[str, tuple[int, ...], str]]:
    """Form, shape and dtype of each case for this device."""
    device = measure.device().type
    return [(form, shape, dtype) for form in FORMS for shape in SHAPES[device] for dtype in DTYPES]


def run_operation(form: str, shape: tuple[int, ...], dtype: str) -> list[tuple[dict, Callable[[], Tensor]]]:
    """Times the contestants. Returns, for each of our backends, the report's row and the timed call."""
    torch.compiler.reset()
    device, notes = measure.device(), []
    n, c, h, w = shape
    make = torch.Generator().manual_seed(0)
    images = max(n, SET_BYTES // (c * h * w))
    pixels = torch.randint(256, (images, h, w, c), generator=make, dtype=torch.uint8).to(device)
    index = torch.randint(images, (n,), generator=make).to(device)
    mirrored = (torch.rand(n, generator=make) < 0.5).to(device) if FORMS[form] else None
    arguments = pixels, index, mirrored, DTYPES[dtype]

    def on(backend: str) -> Tensor:
        with ops.use_backend(backend):
            return ops.image_batch(*arguments)

    names = ("cuda", "triton") if device.type == "cuda" else (backends.choose("image_batch", device),)
    ours = [name for name in names if backends.why_not(name, "image_batch", device) is None]
    contestants = {name: partial(on, name) for name in ours} | {"eager": partial(textbook.image_batch, *arguments)}
    if measure.COMPILE:
        contestants["compile"] = partial(torch.compile(textbook.image_batch, dynamic=False), *arguments)
        if problem := measure.problem(contestants["compile"]):
            notes.append(f"torch.compile: {problem}")
            del contestants["compile"]
    expected = contestants["eager"]().float()
    for name, call in contestants.items():
        if not torch.allclose(call().float(), expected, rtol=0.01, atol=0.01):
            raise AssertionError(f"{name} differs from eager")
    clock = measure.GpuClock() if device.type == "cuda" else measure.WallClock(device)
    timings = measure.alternate(contestants, clock, SECONDS[device.type])
    bytes_moved = n * c * h * w * (1 + DTYPES[dtype].itemsize)
    return [(_operation_row(form, shape, dtype, name, timings, bytes_moved, notes), contestants[name]) for name in ours]


def _operation_row(
    form: str, shape: tuple[int, ...], dtype: str, backend: str, timings: dict, bytes_moved: int, notes: list[str]
) -> dict:
    ours, copy = timings[backend], measure.copy_bandwidth()
    row = {
        "operation": report.IMAGE_BATCH,
        "form": form,
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "layout": "channels_last",
        "backend": backend,
        "fastgan_ms": ours.seconds * 1e3,
    }
    for name in ("eager", "compile"):
        other = timings.get(name)
        row[f"{name}_ms"] = other.seconds * 1e3 if other else None
        row[f"vs_{name}"] = ours.times_faster_than(other) if other else None
    rate = bytes_moved / ours.seconds
    row |= {"bytes_moved": bytes_moved, "gb_per_s": rate / 1e9, "copy_gb_per_s": copy / 1e9}
    row["share_of_copy"] = rate / copy
    if math.prod(shape) >= 1_000_000:  # smaller ones show the cost of a call
        fast = row["share_of_copy"] >= 0.9 if measure.device().type == "cuda" else row["vs_eager"] >= 4
        row["targets"] = "met" if fast and (row["vs_compile"] or 1) >= 1 else "missed"
    return row | {"rounds": len(ours.rounds), "notes": "; ".join(notes), **measure.machine()}


# ---- the loader ------------------------------------------------------------------------------------------------------


class DefaultStep:
    """Plain step of `fastgan train --amp`, with tiny learning rates."""

    def __init__(self):
        device = measure.device()
        config = resolve(Config(training=TrainingOptions(lr_g=LR, lr_d=LR)))
        self.classes, self.batch = config.data.classes, config.training.batch
        image = {"resolution": config.data.resolution, "channels": config.data.channels}
        torch.manual_seed(0)
        model = models.ModelConfig(**vars(config.network), **image, num_classes=self.classes)
        self.state = new_state(model, config, device)
        autocast = precision.choose(True, device).autocast
        self.step = Step(self.state, config, model.z_dim, autocast, Averages())
        shape = self.batch, image["channels"], image["resolution"], image["resolution"]
        self.real = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        self.label = torch.randint(self.classes, (self.batch,), device=device)
        if self.step.why_not_captured is None:
            for _ in range(WARM_UPS + 1):
                self(1)

    def __call__(self, number: int) -> None:
        self.state.step = number
        self.step(self.real, self.label)


STEPS = ("default", *CASES)  # training steps that a loader is timed against


def _data_set(folder: Path, real: Tensor, classes: int) -> ImageDataset:
    """Data set of random bytes in a memory map, for images like `real` [N, C, H, W]."""
    _, c, h, w = real.shape
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (SET_BYTES // (c * h * w), h, w, c), np.uint8))
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = rng.integers(0, classes, len(images)) if classes else None
    return ImageDataset(images, labels, [str(i) for i in range(classes)], "random bytes", {})


class Textbook:
    """A loader as usually written: gather, copy to the device, mirror, convert to float and scale."""

    def __init__(self, dataset: ImageDataset, batch: int):
        self.dataset, self.batch = dataset, batch
        self.order, self.flips = ShuffledStream(len(dataset)), CoinFlips()

    def __call__(self, position: int) -> tuple[Tensor, Tensor | None]:
        index, flips = (stream.take(position, self.batch) for stream in (self.order, self.flips))
        pixels = torch.from_numpy(self.dataset.images[index]).to(measure.device())
        labels = None if self.dataset.labels is None else torch.from_numpy(self.dataset.labels[index])
        mirrored = torch.from_numpy(flips).to(measure.device())
        images = textbook.image_batch(pixels, None, mirrored, torch.float32)
        return images, None if labels is None else labels.to(measure.device())


class NextBatch:
    """Callable that returns one batch after another."""

    def __init__(self, batch_at: Callable[[int], object], batch: int):
        self.batch_at, self.batch, self.position = batch_at, batch, 0

    def __call__(self) -> object:
        found = self.batch_at(self.position)
        self.position += self.batch
        return found


@contextmanager
def _contestants(name: str) -> Iterator[tuple[dict[str, Callable[[], object]], Tensor]]:
    """Contestants (the step, our loaders by form, the textbook's) and a batch. Closes the loaders at the end."""
    device = measure.device()
    step = DefaultStep() if name == "default" else Ours(CASES[name], amp=True)
    batch, classes = len(step.real), step.classes if name == "default" else 0
    forms = {"on the GPU": True, "prefetched": False} if device.type == "cuda" else {"memory map": None}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        dataset = _data_set(Path(folder), step.real, classes)
        contestants: dict[str, Callable[[], object]] = {"step": partial(step, 1)}
        for form, resident in forms.items():
            loader = ImageLoader(
                dataset, device, 0, lambda position: batch, labels=classes > 0, mirror=True, resident=resident
            )
            stack.callback(loader.close)
            contestants[form] = NextBatch(loader.batch, batch)
        contestants["eager"] = NextBatch(Textbook(dataset, batch), batch)
        yield contestants, step.real


def run_loader(name: str) -> Iterator[tuple[dict, Callable[[], object]]]:
    """Times the loaders and the step. Yields, for each form of our loader, the report's row and the timed call."""
    with _contestants(name) as (contestants, real):
        timings = measure.alternate(
            contestants, measure.WallClock(measure.device()), LOADER_SECONDS[real.device.type], rounds=ROUNDS
        )
        step, eager = timings["step"], timings["eager"]
        for form in [name for name in contestants if name not in ("step", "eager")]:
            ours = timings[form]
            row = {
                "operation": report.DATA_PATH,
                "form": form,
                "arch": name,
                "shape": "x".join(map(str, real.shape)),
                "dtype": "bf16" if measure.has_bf16() else "fp32",  # the step's
                "layout": "channels_last",
                "backend": backends.choose("image_batch", measure.device()),
                "fastgan_ms": ours.seconds * 1e3,
                "eager_ms": eager.seconds * 1e3,
                "vs_eager": ours.times_faster_than(eager),
                "step_ms": step.seconds * 1e3,
                "images_per_s": len(real) / ours.seconds,
                "step_images_per_s": len(real) / step.seconds,
                "headroom": ours.times_faster_than(step),
                "rounds": len(ours.rounds),
                "notes": "",
            }
            yield row | measure.machine(), contestants[form]
