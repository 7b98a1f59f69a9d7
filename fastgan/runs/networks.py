"""Trained networks in files of fastgan, of the official code or of rosinality's, recognised by content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.data import hub
from fastgan.data.urls import local_path
from fastgan.errors import UserError
from fastgan.interop import official, rosinality, writing
from fastgan.models import ModelConfig
from fastgan.runs import checkpoint, drawing

_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_LONGEST_HEADER = 100_000_000  # of a safetensors file; its library allows no more


class TrainedNetworks(NamedTuple):
    """A file of networks whose weights are loaded on demand.

    Attributes:
        path: of the file.
        model: configuration of the EMA generator.
        class_names: of labels 0, 1, ...; empty for a network without classes.
        load: returns the EMA generator on a device, in eval mode and without gradients.
        load_state_dicts: returns the configuration of all networks, and the state dict of each that the file has, of
            "generator", "discriminator" and "ema". Raises UserError if one cannot be converted.
        header: of a checkpoint of fastgan; None for a file of another program.
        with_generator: content and name's ending of a file like this one, with the weights of another EMA generator of
            the same shapes; of fastgan the EMA alone. Raises UserError if such a file cannot hold them.
    """

    path: Path
    model: ModelConfig
    class_names: list[str]
    load: Callable[[torch.device], nn.Module]
    load_state_dicts: Callable[[], tuple[ModelConfig, dict[str, dict[str, Tensor]]]]
    header: checkpoint.Header | None
    with_generator: Callable[[nn.Module], tuple[bytes, str]]


def open_networks(path: str | Path, ema: float | None = None) -> TrainedNetworks:
    """Open a run's folder, a checkpoint, an example, a pickle of the official code or a file of rosinality's.

    The kind is recognised by content, not by name. ema: half-life of the EMA, in thousands of images, if a training
    kept several; None for the first. Raises UserError, naming the file, if it cannot be read or has no such EMA.
    """
    given, path = str(path), local_path(path, checkpoint.FILE_NAME)
    if path.is_dir() or not path.exists() or _is_safetensors(start := _start(path)):
        return _from_fastgan(checkpoint.read_header(path), ema)
    if hub.is_hub(given):  # no pickles from there
        raise UserError(f"{given}: its {checkpoint.FILE_NAME} is no safetensors file")
    if ema is not None:
        raise UserError(f"--ema {ema:g}: {path} does not name the half-life of its EMA; leave it out")
    if rosinality.is_torch_file(start):
        return _from_others(path, rosinality.read(path), "rosinality", ".pt")
    if start.startswith(_PICKLES):
        return _from_others(path, official.read_official(path), "pkl", ".pkl")
    raise UserError(
        f"{path} is no checkpoint, or a truncated one: it does not begin as those of fastgan (.safetensors), of the "
        "official code (.pkl) or of rosinality's (.pt) do"
    )


def _start(path: Path) -> bytes:
    """First bytes of a file."""
    if not path.is_file():  # reading a pipe would block
        raise UserError(f"{path} is neither a folder nor a regular file; give a run's folder or a checkpoint")
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _from_fastgan(header: checkpoint.Header, ema: float | None) -> TrainedNetworks:
    checkpoint.ema_prefix(header, ema)  # raises if there is none

    def load_state_dicts():
        networks = {}
        for name, value in checkpoint.read_networks(header, ema).items():
            network, _, tensor = name.partition(".")
            networks.setdefault(network, {})[tensor] = value
        return header.model, networks

    names = header.dataset["class_names"] if header.model.num_classes else []
    load = lambda device: drawing.trained(checkpoint.load_generator(header.path, device, ema)[0], header.model)
    with_generator = lambda generator: (checkpoint.with_generator(header, generator.state_dict(), ema), ".safetensors")
    return TrainedNetworks(header.path, header.model, names, load, load_state_dicts, header, with_generator)


def _from_others(path: Path, networks: official.Networks, format: str, suffix: str) -> TrainedNetworks:
    model = networks.config
    names = [str(label) for label in range(model.num_classes)]

    def load(device: torch.device) -> nn.Module:
        return drawing.trained(official.build("ema", model, networks.ema, device).requires_grad_(False), model)

    def with_generator(generator: nn.Module) -> tuple[bytes, str]:
        config, tensors = networks.load_state_dicts()
        own = {name: value.detach().cpu() for name, value in generator.state_dict().items()}
        try:
            return writing.to_bytes(format, config, {**tensors, "ema": own})[0], suffix
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    return TrainedNetworks(path, model, names, load, networks.load_state_dicts, None, with_generator)
