"""Pivotal tuning: a style-based generator is trained further until it draws given images at the ws found for them.

Roich et al. 2021, "Pivotal Tuning for Latent-based Editing of Real Images", arXiv 2106.05744, section 3: the ws stay,
the synthesis network learns the images by a perceptual distance and pixels. So that images of other ws stay as they
are, those at some distance from the pivots are held to the images of the network before (section 3.3).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.editing import require_styles, sampled
from fastgan.projection import Distance, Projection, draw, draw_each, psnr
from fastgan.runs.drawing import inference

RATE = 1e-3  # of Adam
LOCALITY = 0.1  # weight of the images around the pivots


class Tuned(NamedTuple):
    """A tuned generator, in eval mode and without gradients; its images of the pivots, and their PSNR in dB, [N]."""

    generator: nn.Module
    images: Tensor
    psnr: Tensor


def tune(
    generator: nn.Module,
    found: Projection,
    images: Tensor,
    *,
    steps: int,
    perceptual: Any = None,
    batch: int = 8,
    seed: int = 0,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tuned:
    """A copy of `generator` that draws `images` at the ws that `project` has found for them.

    Args:
        generator: style-based, in eval mode; it stays as it is.
        found: the pivots: ws and noise maps.
        images: [N, C, H, W], range [-1, 1].
        steps: of Adam, at least 1; each takes `batch` images, in turns.
        perceptual: as for `project`.
        seed: of the ws around the pivots.
        watch: called after each step with its number from 1 and the distances of its images [batch].

    Raises Unsupported for a generator without styles.
    """
    before: Any = require_styles(generator)
    if steps < 1:
        raise ValueError(f"steps is {steps}, must be at least 1")
    after: Any = copy.deepcopy(before)
    device = after.mapping.w_avg.device
    learned = [value for name, value in after.named_parameters() if not name.startswith("mapping.")]
    for parameter in learned:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(learned, RATE, betas=(0.9, 0.999))
    random = torch.Generator().manual_seed(seed)
    others, _ = sampled(before, max(steps, 256), seed)
    far = float(torch.cdist(others[:256], others[:256]).sum() / (256 * 255))  # usual distance of two ws
    others = others.float().to(device)
    pivots, targets = found.latents.to(device), images.float().to(device)
    maps = [each.to(device) for each in found.noise]

    for step in range(steps):
        index = [(step * batch + i) % len(pivots) for i in range(min(batch, len(pivots)))]
        optimizer.param_groups[0]["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        drawn = draw(after, pivots[index], maps=[each[index] for each in maps])
        distances = Distance(perceptual, targets[index])(drawn)
        pivot = pivots[int(torch.randint(len(pivots), (), generator=random))]
        way = others[step] - pivot  # [num_ws, w_dim]
        beside = (pivot + far * way / way.norm(dim=1, keepdim=True).clamp(min=1e-8))[None]
        with inference(before):
            expected = draw(before, beside)
        around = Distance(perceptual, expected)(draw(after, beside))
        optimizer.zero_grad()
        (distances.mean() + LOCALITY * around.mean()).backward()
        optimizer.step()
        if watch:
            watch(step + 1, distances.detach())
    after.requires_grad_(False)
    drawn = draw_each(after, found.latents, None, found.noise)
    return Tuned(after, drawn, psnr(drawn, images))
