"""Networks that have been trained, here or by another program: which file is what, and what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.data.urls import local_path
from fastgan.errors import UserError
from fastgan.interop import rosinality, stylegan2
from fastgan.models import ModelConfig
from fastgan.runs import checkpoint

_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_LONGEST_HEADER = 100_000_000  # of a safetensors file, by its library


class TrainedNetworks(NamedTuple):
    """What is known before weights are put into networks.

    Attributes:
        path: of the file.
        model: what determines the shape of the averaged generator.
        class_names: of the labels 0, 1, ...; empty for a network without classes.
        load: gives the averaged generator on a device, in eval mode, without gradients.
        everything: gives the configuration of all networks, and of those that are there ("generator", "discriminator",
            "ema") the tensors by fastgan's names. Raises UserError if one of them cannot be had.
        header: of a checkpoint of fastgan; None for a file of another program.
    """

    path: Path
    model: ModelConfig
    class_names: list[str]
    load: Callable[[torch.device], nn.Module]
    everything: Callable[[], tuple[ModelConfig, dict[str, dict[str, Tensor]]]]
    header: checkpoint.Header | None


def open_networks(path: str | Path) -> TrainedNetworks:
    """What is in a run's folder, a checkpoint file, a pickle of the official StyleGAN2, or a file of rosinality's.

    It goes by the content of the file, not by its name. Raises UserError, naming the file, if it cannot be read.
    """
    path = local_path(path, checkpoint.FILE_NAME)
    if path.is_dir() or not path.exists() or _is_safetensors(start := _start(path)):
        return _of_fastgan(checkpoint.read_header(path))
    if rosinality.is_torch_file(start):
        return _of_others(path, rosinality.read(path))
    if start.startswith(_PICKLES):
        return _of_others(path, stylegan2.read_stylegan2(path))
    raise UserError(
        f"{path} is no checkpoint, or a truncated one: it does not begin as those of fastgan (.safetensors), of the "
        "official StyleGAN2 (.pkl) or of rosinality's (.pt) do"
    )


def _start(path: Path) -> bytes:
    """The first bytes of a file."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is neither a folder nor a regular file; give a run's folder or a checkpoint")
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _of_fastgan(header: checkpoint.Header) -> TrainedNetworks:
    def everything():
        networks = {name: {} for name in checkpoint.NETWORKS}
        for name, value in checkpoint.read_networks(header).items():
            network, _, tensor = name.partition(".")
            networks[network][tensor] = value
        return header.model, networks

    names = header.dataset["class_names"] if header.model.num_classes else []
    load = lambda device: checkpoint.load_generator(header.path, device)[0]
    return TrainedNetworks(header.path, header.model, names, load, everything, header)


def _of_others(path: Path, networks: stylegan2.Networks) -> TrainedNetworks:
    model = networks.config
    names = [str(label) for label in range(model.num_classes)]
    load = lambda device: stylegan2.build("ema", model, networks.ema, device).requires_grad_(False)
    return TrainedNetworks(path, model, names, load, networks.everything, None)
