"""Projection: latents, and noise maps, whose images are nearest to given ones.

    found = project(generator, images)
    found.latents  # of style-based generators ws [N, num_ws, w_dim], which studies take in place of seeds; else z
    generator, latents = with_noise(generator, found)  # the same, with the noise that was found

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, section 5 and appendix D:
Adam on w and on the noise inputs, with noise on w that fades, rates that rise at the beginning and fall at the end, and
a term that keeps the image out of the noise maps (`fastgan.models.noise_maps`). Different here:

- It starts from the nearest of some random images, not from the mean of w: small networks have separate modes.
- The distance is perceptual (`fastgan.metrics.perceptual`) plus the mean square of pixels, so that an image that the
  generator has drawn is found again.
- Steps are in standard deviations of w, by 10,000 latents. `space="w+"` gives each layer a w of its own.
- `truncation` keeps w near the mean, where the network draws typical images.
- Noise maps begin as the network's own, and keep their mean and variance.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastgan.data.images import Target, decode, fit, losses, size_text
from fastgan.editing import SAMPLES, sampled
from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.models import ModelConfig, noise_maps
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.models.style_based import StyleBasedGenerator
from fastgan.runs.drawing import Unsupported, architecture, inference

Space = Literal["w", "w+", "z"]
STEPS = 200
CANDIDATES = 256  # random images that it starts from
RATE = 0.1  # standard deviations a step
RISES, FALLS = 0.05, 0.25  # shares of the steps in which the rate rises and falls
NOISE, FADES = 0.05, 0.75  # standard deviations of w's noise at first, and the share of the steps in which it fades
PIXELS = 4.0  # weight of the mean square beside the perceptual distance
PATTERN = 10.0  # weight of patterns in the noise maps
FILE_NAME = "projected.safetensors"
_BATCH = 32
_KEY = "fastgan_projected"  # of the metadata


class Projection(NamedTuple):
    """The nearest latents found, and their images.

    Attributes:
        latents: ws [N, num_ws, w_dim] of a style-based generator, else z [N, z_dim].
        labels: classes of z, [N] int64; None for styles, and for a network without classes.
        noise: noise maps of the layers, [N, 1, H, W] each; empty where they are the network's own.
        images: fp32 [N, C, H, W], on the CPU like the rest.
        psnr: of the images beside the given ones, in dB, [N]; both clamped to [-1, 1].
        distances: perceptual distance and mean square of pixels together, [N].
    """

    latents: Tensor
    labels: Tensor | None
    noise: tuple[Tensor, ...]
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
    noise: bool = True,
    truncation: float | None = None,
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
        perceptual: a `fastgan.metrics.perceptual.FeatureDistance`; None for pixels alone.
        noise: whether to look for noise maps as well, where the generator has noise.
        truncation: largest distance of each w from their mean, above 0; 1 is the root mean square of random ones, those
            of `label`. None for any distance.
        num_classes: of a conditional generator without styles, 0 for others; each image gets one of the classes.
        label: class to start from, and of the mean and the standard deviation of w; None for any.
        candidates: random images to start from.
        seed: of candidates and noise.
        watch: called after each step with its number from 1, the images [N, C, H, W] and the distances [N].

    Raises ValueError for images of another shape, Unsupported for a space that the generator lacks, or z with
    truncation.
    """
    styled, space = _is_styled(generator), require_space(generator, space)
    if steps < 1 or candidates < 1:
        raise ValueError(f"steps is {steps} and candidates {candidates}, both must be at least 1")
    if truncation is not None and not truncation > 0:
        raise ValueError(f"truncation is {truncation}, must be above 0")
    if truncation is not None and not styled:
        raise Unsupported(f"{architecture(generator)} has no truncation; leave it out")
    network: Any = generator
    device = next(generator.parameters()).device
    random = torch.Generator().manual_seed(seed)

    starts, labels, mean, scale = _candidates(network, candidates, num_classes, label, seed)
    radius = math.inf if truncation is None else truncation * scale * len(mean) ** 0.5
    confined = lambda latents: _within(latents, mean, radius)
    targets = images.float().to(device)
    distance = Distance(perceptual, targets)
    latents, labels = _nearest(network, confined(starts), labels, targets)
    if space == "w":
        latents = latents[:, :1]
    latents = latents.clone().requires_grad_()
    own = noise_maps.own_maps(network) if styled and noise else []
    maps = [each.repeat(len(targets), 1, 1, 1).requires_grad_() for each in own]
    optimizer = torch.optim.Adam([{"params": [latents]}, {"params": maps}], betas=(0.9, 0.999))
    whole = lambda latents: latents.expand(-1, network.num_ws, -1) if styled else latents
    best = _Best(whole(latents.detach()), maps)

    for step in range(steps):
        share = step / steps
        rate = RATE * min(1.0, (step + 1) / max(RISES * steps, 1))
        rate *= 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / FALLS))
        for group, unit in zip(optimizer.param_groups, (scale, 1.0), strict=True):
            group["lr"] = rate * unit
        spread = NOISE * scale * max(0.0, 1 - share / FADES) ** 2
        tried = confined(latents + spread * torch.randn(latents.shape, generator=random).to(device))
        drawn = draw(network, whole(tried), labels, maps)
        distances = distance(drawn)
        loss = distances.sum()
        if maps:
            loss = loss + PATTERN * noise_maps.pattern(maps).sum()
        for tensor, gradient in zip([latents, *maps], torch.autograd.grad(loss, [latents, *maps]), strict=True):
            tensor.grad = gradient
        best.keep(distances.detach(), whole(tried.detach()), maps)
        optimizer.step()
        with torch.no_grad():
            latents.copy_(confined(latents))
        noise_maps.normalize(maps, own)
        if watch:
            watch(step + 1, drawn.detach(), distances.detach())
    with torch.no_grad():
        best.keep(distance(draw(network, whole(latents), labels, maps)), whole(latents.detach()), maps)
    labels = None if labels is None else labels.cpu()
    found = best.latents.cpu(), labels, tuple(each.cpu() for each in best.maps)
    drawn = draw_each(network, *found)
    return Projection(*found, drawn, psnr(drawn, images), best.distances.cpu())


