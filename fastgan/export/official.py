"""A StyleGAN2 of fastgan as a file of networks that another program draws from and trains on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastgan.errors import UserError
from fastgan.interop import pickling, rosinality
from fastgan.interop.stylegan2 import Tensors, build
from fastgan.models import ModelConfig
from fastgan.runs.drawing import latents
from fastgan.runs.networks import TrainedNetworks

_SEEDS = range(4)  # that are drawn with and without what a layout does not hold
_TOLERANCE = 1e-4  # of a range of 2


class Layout(NamedTuple):
    """One kind of file."""

    write: Callable[[ModelConfig, dict[str, Tensors]], bytes]  # raises ValueError for what it cannot hold
    differences: Callable[[ModelConfig], list[str]]  # what it does not hold of what it can, a sentence each
    holds_clamp: bool  # whether activations are limited there as well


LAYOUTS = {
    "pkl": Layout(pickling.to_bytes, lambda config: [], True),
    "rosinality": Layout(rosinality.to_bytes, rosinality.differences, False),
}


def to_bytes(found: TrainedNetworks, format: str) -> tuple[bytes, list[str]]:
    """The file of all networks there are, and what is to be known of it, a sentence each.

    Raises UserError for networks that the layout cannot hold.
    """
    layout = LAYOUTS[format]
    if found.model.arch != "stylegan2":
        raise UserError(f"--format {format}: {found.path} is {found.model.arch}, and such a file holds stylegan2 only")
    config, tensors = found.everything()
    if not layout.holds_clamp and config.conv_clamp is not None and (apart := _clamped(config, tensors)) > _TOLERANCE:
        raise UserError(
            f"--format {format}: that code does not limit activations, as {found.path} does at {config.conv_clamp:g}; "
            f"images without it are {apart:.2g} of a range of 2 apart"
        )
    try:
        return layout.write(config, tensors), layout.differences(config)
    except ValueError as error:
        raise UserError(f"--format {format}: {found.path}: {error}") from None


@torch.no_grad()
def _clamped(config: ModelConfig, tensors: dict[str, Tensors]) -> float:
    """How far images are apart that are drawn with and without the limit of activations; NaN counts as far."""
    z, labels = latents(_SEEDS, config.z_dim), None
    if config.num_classes:
        labels = torch.tensor(_SEEDS) % config.num_classes
    configs = config, dataclasses.replace(config, conv_clamp=None)
    images = [build("ema", each, tensors["ema"])(z, labels, noise="const") for each in configs]
    return float((images[0] - images[1]).abs().max().nan_to_num(nan=float("inf")))
