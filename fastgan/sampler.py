"""`fastgan.load`: a trained generator that draws batches of images: on a CPU with prepared weights, on a GPU with CUDA
graphs, and compiled on request.

    sampler = fastgan.load("RUN")
    images = sampler.sample(64)  # uint8 [64, C, H, W]

CUDA graphs are captured by `fastgan.runs.graphs`, as in training, and not by `torch.compile(mode="reduce-overhead")`:
they work with and without the compiler, report why a capture failed, and their output outlives the next call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.models import ModelConfig
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.options import LARGEST_NUMPY_SEED, LARGEST_SEED, SeedFormat
from fastgan.runs import drawing, graphs, precision
from fastgan.runs.drawing import Noise
from fastgan.runs.networks import open_networks
from fastgan.runs.precision import compiler

GPU_BATCH = 16
MAX_GRAPHS = 64  # compiled for batch sizes, kinds of noise and dtypes; by default the compiler gives up at 8


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    amp: bool = False,
    compile: bool = False,
    batch: int | None = None,
    ema: float | None = None,
) -> Sampler:
    """Load the averaged generator of a training run.

    Args:
        path: a run's folder, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
            local or at a URL, with #sha256=HEX to check its digest. "hf://USER/NAME" or "hf://USER/NAME@REVISION", one
            of the Hugging Face hub (extra "huggingface"). "example:NAME", one that comes with fastgan.
        device: "cpu", "cuda", "cuda:1", ...; None for the first GPU if there is one, else the CPU.
        amp: bf16 activations if they are faster on the device (a GPU with bf16 tensor cores, a CPU with bf16
            instructions), as `--amp` in training; else fp32. `Sampler.precision` has the choice and its reason.
        compile: `torch.compile` the network as one graph. The first batch of each size then takes long.
        batch: largest number of images drawn at once; None for a number that suits the network and the device. Larger
            batches round differently: in fp32 by about 1e-6 of an image's range.
        ema: half-life of the average, in thousands of images, of a training that has kept several; None for the first.

    Raises UserError, naming the file or option, if there is no checkpoint, no such device or EMA, or compilation fails.
    """
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}, must be at least 1")
    where = precision.choose_device("auto" if device is None else str(device))
    _, model, names, load_onto, *_ = open_networks(path, ema)
    recorder = graphs.CudaRecorder(where) if where.type == "cuda" else None
    return Sampler(
        load_onto(where), model, names, precision.choose(amp, where), compile=compile, batch=batch, recorder=recorder
    )


class _Mode(NamedTuple):
    """Options that, with the batch size, select a compiled or captured graph."""

    noise: Noise
    dtype: torch.dtype


class Sampler:
    """Draws images from a generator. Created by `load`.

    Attributes:
        generator: the averaged network, in eval mode, without gradients: `generator(z, label)`, see
            `fastgan.runs.checkpoint.load_generator`. It can be passed to the functions of `fastgan.studies`.
        model: its `fastgan.models.ModelConfig`.
        class_names: names of the labels 0, 1, ...; empty for a network without classes.
        size: height and width of the images; for a network that was still growing, those of its stage.
        precision: device, dtype of activations, and the reason for it.
        batch: largest number of images drawn at once.
    """

    def __init__(
        self,
        generator: nn.Module,
        model: ModelConfig,
        class_names: Sequence[str],
        precision: precision.Precision,
        *,
        compile: bool = False,
        batch: int | None = None,
        recorder: graphs.Recorder | None = None,
    ):
        """recorder: captures CUDA graphs; None to draw without them."""
        self.generator = drawing.trained(generator, model)
        self.model, self.class_names, self.precision = model, list(class_names), precision
        recommended = drawing.batch_size(model) if precision.device.type == "cpu" else GPU_BATCH
        self.batch = recommended if batch is None else batch
        resolution = generator.stage_resolution if isinstance(generator, ProgressiveGrowing) else model.resolution
        self.size = model.feature_size(resolution)
        self._network = _compiled(generator, precision.device) if compile else generator
        self._graphs = None if recorder is None else graphs.Graphs(self._draw_into, recorder)
        self._outputs: dict[tuple[_Mode, int], Tensor] = {}  # static output buffers of the graphs
        self._pads = compile or recorder is not None

    def __repr__(self) -> str:
        sizes = "x".join(map(str, (self.model.channels, *self.size)))
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"Sampler({self.model.arch}, {sizes}{classes}, {self.precision.device}, {self.precision})"

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        seed_format: SeedFormat = "torch",
        classes: str | int | Sequence[str | int] | None = None,
        truncation: float = 1.0,
        noise: Noise = "const",
        dtype: torch.dtype = torch.uint8,
    ) -> Tensor:
        """Draw images of random latents: the same seed, class and options always give the same image.

        In fp32 these are the images of `fastgan generate`, up to the rounding of larger batches.

        Args:
            n: number of images.
            seed: the first of n consecutive seeds, a latent each.
            seeds: the seeds themselves, instead of `n` and `seed`.
            seed_format: how a seed becomes a latent; "numpy" as in the official StyleGAN2 scripts.
            classes: a class for all images, or a sequence with one for each: names, or numbers from 0. By default seed
                s has class s modulo the number of classes.
            truncation: psi, for style-based networks: 1 is full variety, less is more typical images, 0 the average.
            noise: for networks with noise in their layers: "const" is always the same; "none"; "random" is drawn from
                torch's default generator, so that an image no longer depends on its seed alone.
            dtype: torch.uint8 for 0..255, or torch.float32 for the nominal range [-1, 1], not clamped.

        Returns:
            [n, C, H, W] on the device of the generator, contiguous.

        Raises:
            ValueError: a number, class or option is invalid.
            Unsupported, a ValueError: the network has no truncation or no noise to choose.
        """
        seeds = _seeds(n, seed, seeds, LARGEST_NUMPY_SEED if seed_format == "numpy" else LARGEST_SEED)
        if dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"dtype is {dtype}, must be torch.uint8 or torch.float32")
        if not math.isfinite(truncation):
            raise ValueError(f"truncation is {truncation}, must be finite")
        if noise not in ("const", "none", "random"):
            raise ValueError(f"noise is {noise!r}, must be 'const', 'none' or 'random'")
        drawing.arguments(self.generator, truncation=truncation, noise=noise)
        device = self.precision.device
        labels = self.labels(seeds, classes)
        z = drawing.latents(seeds, self.model.z_dim, seed_format).to(device)
        psi = torch.full((), truncation, device=device)
        images = torch.empty(len(z), self.model.channels, *self.size, dtype=dtype, device=device)
        for start in range(0, len(z), self.batch):
            part = slice(start, start + self.batch)
            label = None if labels is None else self._padded(labels[part])
            with drawing.inference(self.generator):
                drawn = self._draw_batch(_Mode(noise, dtype), self._padded(z[part]), label, psi)
                images[part] = drawn[: len(images[part])]
        return images

    def labels(self, seeds: Sequence[int], classes: str | int | Sequence[str | int] | None = None) -> Tensor | None:
        """Labels of the images of `seeds`, int64 [len(seeds)] on the device; None for a network without classes.

        `classes` as in `sample`. Raises ValueError for an unknown class.
        """
        count = len(self.class_names)
        if not count:
            if classes is not None:
                raise ValueError(f"classes is {classes!r}, but this network was trained without classes")
            return None
        if classes is None:
            numbers = [seed % count for seed in seeds]
        elif isinstance(classes, str | int | Integral):
            numbers = [self._label(classes)] * len(seeds)
        else:
            numbers = [self._label(one) for one in classes]
        if len(numbers) != len(seeds):
            raise ValueError(f"classes has {len(numbers)} entries, must have one for each of {len(seeds)} images")
        return torch.tensor(numbers, device=self.precision.device)

    def _label(self, one: str | int) -> int:
        names = self.class_names
        if isinstance(one, str):
            if one not in names:
                raise ValueError(f"classes: there is no class {one!r}; there are {', '.join(names)}")
            return names.index(one)
        if not 0 <= one < len(names):
            raise ValueError(f"classes: there is no class number {one}; there are 0 to {len(names) - 1}")
        return int(one)

    def _padded(self, part: Tensor) -> Tensor:
        """[N, ...] padded to a power of two, if each batch size would be compiled or captured separately."""
        size = min(1 << (len(part) - 1).bit_length(), self.batch) if self._pads else len(part)
        return part if size == len(part) else torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])

    def _draw_batch(self, mode: _Mode, z: Tensor, label: Tensor | None, psi: Tensor) -> Tensor:
        """[N, C, H, W], which the next call may overwrite."""
        if self._graphs is None:
            return self._draw(mode, z, label, psi)
        key = mode, len(z)
        if key not in self._outputs:
            size = len(z), self.model.channels, *self.size
            self._outputs[key] = torch.empty(size, dtype=mode.dtype, device=z.device)
        self._graphs(mode, z, label, psi)
        return self._outputs[key]

    def _draw_into(self, mode: _Mode, z: Tensor, label: Tensor | None, psi: Tensor) -> None:
        self._outputs[mode, len(z)].copy_(self._draw(mode, z, label, psi))

    def _draw(self, mode: _Mode, z: Tensor, label: Tensor | None, psi: Tensor) -> Tensor:
        options = drawing.arguments(self.generator, noise=mode.noise)
        if "truncation" in options:
            options["truncation"] = psi  # a tensor: a number would be a constant of the compiled or captured graph
        with self.precision.autocast():
            images = self._network(z, label, **options)
        return drawing.quantized(images) if mode.dtype == torch.uint8 else images


def _compiled(network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    compiled = compiler(device, "compile=True")(network, fullgraph=True)

    def run(*inputs, **options):
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            return compiled(*inputs, **options)

    return run


def _seeds(n: int | None, seed: int, seeds: Sequence[int] | None, largest: int) -> list[int]:
    if n is not None and seeds is None:
        seeds = range(seed, seed + n)
    elif n is not None or seeds is None:
        raise ValueError("give either n, the number of images, or seeds")
    seeds = [int(one) for one in seeds]
    if not seeds:
        raise ValueError("there must be at least one image: n is 0, or seeds is empty")
    for one in (min(seeds), max(seeds)):
        if not 0 <= one <= largest:
            raise ValueError(f"seed {one} is out of range, must be from 0 to {largest}")
    return seeds
