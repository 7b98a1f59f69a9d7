"""Generators that have been trained, here or by the official StyleGAN2 code: what is known before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fastgan.interop import stylegan2
from fastgan.models import ModelConfig
from fastgan.training import checkpoint


class Trained(NamedTuple):
    """path: of the file. load: the averaged generator on a device, in eval mode, without gradients.

    class_names: of the labels 0, 1, ...; empty for a network without classes.
    """

    path: Path
    model: ModelConfig
    class_names: list[str]
    load: Callable[[torch.device], nn.Module]


def find(path: str | Path) -> Trained:
    """What is in a run's folder, a checkpoint file, or a .pkl file of the official StyleGAN2.

    Raises UserError, naming the file, if it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        model, networks = stylegan2.read_stylegan2(path)
        names = [str(label) for label in range(model.num_classes)]
        return Trained(path, model, names, lambda device: stylegan2.build("ema", model, networks["ema"], device))
    header = checkpoint.read_header(path)
    names = header.dataset["class_names"] if header.model.num_classes else []
    return Trained(header.path, header.model, names, lambda device: checkpoint.load_generator(header.path, device)[0])