def draw(generator: nn.Module, latents: Tensor, labels: Tensor | None = None, maps: Sequence[Tensor] = ()) -> Tensor:
    """Images [N, C, H, W] of ws or z on the generator's device, with noise maps or its own constant noise."""
    network: Any = generator
    options = {"noise": "const"} if "noise" in network.supports else {}
    if latents.ndim == 2:
        return network(latents, labels, **options)
    with noise_maps.with_maps(network, maps) if maps else contextlib.nullcontext():
        return network.synthesize(latents, **options)


def fitted(data: bytes, generator: nn.Module, model: ModelConfig) -> tuple[np.ndarray, str]:
    """An image file's content as the generator's images are, uint8 [H, W, C], and what was done to it; "" for nothing.

    It is cropped and resized as `fastgan dataset` does. Raises UnusableImage if it is no image.
    """
    side = generator.stage_resolution if isinstance(generator, ProgressiveGrowing) else model.resolution
    height, width = model.feature_size(side)
    image = decode(data)
    target = Target(size=(width, height), channels=model.channels, crop="center", enlarge=True)
    pixels, done = fit(image, target), []
    if image.size != (width, height):
        crop = "cropped and " if image.width * height != image.height * width else ""
        done.append(f"{size_text(image.size)}, {crop}resized to {size_text((width, height))}")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[model.channels]
    if image.mode != mode:
        done.append(f"{image.mode} converted to {mode}")
    return pixels, "; ".join([*done, *losses(data)])


def draw_each(generator: nn.Module, latents: Tensor, labels: Tensor | None, maps: Sequence[Tensor]) -> Tensor:
    """The same one by one, as studies draw: fp32, on the CPU."""
    device = next(generator.parameters()).device
    drawn = []
    for i in range(len(latents)):
        z, y, *noise = (None if each is None else each[i : i + 1].to(device) for each in (latents, labels, *maps))
        with inference(generator):
            drawn.append(draw(generator, cast(Tensor, z), y, cast(list[Tensor], noise)).float().cpu())
    return torch.cat(drawn)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """PSNR of images [N, C, H, W], clamped to [-1, 1], in dB: [N]."""
    images, others = (each.float().cpu().clamp(-1, 1) for each in (images, others))
    return 10 * (4 / (images - others).square().mean((1, 2, 3))).log10()


def require_space(generator: nn.Module, space: Space | None = None) -> Space:
    """The space to project to, by default the generator's own. Raises Unsupported if it lacks the one given."""
    styled = _is_styled(generator)
    space = space or ("w" if styled else "z")
    if styled == (space == "z"):
        raise Unsupported(f"{architecture(generator)} has no {space}; give {'w or w+' if styled else 'z'}")
    return space


def save(path: Path, found: Projection, names: Sequence[str]) -> None:
    """Write latents to a safetensors file: `latents`, `labels` and `noise.0`, ... where there are some, and names of
    the images."""
    tensors = {"latents": found.latents} | ({} if found.labels is None else {"labels": found.labels})
    tensors |= {f"noise.{layer}": each for layer, each in enumerate(found.noise)}
    about = {_KEY: json.dumps(list(names))}
    write_atomically(path, to_bytes({name: value.contiguous() for name, value in tensors.items()}, about))


