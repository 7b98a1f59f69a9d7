"""Projection: latents whose images are nearest to given ones.

    found = project(generator, images)
    found.latents  # of style-based generators ws [N, num_ws, w_dim], which studies take in place of seeds; else z

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, section 5 and appendix D:
Adam on w, with noise on w that fades, rates that rise at the beginning and fall at the end. Different here:

- It starts from the nearest of some random images, not from the mean of w: small networks have separate modes.
- The distance is perceptual (`fastgan.metrics.perceptual`) plus the mean square of pixels, so that an image that the
  generator has drawn is found again.
- Steps are in standard deviations of w, and noise inputs stay constant. `space="w+"` gives each layer a w of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastgan.editing import sampled
from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.models.style_based import StyleBasedGenerator
from fastgan.runs.drawing import Unsupported, architecture

Space = Literal["w", "w+", "z"]
STEPS = 200
CANDIDATES = 256  # random images that it starts from
RATE = 0.1  # standard deviations a step
RISES, FALLS = 0.05, 0.25  # shares of the steps in which the rate rises and falls
NOISE, FADES = 0.05, 0.75  # standard deviations of w's noise at first, and the share of the steps in which it fades
PIXELS = 4.0  # weight of the mean square beside the perceptual distance
FILE_NAME = "projected.safetensors"
_BATCH = 32
_KEY = "fastgan_projected"  # of the metadata


class Projection(NamedTuple):
    """The nearest latents found, and their images.

    Attributes:
        latents: ws [N, num_ws, w_dim] of a style-based generator, else z [N, z_dim].
        labels: classes of z, [N] int64; None for styles, and for a network without classes.
        images: fp32 [N, C, H, W], on the CPU like the rest.
        psnr: of the images beside the given ones, in dB, [N]; both clamped to [-1, 1].
        distances: perceptual distance and mean square of pixels together, [N].
    """

    latents: Tensor
    labels: Tensor | None
    images: Tensor
    psnr: Tensor
    distances: Tensor


def project(
    generator: nn.Module,
    images: Tensor,
    *,
    space: Space | None = None,
    steps: int = STEPS,
    perceptual: nn.Module | None = None,
    num_classes: int = 0,
    label: int | None = None,
    candidates: int = CANDIDATES,
    seed: int = 0,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Projection:
    """Latents whose images are nearest to `images`.

    Args:
        generator: in eval mode.
        images: [N, C, H, W] of the generator's size, range [-1, 1].
        space: "w" and "w+" of style-based generators, "z" of others; None for "w" where there is one.
        steps: of Adam, at least 1.
        perceptual: a `fastgan.metrics.perceptual.PerceptualDistance`; None for pixels alone.
        num_classes: of a conditional generator without styles, 0 for others; each image gets one of the classes.
        label: class to start from; None for any.
        candidates: random images to start from.
        seed: of candidates and noise.
        watch: called after each step with its number from 1, the images [N, C, H, W] and the distances [N].

    Raises ValueError for images of another shape, Unsupported for a space that the generator lacks.
    """
    styled, space = isinstance(generator, StyleBasedGenerator), require_space(generator, space)
    if steps < 1 or candidates < 1:
        raise ValueError(f"steps is {steps} and candidates {candidates}, both must be at least 1")
    network: Any = generator
    device = next(generator.parameters()).device
    random = torch.Generator().manual_seed(seed)
    options = {"noise": "const"} if "noise" in network.supports else {}
    draw = (lambda ws, _: network.synthesize(ws, **options)) if styled else (lambda z, y: network(z, y, **options))

    starts, labels, scale = _candidates(network, candidates, num_classes, label, seed)
    targets = images.float().to(device)
    distance = _Distance(perceptual, targets)
    latents, labels = _nearest(draw, starts, labels, targets, distance)
    if space == "w":
        latents = latents[:, :1]
    latents = latents.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], betas=(0.9, 0.999))
    whole = lambda latents: latents.expand(-1, network.num_ws, -1) if styled else latents
    best = [torch.full((len(targets),), math.inf), whole(latents.detach()).cpu().clone()]

    def keep(distances: Tensor, tried: Tensor) -> None:
        better = distances.cpu() < best[0]
        best[0] = torch.where(better, distances.cpu(), best[0])
        best[1][better] = whole(tried).cpu()[better]

    for step in range(steps):
        share = step / steps
        rate = RATE * scale * min(1.0, (step + 1) / max(RISES * steps, 1))
        rate *= 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / FALLS))
        optimizer.param_groups[0]["lr"] = rate
        noise = NOISE * scale * max(0.0, 1 - share / FADES) ** 2
        tried = latents + noise * torch.randn(latents.shape, generator=random).to(device)
        drawn = draw(whole(tried), labels)
        distances = distance(drawn)
        (latents.grad,) = torch.autograd.grad(distances.sum(), latents)
        keep(distances.detach(), tried.detach())
        optimizer.step()
        if watch:
            watch(step + 1, drawn.detach(), distances.detach())
    with torch.no_grad():
        keep(distance(draw(whole(latents), labels)), latents.detach())
        drawn = torch.cat([draw(one[None].to(device), y) for one, y in _each(best[1], labels)]).float().cpu()
    squares = (drawn.clamp(-1, 1) - images.float().cpu().clamp(-1, 1)).square().mean((1, 2, 3))
    psnr = 10 * (4 / squares).log10()
    return Projection(best[1], None if labels is None else labels.cpu(), drawn, psnr, best[0])


def require_space(generator: nn.Module, space: Space | None = None) -> Space:
    """The space to project to, by default the generator's own. Raises Unsupported if it lacks the one given."""
    styled = isinstance(generator, StyleBasedGenerator)
    space = space or ("w" if styled else "z")
    if styled == (space == "z"):
        raise Unsupported(f"{architecture(generator)} has no {space}; give {'w or w+' if styled else 'z'}")
    return space


