"""Checkpoints: one safetensors file with everything a run needs to go on, and no code in it.

Tensors are named by what they belong to: `generator.*`, `critic.*`, `ema.*` (the averaged generator),
`optimizer_g.<parameter>.<moment>`, `optimizer_d...`, `statistics.*` (what regularisation keeps count of). Random
numbers follow from seed and step. The header's one entry `fastgan` is JSON: format, versions, configuration, network,
progress and data.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastgan import __version__, models
from fastgan.data import ImageDataset
from fastgan.data.urls import local
from fastgan.errors import UserError
from fastgan.models.growing import Growing
from fastgan.training.config import Config, from_dict, to_dict
from fastgan.training.files import link, write_atomically

FORMAT = 4
FILE_NAME = "checkpoint.safetensors"
BEST_FILE_NAME = "checkpoint-best.safetensors"  # by the first of --metrics
NETWORKS = ("generator", "critic", "ema")


@dataclass
class State:
    """Everything that changes while training. `ema` is the averaged generator, `statistics` holds what regularisation
    keeps count of, `step` and `images` count finished steps and the real images shown in them, and `stage` is what
    networks that grow are at: resolution and alpha."""

    generator: nn.Module
    critic: nn.Module
    ema: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    statistics: nn.Module
    step: int = 0
    images: int = 0
    stage: tuple[int, float] | None = None

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "critic": self.critic, "ema": self.ema, "statistics": self.statistics}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        return {
            "optimizer_g": (self.optimizer_g, self.generator),
            "optimizer_d": (self.optimizer_d, self.critic),
        }


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself, read without its tensors."""

    path: Path
    config: Config
    model: models.ModelConfig
    step: int
    images: int
    stage: tuple[int, float] | None
    dataset: dict[str, Any]  # {"images": int, "class_names": list[str], "digests": those of the ImageDataset}
    tensors: int  # how many there are


def save(path: Path, state: State, config: Config, model: models.ModelConfig, dataset: dict[str, Any]) -> None:
    """Write `state` to `path`, atomically. If that fails, raises UserError and leaves the old file as it was."""
    tensors = _tensors(state)
    header = {
        "format": FORMAT,
        "versions": {"fastgan": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "config": to_dict(config),
        "model": asdict(model),
        "step": state.step,
        "images": state.images,
        "stage": state.stage,
        "dataset": dataset,
        "tensors": len(tensors),
    }
    write_atomically(path, to_bytes(tensors, {"fastgan": json.dumps(header)}))


def keep(path: Path, images: int, count: int) -> None:
    """Keep the checkpoint at `path`, of so many images, and the `count` - 1 newest before it, by names of their own.

    What is newer is of a course of the training that was left, and goes as well. Raises UserError if it cannot.
    """
    names = _kept(path) | {images: path.with_name(f"{path.stem}-{images:09d}{path.suffix}")}
    stays = sorted(number for number in names if number <= images)[-count:] if count > 1 else []
    try:
        if stays:
            link(path, names[images])
        for number in names.keys() - set(stays):
            names[number].unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep {names[images]}: {error.strerror or error}; make room in {path.parent}"
        ) from error


def forget_kept(path: Path) -> None:
    """Remove what `keep` has kept beside `path`."""
    for kept in _kept(path).values():
        kept.unlink(missing_ok=True)


def _kept(path: Path) -> dict[int, Path]:
    """The checkpoints kept beside `path`, by the number of images."""
    files = {file.stem.removeprefix(f"{path.stem}-"): file for file in path.parent.glob(f"{path.stem}-*{path.suffix}")}
    return {int(number): file for number, file in files.items() if number.isdigit()}


