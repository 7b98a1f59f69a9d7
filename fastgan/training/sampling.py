"""Drawing images from a generator that has been trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.errors import UserError


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """One latent a seed, fp32 [len(seeds), z_dim] on the CPU; each depends on its own seed only."""
    return torch.stack([torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def draw(
    generator: nn.Module, z: Tensor, labels: Tensor | None, *, truncation: float = 1.0, batch: int = 1
) -> np.ndarray:
    """Images of latents z [N, z_dim] and labels [N] int64: uint8 [N, H, W, C].

    The generator should be in eval mode; it runs in fp32 with its fixed noise, so the image of a latent is always the
    same. With `batch` 1 it is so to the bit, independent of what else is drawn; larger batches may round otherwise.
    truncation: psi, 1 for none. Raises UserError if it is not 1 and the generator knows no truncation.
    """
    supports = generator.supports
    if truncation != 1 and "truncation" not in supports:
        raise UserError(f"--trunc {truncation}: this architecture has no truncation; leave it out")
    options = {"truncation": truncation} if "truncation" in supports else {}
    options |= {"noise": "const"} if "noise" in supports else {}
    device = next(generator.parameters()).device
    images = []
    for start in range(0, len(z), batch):
        label = None if labels is None else labels[start : start + batch].to(device)
        images.append(_to_uint8(generator(z[start : start + batch].to(device), label, **options)))
    return torch.cat(images).numpy()


def _to_uint8(images: Tensor) -> Tensor:
    """[N, C, H, W] of range [-1, 1] to uint8 [N, H, W, C] on the CPU."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