def save(path: Path, found: Projection, names: Sequence[str]) -> None:
    """Write latents to a safetensors file: `latents`, `labels` if there are some, and names of the images."""
    tensors = {"latents": found.latents.contiguous()} | ({} if found.labels is None else {"labels": found.labels})
    write_atomically(path, to_bytes(tensors, {_KEY: json.dumps(list(names))}))


def load(path: Path) -> Tensor:
    """Latents of a file of `save`: ws [N, num_ws, w_dim] or z [N, z_dim], fp32. Raises UserError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents").float() if _KEY in file.metadata() else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `fastgan project` writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        latents = None
    if latents is None or latents.ndim not in (2, 3) or not len(latents) or not latents.isfinite().all():
        raise UserError(f"{path} has no latents; `fastgan project` writes such files")
    return latents


class _Distance:
    """Perceptual distance plus PIXELS times the mean square, of images from fixed targets."""

    def __init__(self, perceptual: Any, targets: Tensor):
        self.perceptual, self.targets = perceptual, targets
        with torch.no_grad():
            self.features = perceptual.features(targets) if perceptual is not None else None

    def __call__(self, images: Tensor) -> Tensor:
        found = PIXELS * (images.float() - self.targets).square().mean((1, 2, 3))
        if self.perceptual is None:
            return found
        return found + self.perceptual.between(self.perceptual.features(images), self.features)


@torch.no_grad()
def _candidates(
    network: Any, count: int, classes: int, label: int | None, seed: int
) -> tuple[Tensor, Tensor | None, float]:
    """Latents to start from, their labels if they need some, and the standard deviation of latents."""
    device = next(network.parameters()).device
    if isinstance(network, StyleBasedGenerator):
        w, labels = sampled(network, max(count, 1000), seed)
        scale = float((w - w.mean(0)).square().mean().sqrt())
        if label is not None and labels is not None:
            w = w[labels == label]
        return w[:count, None].float().expand(-1, network.num_ws, -1).to(device), None, scale
    z = torch.randn(count, network.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    if not classes:
        return z, None, 1.0
    labels = torch.arange(count) % classes if label is None else torch.full((count,), label)
    return z, labels.to(device), 1.0


@torch.no_grad()
def _nearest(draw, starts: Tensor, labels: Tensor | None, targets: Tensor, distance: _Distance):
    """For each target the start whose image is nearest by pixels, and its label."""
    drawn = []
    for first in range(0, len(starts), _BATCH):
        part = slice(first, first + _BATCH)
        drawn.append(draw(starts[part], None if labels is None else labels[part]).float())
    images = torch.cat(drawn)
    if images.shape[1:] != targets.shape[1:]:
        raise ValueError(
            f"images has shape {list(targets.shape)}, must be [N, {', '.join(map(str, images.shape[1:]))}]"
        )
    index = torch.cdist(targets.flatten(1), images.flatten(1)).argmin(1)
    return starts[index], None if labels is None else labels[index]


def _each(latents: Tensor, labels: Tensor | None):
    return ((one, None if labels is None else labels[i : i + 1]) for i, one in enumerate(latents))
