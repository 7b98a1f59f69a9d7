"""Directions in w, the styles of a style-based generator, along which its images change in one way.

    found = principal(generator)
    with edited(generator, found, {"p0": 2.0}):
        images = generator(z)

Three ways to find them: the closed-form factorization of the layers' affine maps, the principal components of w, and
the differences between the classes of a conditional network.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.layers import EqualizedLinear
from fastgan.models.style_based import StyleBasedGenerator
from fastgan.runs.drawing import Unsupported, architecture, inference

FILE_NAME = "directions.safetensors"
SAMPLES = 10_000  # latents that the distribution of w is measured by
_BATCH = 1000
_KEY = "fastgan_directions"  # of the metadata


class Direction(NamedTuple):
    """A direction in w.

    Attributes:
        name: "f0", "p0" or "class-NAME", and so on.
        vector: [w_dim], of length 1.
        step: the length that a strength of 1 adds: the standard deviation of w along the vector, or for a class the
            distance of its mean from that of all.
        share: what the direction accounts for, of all that its method ranks by; 0 to 1.
        layers: indices of the ws that it is added to.
    """

    name: str
    vector: Tensor
    step: float
    share: float
    layers: tuple[int, ...]


def factorized(
    generator: nn.Module, *, count: int = 8, layers: Sequence[int] | None = None, samples: int = SAMPLES, seed: int = 0
) -> list[Direction]:
    """Directions that change the layers' styles most: "f0", "f1", ..., the strongest first.

    Eigenvectors of the sum of A^T A over the affine maps A from w to the styles of `layers` (Shen and Zhou 2021,
    "Closed-Form Factorization of Latent Semantics in GANs", arXiv 2007.06600, section 3.2). No image is drawn; the
    latents are for the steps alone.

    Args:
        count: of directions.
        layers: indices from 0 to num_ws - 1; None for all. The directions are added to the ws of these.
        samples, seed: latents that the distribution of w is measured by.

    Raises Unsupported if the generator is not style-based, or has no such layer or no affine maps in them.
    """
    styled = require_styles(generator)
    chosen = _chosen(styled, layers)
    maps = [weight for layer, weight in _style_maps(styled) if layer in chosen]
    if not maps:
        raise Unsupported(f"{architecture(generator)} has no styles in layers {', '.join(map(str, chosen))}")
    squares = torch.stack([weight.T @ weight for weight in maps]).sum(0)
    strengths, vectors = _ranked(squares, count)
    w, _ = _within_classes(*sampled(styled, samples, seed))
    steps = (w @ vectors.T).square().mean(0).sqrt()
    return _named("f", vectors, steps, strengths / squares.trace(), chosen)


def principal(
    generator: nn.Module, *, count: int = 8, layers: Sequence[int] | None = None, samples: int = SAMPLES, seed: int = 0
) -> list[Direction]:
    """Principal components of w: "p0", "p1", ..., that of the largest variance first.

    Härkönen et al. 2020, "GANSpace: Discovering Interpretable GAN Controls", arXiv 2004.02546, section 2. Those of a
    conditional network are components of the differences from the means of the classes. Arguments as for `factorized`.
    """
    styled = require_styles(generator)
    chosen = _chosen(styled, layers)
    w, _ = _within_classes(*sampled(styled, samples, seed))
    covariance = w.T @ w / len(w)
    variances, vectors = _ranked(covariance, count)
    return _named("p", vectors, variances.clamp(min=0).sqrt(), variances / covariance.trace(), chosen)


def of_classes(
    generator: nn.Module,
    class_names: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Direction]:
    """From the mean w of all classes to that of each: "class-NAME". `share` is that of the variance between classes.

    Raises Unsupported for a network without classes; other arguments as for `factorized`.
    """
    styled = require_styles(generator)
    chosen = _chosen(styled, layers)
    if styled.mapping.embed is None:
        raise Unsupported(f"this network of {architecture(generator)} was trained without classes")
    _, means = _within_classes(*sampled(styled, samples, seed))
    offsets = means - means.mean(0)
    lengths = offsets.norm(dim=1)
    shares = lengths.square() / lengths.square().sum()
    found = []
    for label, (offset, length, share) in enumerate(zip(offsets, lengths, shares, strict=True)):
        name = class_names[label]
        name = name if re.fullmatch(r"[\w.-]+", name) else str(label)  # one that --edit can name
        found.append(Direction(f"class-{name}", (offset / length).float(), float(length), float(share), chosen))
    return found


@contextlib.contextmanager
def edited(generator: nn.Module, directions: Sequence[Direction], strengths: Mapping[str, float]) -> Iterator[None]:
    """Within the block, the ws of all images are moved along directions, by name; 0 is no change.

    Raises ValueError for a name that is not among `directions`, or directions of another network.
    """
    styled = require_styles(generator)
    before = styled.style_offset
    total = style_offset(styled, directions, strengths)
    styled.style_offset = total if before is None else before + total
    try:
        yield
    finally:
        styled.style_offset = before


def style_offset(
    generator: StyleBasedGenerator, directions: Sequence[Direction], strengths: Mapping[str, float]
) -> Tensor:
    """The sum of the directions by their `strengths`, to be added to the ws: [num_ws, w_dim] on the generator's device.

    Raises as `edited`.
    """
    mean = generator.mapping.w_avg
    total = mean.new_zeros(generator.num_ws, generator.w_dim)
    by_name = {each.name: each for each in directions}
    for name, strength in strengths.items():
        if name not in by_name:
            raise ValueError(f"there is no direction {name!r}; there are {', '.join(by_name)}")
        vector, layers = by_name[name].vector, list(by_name[name].layers)
        if len(vector) != len(mean) or max(layers) >= generator.num_ws:
            raise ValueError(
                f"direction {name} is of another network: its w has {len(vector)} numbers and its last layer is "
                f"{max(layers)}, must be {len(mean)} and {generator.num_ws - 1} at most"
            )
        total[layers, : len(mean)] += strength * by_name[name].step * vector.to(total)
    return total


def save(path: str | Path, directions: Sequence[Direction]) -> None:
    """Write directions to a safetensors file: `vectors` [K, w_dim], and the rest as metadata."""
    about = [each._asdict() | {"vector": None} for each in directions]
    vectors = torch.stack([each.vector for each in directions]).contiguous()
    write_atomically(Path(path), to_bytes({"vectors": vectors}, {_KEY: json.dumps(about)}))


def load(path: str | Path) -> list[Direction]:
    """Read a file of `save`. Raises UserError, naming the file, if it is none."""
    try:
        with safe_open(path, "pt") as file:
            vectors = file.get_tensor("vectors")
            about: list[dict[str, Any]] = json.loads(file.metadata()[_KEY])
        directions = [
            Direction(
                str(each["name"]), vector, float(each["step"]), float(each["share"]), tuple(map(int, each["layers"]))
            )
            for each, vector in zip(about, vectors.float(), strict=True)
        ]
        if vectors.ndim != 2 or not vectors.isfinite().all() or any(not each.layers for each in directions):
            raise ValueError
        if min(min(each.layers) for each in directions) < 0:
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `fastgan directions` writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} has no directions; `fastgan directions` writes such files") from None
    return directions


def require_styles(generator: nn.Module) -> StyleBasedGenerator:
    """The generator, if it has styles. Raises Unsupported if not."""
    if not isinstance(generator, StyleBasedGenerator):
        raise Unsupported(f"{architecture(generator)} has no styles: directions need a style-based generator")
    return generator


def sampled(
    generator: StyleBasedGenerator, samples: int = SAMPLES, seed: int = 0, label: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """w of random latents, fp64 [samples, w_dim] on the CPU, and their labels, which go round all classes.

    label: of a conditional generator, the class of all of them.
    """
    mapping = generator.mapping
    device = mapping.w_avg.device
    classes = 0 if mapping.embed is None else mapping.embed.weight.shape[1]
    z = torch.randn(samples, cast(int, generator.z_dim), generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(samples) % classes if classes else None
    if labels is not None and label is not None:
        labels = torch.full_like(labels, label)
    found = []
    for start in range(0, samples, _BATCH):
        part = slice(start, start + _BATCH)
        with inference(generator):
            w = mapping(z[part].to(device), None if labels is None else labels[part].to(device))
        found.append(w.double().cpu())
    return torch.cat(found), labels


def _within_classes(w: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Differences of w [N, w_dim] from the means of their classes, and these means [K, w_dim], K >= 1."""
    labels = torch.zeros(len(w), dtype=torch.int64) if labels is None else labels
    means = torch.stack([w[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return w - means[labels], means


@torch.no_grad()
def _style_maps(generator: StyleBasedGenerator) -> list[tuple[int, Tensor]]:
    """(index of the ws, weight [C, w_dim] in fp64) of each linear map from w to a layer's styles.

    A pass whose ws are 0, 1, 2, ... shows which of them each map is given.
    """
    device = generator.mapping.w_avg.device
    width = len(generator.mapping.w_avg)
    codes = torch.arange(generator.num_ws, device=device, dtype=torch.float32)
    readers: list[tuple[int, nn.Module]] = []

    def note(module, inputs):
        x = inputs[0]
        if x.shape == (1, width) and (x == x[0, 0]).all() and x[0, 0] in codes:
            readers.append((int(x[0, 0]), module))

    linear = [module for module in generator.modules() if isinstance(module, EqualizedLinear)]
    hooks = [module.register_forward_pre_hook(note) for module in linear]
    try:
        generator.synthesize(codes[None, :, None].expand(1, -1, width).contiguous(), noise="const")
    finally:
        for hook in hooks:
            hook.remove()
    probes = torch.cat([torch.zeros(1, width, device=device), torch.eye(width, device=device)])
    found = []
    for layer, module in readers:
        values = module(probes).double().cpu()
        found.append((layer, (values[1:] - values[0]).T))
    return found


def _chosen(generator: StyleBasedGenerator, layers: Sequence[int] | None) -> tuple[int, ...]:
    last = generator.num_ws - 1
    chosen = tuple(range(last + 1)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] > last:
        raise Unsupported(f"this network of {architecture(generator)} has layers 0 to {last}, not {list(layers or [])}")
    return chosen


def _ranked(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix and their vectors, [count] and [count, size]; signs are fixed."""
    if count < 1:
        raise ValueError(f"count is {count}, must be at least 1")
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:count], vectors.T.flip(0)[:count]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return values, vectors * largest.sign()


def _named(prefix: str, vectors: Tensor, steps: Tensor, shares: Tensor, layers: tuple[int, ...]) -> list[Direction]:
    return [
        Direction(f"{prefix}{number}", vector.float(), float(step), float(share), layers)
        for number, (vector, step, share) in enumerate(zip(vectors, steps, shares, strict=True))
    ]
