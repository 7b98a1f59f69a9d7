"""A trained generator as one graph of plain PyTorch operations, its inputs, and the check of an exported copy."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastgan.ops import use_backend
from fastgan.runs import drawing
from fastgan.sampler import Sampler

Image = Literal["float", "uint8"]
FixedNoise = Literal["const", "none"]

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


def trace(sampler: Sampler, *, noise: FixedNoise = "const", image: Image = "float") -> ExportedProgram:
    """Trace a sampler's network by `torch.export`, in fp32 on its device, for any number N of samples.

    `trace(sampler).module()` is called as `(z, label=label, truncation=psi)`, with the keywords that `inputs` returns
    for this network, and returns [N, C, H, W]. Raises Unsupported for noise that the network does not have.
    """
    examples = inputs(sampler, range(2))
    any_number = Dim("N")
    shapes = {name: {0: any_number} if value.dim() else {} for name, value in examples.items()}
    network = Network(sampler.generator, noise, image)
    z = examples.pop("z")
    with torch.no_grad(), use_backend("torch"), quiet():
        program = torch.export.export(network, (z,), examples, dynamic_shapes=shapes)
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