def read_header(path: str | Path) -> Header:
    """The header of a checkpoint file, or of the checkpoint in a run's folder; here or at a URL.

    Raises UserError, naming the file, if there is none, or it is damaged or something else.
    """
    path = local(path, FILE_NAME)
    if path.is_dir():
        if not (path / FILE_NAME).exists():
            raise UserError(f"{path} holds no {FILE_NAME}: not the folder of a run, or stopped before its first save")
        path = path / FILE_NAME
    if not path.exists():
        raise UserError(f"{path}: there is no such checkpoint; give a run's folder or its {FILE_NAME}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no checkpoint, or a truncated one: {error}") from None
    if "fastgan" not in metadata:
        raise UserError(f"{path} is a safetensors file, but was not written by fastgan.train")
    try:
        content = json.loads(metadata["fastgan"])
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}; this fastgan ({__version__}) reads {FORMAT}")
        config = from_dict(content["config"])
        model = models.ModelConfig(**content["model"])
        stage = None if content["stage"] is None else tuple(content["stage"])
        progress = content["step"], content["images"], stage
        return Header(path, config, model, *progress, content["dataset"], content["tensors"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was written by another version of fastgan: {error!r}") from None


def restore(header: Header, state: State) -> None:
    """Put the tensors of a checkpoint into `state`, in place.

    Raises UserError, naming the file and a tensor, if the networks do not fit.
    """
    tensors = _read(header.path, "")
    for name, module in state.modules().items():
        _load_module(header.path, module, name, tensors)
    if len(tensors) != header.tensors:
        raise UserError(f"{header.path} is incomplete: it has {len(tensors)} of the {header.tensors} tensors saved")
    for name, (optimizer, module) in state.optimizers().items():
        _load_optimizer(optimizer, module, name, tensors)
    state.step, state.images, state.stage = header.step, header.images, header.stage
    for network in (state.generator, state.critic, state.ema):
        _grow(network, header)


def read_networks(header: Header) -> dict[str, Tensor]:
    """The tensors of generator, critic and average, all that networks of `header.model` have.

    Raises UserError, naming the file, if it cannot be read, or lacks some.
    """
    tensors = {name: value for prefix in NETWORKS for name, value in _read(header.path, prefix + ".").items()}
    try:
        with torch.device("meta"):
            generator, critic = models.build(header.model)
    except ValueError as error:
        raise UserError(f"{header.path}: {error}") from None
    for name, module in (("generator", generator), ("critic", critic), ("ema", generator)):
        _saved(header.path, module, name, tensors)
    return tensors


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, Config]:
    """The averaged generator of a run, in eval mode, without gradients, and the configuration it was trained with.

    `path` is a run's folder or a checkpoint file. `generator(z, label)` maps z [N, z_dim] and label [N] int64 (None for
    a network without classes) to images [N, C, H, W] in [-1, 1]. Raises UserError, naming the file, if it cannot load.
    """
    header = read_header(path)
    generator, _ = models.build(header.model)
    _load_module(header.path, generator, "ema", _read(header.path, "ema."))
    _grow(generator, header)
    generator = generator.to(device=device, memory_format=torch.channels_last)
    return generator.eval().requires_grad_(False), header.config


def difference(dataset: ImageDataset, saved: dict[str, Any]) -> str | None:
    """What a data set has that the one a checkpoint was trained on had not; None if they are the same."""
    if dataset.class_names != saved["class_names"]:
        return f"has classes {dataset.class_names}, not {saved['class_names']}"
    if len(dataset) != saved["images"]:
        return f"has {len(dataset):,} images, not {saved['images']:,}"
    if dataset.digests["images"] != saved["digests"]["images"]:
        return "has as many images, but other ones, or in another order"
    if dataset.digests["labels"] != saved["digests"]["labels"]:
        return "has the same images, but with other labels"
    return None


def _grow(network: nn.Module, header: Header) -> None:
    """To where it was when it was saved."""
    if isinstance(network, Growing):
        network.grown_from = header.config.growth.grow_from or header.model.resolution
    if header.stage is not None:
        network.grow_to(*header.stage)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {}
    for prefix, module in state.modules().items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}.{name}"] = value
    for prefix, (optimizer, module) in state.optimizers().items():
        for name, parameter in module.named_parameters():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{prefix}.{name}.{moment}"] = value
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


@torch.no_grad()
def _load_module(path: Path, module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    saved = _saved(path, module, prefix, tensors)
    for name, value in module.state_dict().items():  # aliases: copying into them keeps device and memory format
        value.copy_(saved[name])


def _saved(path: Path, module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of `tensors` that are called `prefix`, by the module's names. Raises UserError if they are not its own."""
    own = module.state_dict()
    saved = {name.removeprefix(prefix + "."): tensors[name] for name in tensors if name.startswith(prefix + ".")}
    wrong = sorted(
        name
        for name in own.keys() | saved.keys()
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    )
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{path} does not fit this network: tensor {prefix}.{wrong[0]}{more} missing, unknown or of another shape"
        )
    return saved


def _load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str, tensors: dict[str, Tensor]
) -> None:
    states = {}
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    for index, (name, parameter) in enumerate(trained):  # as the optimizer counts them
        start = f"{prefix}.{name}."
        moments = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        moments = {key: value for key, value in moments.items() if "." not in key}  # not those of a.b for a
        for key, value in moments.items():
            if key != "step":  # saved contiguous, but moments must have their parameter's memory format
                moments[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        if moments:
            states[index] = moments
    content = optimizer.state_dict()
    content["state"] = states
    optimizer.load_state_dict(content)
