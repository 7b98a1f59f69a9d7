"""A trained generator, or half of one, as a graph of plain PyTorch operations, its inputs, and the check of a copy."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastgan.models.style_based import StyleBasedGenerator
from fastgan.ops import use_backend
from fastgan.runs import drawing
from fastgan.runs.drawing import Unsupported
from fastgan.sampler import Sampler

Image = Literal["float", "uint8"]
FixedNoise = Literal["const", "none"]
Part = Literal["generator", "mapping", "synthesis"]

CHECKED = ((0,), 1.0), ((1, 2, 3), 0.7)  # batches of seeds, each with its psi for networks with truncation


class Network(nn.Module):
    """A generator with fixed noise and output type: only its inputs vary.

    Args:
        generator: in eval mode, without gradients.
        noise: in the layers.
        image: the output: "float", or "uint8", clamped and rounded.

    Raises Unsupported for `noise` other than "const" if the generator has none.
    """

    def __init__(self, generator: nn.Module, noise: FixedNoise, image: Image):
        super().__init__()
        self.generator, self.image = generator, image
        self.options = drawing.arguments(generator, noise=noise)
        self.eval()

    def forward(self, z: Tensor, label: Tensor | None = None, truncation: Tensor | None = None) -> Tensor:
        psi = {} if truncation is None else {"truncation": truncation}
        image = self.generator(z, label, **(self.options | psi))
        return drawing.quantized(image) if self.image == "uint8" else image


class Mapping(nn.Module):
    """The first half of a style-based generator: latents to ws [N, num_ws, w_dim], truncated."""

    def __init__(self, generator: StyleBasedGenerator):
        super().__init__()
        self.generator = generator
        self.eval()

    def forward(self, z: Tensor, label: Tensor | None = None, truncation: Tensor | float = 1.0) -> Tensor:
        return self.generator.styles(z, label, truncation=truncation).contiguous()


class Synthesis(nn.Module):
    """The second half: ws to images. Arguments as of `Network`."""

    def __init__(self, generator: StyleBasedGenerator, noise: FixedNoise, image: Image):
        super().__init__()
        drawing.arguments(generator, noise=noise)  # raises Unsupported
        self.generator, self.noise, self.image = generator, noise, image
        self.eval()

    def forward(self, ws: Tensor) -> Tensor:
        image = self.generator.synthesize(ws, noise=self.noise)
        return drawing.quantized(image) if self.image == "uint8" else image


def trace(
    sampler: Sampler, *, part: Part = "generator", noise: FixedNoise = "const", image: Image = "float"
) -> ExportedProgram:
    """Trace a sampler's network by `torch.export`, in fp32 on its device, for any number N of samples.

    `trace(sampler).module()` is called as `(z, label=label, truncation=psi)`, with the keywords that `inputs` returns
    for this network, and returns [N, C, H, W]. Two halves of a style-based generator do the same: `part="mapping"` has
    these inputs and returns ws [N, num_ws, w_dim], and `part="synthesis"` is called as `(ws)`. Raises Unsupported for
    noise that the network does not have, and for parts of a generator without styles.
    """
    examples = inputs(sampler, range(2))
    network: nn.Module
    if part == "generator":
        network = Network(sampler.generator, noise, image)
    elif not isinstance(sampler.generator, StyleBasedGenerator):
        raise Unsupported(f"{sampler.model.arch} has no styles: its generator has no halves")
    elif part == "mapping":
        network = Mapping(sampler.generator)
    else:
        with torch.no_grad():
            examples = {"ws": Mapping(sampler.generator)(**examples)}
        network = Synthesis(sampler.generator, noise, image)
    any_number = Dim("N")
    shapes = {name: {0: any_number} if value.dim() else {} for name, value in examples.items()}
    first = examples.pop(next(iter(examples)))
    with torch.no_grad(), use_backend("torch"), quiet():
        program = torch.export.export(network, (first,), examples, dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def inputs(sampler: Sampler, seeds: Sequence[int], psi: float = 1.0) -> dict[str, Tensor]:
    """Inputs of an exported network for the images of `seeds`: z, and as far as it takes them label and truncation."""
    device = sampler.precision.device
    found = {"z": drawing.latents(seeds, sampler.model.z_dim).to(device)}
    if (labels := sampler.labels(seeds)) is not None:
        found["label"] = labels
    supports: Any = sampler.generator.supports
    if "truncation" in supports:
        found["truncation"] = torch.full((), psi, device=device)
    return found


def largest_difference(
    draw: Callable[..., Tensor], sampler: Sampler, *, noise: FixedNoise = "const", image: Image = "float"
) -> float:
    """Largest difference between images of `draw`, called with named inputs, and of the sampler; may be NaN."""
    dtype = torch.uint8 if image == "uint8" else torch.float32
    differences = []
    for seeds, psi in CHECKED:
        given = inputs(sampler, seeds, psi)
        options: dict[str, Any] = {"truncation": psi} if "truncation" in given else {}
        expected = sampler.sample(seeds=seeds, noise=noise, dtype=dtype, **options)
        differences.append((draw(**given).float() - expected.float()).abs().max())
    return float(torch.stack(differences).max())  # Python's max would lose a NaN


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress logs and warnings within the block: torch's exporter prints many that users can do nothing about."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