class Latents(NamedTuple):
    """Latents of a file, ws [N, num_ws, w_dim] or z [N, z_dim], and noise maps as in `Projection`; fp32, on the CPU."""

    latents: Tensor
    noise: tuple[Tensor, ...] = ()


def load(path: Path) -> Latents:
    """Read a file of `save`. Raises UserError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents").float() if _KEY in file.metadata() else None
            layers = sum(name.startswith("noise.") for name in file.keys())  # noqa: SIM118
            noise = tuple(file.get_tensor(f"noise.{layer}").float() for layer in range(layers))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `fastgan project` writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        latents = None
    if latents is None or latents.ndim not in (2, 3) or not len(latents):
        raise UserError(f"{path} has no latents; `fastgan project` writes such files")
    if any(each.shape[:2] != (len(latents), 1) or each.ndim != 4 for each in noise) or not all(
        each.isfinite().all() for each in (latents, *noise)
    ):
        raise UserError(f"{path} has no latents; `fastgan project` writes such files")
    return Latents(latents, noise)


def with_noise(generator: nn.Module, found: Latents | Projection) -> tuple[nn.Module, Tensor]:
    """A generator and its latents that draw with the noise maps of `found`; the same two if it has none.

    Raises ValueError for maps of another network.
    """
    if not found.noise:
        return generator, found.latents
    sizes = [tuple(each.shape[2:]) for each in found.noise]
    styled = cast(StyleBasedGenerator, generator)
    own = [tuple(each.shape[2:]) for each in noise_maps.own_maps(styled)] if _is_styled(generator) else []
    if sizes != own or found.latents.ndim != 3:
        raise ValueError(f"noise maps of sizes {sizes} are of another network, whose are {own}")
    wrapped = noise_maps.GeneratorWithMaps(styled).eval()
    return wrapped, wrapped.packed(found.latents, found.noise)


def _is_styled(generator: nn.Module) -> bool:
    return isinstance(generator, StyleBasedGenerator)


class _Best:
    """The nearest so far of each image."""

    def __init__(self, latents: Tensor, maps: Sequence[Tensor]):
        self.distances = torch.full((len(latents),), math.inf, device=latents.device)
        self.latents = latents.clone()
        self.maps = [each.detach().clone() for each in maps]

    @torch.no_grad()
    def keep(self, distances: Tensor, latents: Tensor, maps: Sequence[Tensor]) -> None:
        better = distances < self.distances
        for kept, given in zip((self.distances, self.latents, *self.maps), (distances, latents, *maps), strict=True):
            kept.copy_(torch.where(better.reshape(-1, *[1] * (kept.ndim - 1)), given, kept))


class Distance:
    """Perceptual distance plus PIXELS times the mean square, of images from fixed targets.

    perceptual: a `fastgan.metrics.perceptual.FeatureDistance`; None for pixels alone.
    """

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
) -> tuple[Tensor, Tensor | None, Tensor, float]:
    """Latents to start from, their labels if they need some, and the mean and the standard deviation of latents."""
    device = next(network.parameters()).device
    if isinstance(network, StyleBasedGenerator):
        w, _ = sampled(network, max(count, SAMPLES), seed, label)
        mean = w.mean(0)
        scale = float((w - mean).square().mean().sqrt())
        starts = w[:count, None].float().expand(-1, network.num_ws, -1)
        return starts.to(device), None, mean.float().to(device), scale
    z = torch.randn(count, network.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    mean = torch.zeros_like(z[0])
    if not classes:
        return z, None, mean, 1.0
    labels = torch.arange(count) % classes if label is None else torch.full((count,), label)
    return z, labels.to(device), mean, 1.0


def _within(latents: Tensor, mean: Tensor, radius: float) -> Tensor:
    """Latents [..., D], those farther than `radius` from their mean pulled towards it."""
    if radius == math.inf:
        return latents
    offsets = latents - mean
    distances = offsets.norm(dim=-1, keepdim=True)
    return torch.where(distances > radius, mean + offsets * (radius / distances.clamp(min=radius)), latents)


@torch.no_grad()
def _nearest(network: Any, starts: Tensor, labels: Tensor | None, targets: Tensor):
    """For each target the start whose image is nearest by pixels, and its label."""
    drawn = []
    for first in range(0, len(starts), _BATCH):
        part = slice(first, first + _BATCH)
        with inference(network):
            drawn.append(draw(network, starts[part], None if labels is None else labels[part]).float())
    images = torch.cat(drawn)
    if images.shape[1:] != targets.shape[1:]:
        raise ValueError(
            f"images has shape {list(targets.shape)}, must be [N, {', '.join(map(str, images.shape[1:]))}]"
        )
    index = torch.cdist(targets.flatten(1), images.flatten(1)).argmin(1)
    return starts[index], None if labels is None else labels[index]
