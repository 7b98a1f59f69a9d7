"""Network files for other StyleGAN2 and StyleGAN3 code: pickles of the official code, and .pt files of rosinality's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastgan.interop import pickling, rosinality
from fastgan.interop.official import FAMILIES, Tensors, build
from fastgan.models import ModelConfig

_SAMPLES = 4  # images compared with and without clamping
_TOLERANCE = 1e-4  # between these images, whose range is 2


class Format(NamedTuple):
    """One kind of file."""

    write: Callable[[ModelConfig, dict[str, Tensors]], bytes]  # raises ValueError for networks that it cannot hold
    remarks: Callable[[ModelConfig], list[str]]  # sentences on parts of the networks that the file leaves out
    clamps: bool  # whether the code that reads it clamps activations
    families: tuple[str, ...]


FORMATS = {
    "pkl": Format(pickling.to_bytes, lambda config: [], True, tuple(FAMILIES)),
    "rosinality": Format(rosinality.to_bytes, rosinality.differences, False, ("stylegan2",)),
}


def to_bytes(format: str, config: ModelConfig, tensors: dict[str, Tensors]) -> tuple[bytes, list[str]]:
    """The content of a file with all networks in `tensors`, and remarks for the user, a sentence each.

    Args:
        format: a key of FORMATS.
        config: of the networks.
        tensors: of "generator", "discriminator" and "ema", as far as they are there, by fastgan's names.

    Raises ValueError for networks that the format cannot hold.
    """
    write, remarks, clamps, families = FORMATS[format]
    if config.arch not in families:
        raise ValueError(f"the network is {config.arch}; such a file holds {' and '.join(families)} only")
    if config.tanh:
        raise ValueError("its images go through tanh, which that code does not have; train with --tanh False for it")
    if config.pixel_shuffle:
        raise ValueError(
            "it makes 2x2 pixels at each place, which that code does not have; train with --pixel-shuffle False for it"
        )
    if config.discriminator != "own":
        raise ValueError("its discriminator is projected; such a file holds StyleGAN2's own")
    if not clamps and config.conv_clamp is not None and (difference := _effect_of_clamp(config, tensors)) > _TOLERANCE:
        raise ValueError(
            f"that code does not clamp activations, but this network does, at {config.conv_clamp:g}: without the clamp "
            f"its images differ by {difference:.2g}, in a range of 2"
        )
    return write(config, tensors), remarks(config)


@torch.no_grad()
def _effect_of_clamp(config: ModelConfig, tensors: dict[str, Tensors]) -> float:
    """Largest difference between images compared with and without clamping; infinite if one is NaN."""
    z = torch.randn(_SAMPLES, config.z_dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(_SAMPLES) % config.num_classes if config.num_classes else None
    configs = config, dataclasses.replace(config, conv_clamp=None)
    images = [build("ema", each, tensors["ema"])(z, labels, noise="const") for each in configs]
    return float((images[0] - images[1]).abs().max().nan_to_num(nan=float("inf")))
