"""Checkpoints: one safetensors file, without code, with everything that resuming a run needs.

Tensors are named `generator.*`, `discriminator.*`, `ema.*` (EMA of the generator), `other_emas.<number>.*` (EMAs of
further half-lives), `optimizer_g.<parameter>.<moment>`, `optimizer_d...` and `statistics.*` (of regularisation). There
is no RNG state: random numbers follow from seed and step. The header's one entry, `fastgan`, is JSON: format, versions,
configuration, model, progress, data, a digest of each tensor, and one of all these. Everything that is read is compared
with its digest. (safetensors would write several entries in random order.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

from fastgan import models
from fastgan.data import ImageDataset
from fastgan.data.urls import has_scheme, local_path
from fastgan.errors import UserError, readable
from fastgan.files import copy, write_atomically
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.models.spectral_norm import merge_spectral_norm
from fastgan.options import from_json
from fastgan.runs.config import Config, check_values, pyramid, to_dict, unresolved
from fastgan.version import __version__

FORMAT = 14  # raise it if the header gets other fields or tensors other names
FILE_NAME = "checkpoint.safetensors"
BEST_FILE_NAME = "checkpoint-best.safetensors"  # best by the first of --metrics
_MOMENTS = {torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"), torch.optim.RMSprop: ("step", "square_avg")}
NETWORKS = ("generator", "discriminator", "ema")
_MOST_WHOLE = 3  # checkpoints beside a damaged one that its message names


class DamagedCheckpoint(UserError):
    """Raised for a checkpoint that cannot be read, or differs from what was saved, if there are others beside it.

    whole: those of a run's checkpoints beside it whose digests are right, the newest first.
    """

    def __init__(self, message: str, whole: list[Path]):
        super().__init__(f"{message}; whole {'are' if whole[1:] else 'is'} {', '.join(map(str, whole))}")
        self.whole = whole


class _Replaced(UserError):
    """Raised if a training has saved a new checkpoint between the reading of header and tensors."""


@dataclass
class State:
    """Everything that changes during training.

    ema: EMA of the generator. statistics: of regularisation and gradient guards. other_emas: EMAs of further
    half-lives. step, images: number of finished steps and of real images shown in them. seconds: time used, of a
    training with --minutes. stage: resolution and alpha of growing networks.
    """

    generator: nn.Module
    discriminator: nn.Module
    ema: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    statistics: nn.Module
    other_emas: nn.ModuleList = field(default_factory=nn.ModuleList)
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    stage: tuple[int, float] | None = None

    def modules(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "other_emas": self.other_emas,
            "statistics": self.statistics,
        }

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Generator, discriminator and all EMAs."""
        return self.generator, self.discriminator, self.ema, *self.other_emas

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        return {
            "optimizer_g": (self.optimizer_g, self.generator),
            "optimizer_d": (self.optimizer_d, self.discriminator),
        }


class DatasetSummary(TypedDict):
    """Data set of a training. digests: of its `ImageDataset`."""

    images: int
    class_names: list[str]
    digests: dict[str, str]


@dataclass(frozen=True)
class _Content:
    """JSON of the header, with the types it is validated by."""

    format: int
    versions: dict[str, str]
    config: Config
    model: models.ModelConfig
    step: int
    images: int
    seconds: float
    stage: tuple[int, float] | None
    dataset: DatasetSummary
    digests: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Header:
    """Validated header of a checkpoint, read without its tensors.

    digests: of each tensor, by name. digest: of the whole, header and tensors.
    """

    path: Path
    config: Config
    model: models.ModelConfig
    step: int
    images: int
    seconds: float
    stage: tuple[int, float] | None
    dataset: DatasetSummary
    digests: dict[str, str]
    digest: str


def save(path: Path, state: State, config: Config, model: models.ModelConfig, dataset: DatasetSummary) -> None:
    """Write `state` to `path`, atomically. Raises UserError if that fails; the old file then stays."""
    content = {
        "format": FORMAT,
        "versions": {"fastgan": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "config": to_dict(config),
        "model": asdict(model),
        "step": state.step,
        "images": state.images,
        "seconds": state.seconds,
        "stage": state.stage,
        "dataset": dataset,
    }
    write_atomically(path, to_bytes(_tensors(state), content))


def to_bytes(tensors: dict[str, Tensor], content: dict[str, Any]) -> bytes:
    """A checkpoint's file: contiguous `tensors`, and a header of `content` with their digests."""
    digests = {name: _tensor_digest(value) for name, value in tensors.items()}
    return to_safetensors(tensors, metadata(content | {"digests": digests}))


def metadata(content: dict[str, Any]) -> dict[str, str]:
    """Entry of a file's header: `content` and its digest, as JSON."""
    return {"fastgan": json.dumps(content | {"digest": _content_digest(content)})}


def _content_digest(content: dict[str, Any]) -> str:
    """SHA-256 of a header's fields, in hex, the digest itself left out."""
    text = json.dumps({name: value for name, value in content.items() if name != "digest"})
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    """Digest of dtype, shape and numbers, 64 bits in hex: against accidents. SHA-256 is the quickest in hashlib."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def keep_newest(path: Path, images: int, count: int) -> None:
    """Keep the `count` newest checkpoints: that at `path`, of `images` images, and older ones, named by their images.

    Checkpoints of more images are removed: they belong to a continuation that was given up. Raises UserError if files
    cannot be copied or removed.
    """
    names = _numbered(path) | {images: path.with_name(f"{path.stem}-{images:09d}{path.suffix}")}
    stays = sorted(number for number in names if number <= images)[-count:] if count > 1 else []
    try:
        if stays:
            copy(path, names[images])
        for number in names.keys() - set(stays):
            names[number].unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep {names[images]}: {error.strerror or error}; make room in {path.parent}"
        ) from error


def remove_older(path: Path) -> None:
    """Remove the checkpoints that `keep_newest` has kept beside `path`."""
    for older in _numbered(path).values():
        older.unlink(missing_ok=True)


def _numbered(path: Path) -> dict[int, Path]:
    """Checkpoints kept beside `path`, by their number of images."""
    name = re.compile(rf"{re.escape(path.stem)}-([0-9]+){re.escape(path.suffix)}")
    files = [(name.fullmatch(file.name), file) for file in path.parent.glob(f"{path.stem}-*{path.suffix}")]
    return {int(match[1]): file for match, file in files if match}


def read_header(path: str | Path) -> Header:
    """Read and validate the header of a checkpoint file or of a run's folder; a path or a URL.

    Raises UserError, naming the file, if it is missing, damaged, or no checkpoint of this format.
    """
    path = local_path(path, FILE_NAME)
    if path.is_dir():
        if not (path / FILE_NAME).exists():
            raise UserError(f"{path} holds no {FILE_NAME}: not the folder of a run, or stopped before its first save")
        path = path / FILE_NAME
    if not path.exists():
        raise UserError(f"{path}: there is no such checkpoint; give a run's folder or its {FILE_NAME}")
    if not path.is_file():  # reading a pipe would block
        raise UserError(f"{path} is not a regular file; give a run's folder or its {FILE_NAME}")
    with _whole_ones_named(path):
        return _read_header(path)


def _read_header(path: Path) -> Header:
    try:
        open(path, "rb").close()  # safetensors says that a file which must not be read is missing
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no checkpoint, or a truncated one: {error}") from None
    if "fastgan" not in entries:
        raise UserError(f"{path} is a safetensors file, but was not written by fastgan.train")
    try:
        content = json.loads(entries["fastgan"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header is no JSON: {error}") from None
    try:
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise UserError(
                f"has format {readable(content.get('format'))}; this fastgan ({__version__}) reads {FORMAT}"
            )
        found = from_json(_Content, content, "header")
        if found.digest != _content_digest(content):
            raise UserError("is damaged: its header differs from the one that was saved")
        _require_consistent(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    progress = found.step, found.images, found.seconds, found.stage
    return Header(path, found.config, found.model, *progress, found.dataset, found.digests, found.digest)


@contextlib.contextmanager
def _whole_ones_named(path: Path) -> Iterator[None]:
    """Raise DamagedCheckpoint in place of UserError if there are whole checkpoints of the run beside `path`."""
    try:
        yield
    except _Replaced:
        raise
    except UserError as error:
        if whole := _whole_beside(path):
            raise DamagedCheckpoint(str(error), whole) from None
        raise


def _whole_beside(path: Path) -> list[Path]:
    """The newest whole checkpoints of a run's folder, except `path`."""
    last = path.with_name(FILE_NAME)
    headers, whole = [], []
    for file in {last, path.with_name(BEST_FILE_NAME), *_numbered(last).values()} - {path}:
        with contextlib.suppress(UserError):
            headers.append(_read_header(file))
    for header in sorted(headers, key=lambda each: (-each.images, each.path.name)):
        with contextlib.suppress(UserError):
            for _ in _read_each(header, ""):
                pass
            whole.append(header.path)
        if len(whole) == _MOST_WHOLE:
            break
    return whole


def _require_consistent(content: _Content) -> None:
    """Raise UserError, naming the field, for a value out of range or fields that contradict each other."""
    config, model = content.config, content.model
    for name in ("step", "images"):
        if not 0 <= getattr(content, name) < 2**63:
            raise UserError(f"header.{name} is {getattr(content, name)}, must be at least 0, and below 2^63")
    if not 0 <= content.seconds < float("inf"):
        raise UserError(f"header.seconds is {content.seconds}, must be at least 0")
    pairs = [(f"network.{name}", value, name, getattr(model, name)) for name, value in vars(config.network).items()]
    size = pyramid(config.data.resolution)
    pairs += [("data.resolution", config.data.resolution, "resolution", (model.resolution, model.base_size))]
    pairs += [("data.channels", config.data.channels, "channels", model.channels)]
    for option, given, name, own in pairs:
        if (size if name == "resolution" else given) != own:
            raise UserError(f"header.config.{option} is {readable(given)}, but header.model.{name} {readable(own)}")
    if found := unresolved(config):
        raise UserError(f"header.config: {found[0]} is auto, must be a value")
    try:
        check_values(config)
    except UserError as error:
        raise UserError(f"header.config: {error}") from None
    if content.stage is not None:
        resolution, alpha = content.stage
        if resolution not in model.resolutions or not 0 <= alpha <= 1:
            raise UserError(
                f"header.stage is {content.stage}, must be a resolution up to {model.resolution} and 0 to 1"
            )
    if model.num_classes and len(content.dataset["class_names"]) != model.num_classes:
        names = len(content.dataset["class_names"])
        raise UserError(f"header.model.num_classes is {model.num_classes}, but header.dataset.class_names has {names}")


def restore(header: Header, state: State) -> None:
    """Load the tensors of a checkpoint into `state`, in place.

    Raises UserError, naming the file and a tensor, if one is damaged or does not fit the networks.
    """
    tensors = _read(header, "")
    for name, module in state.modules().items():
        _load_module(header.path, module, name, tensors)
    for name, (optimizer, module) in state.optimizers().items():
        _load_optimizer(header.path, optimizer, module, name, tensors)
    state.step, state.images, state.seconds, state.stage = header.step, header.images, header.seconds, header.stage
    for network in state.networks:
        _grow(network, header)


def with_generator(header: Header, generator: dict[str, Tensor], ema: float | None = None) -> bytes:
    """A checkpoint's file with the header of another one, and the EMA generator alone.

    header: read from a file, perhaps with a changed configuration. generator: a state dict. ema: half-life of the EMA
    that it was made of; None for the first.
    """
    with safe_open(header.path, framework="pt") as file:
        content = json.loads(file.metadata()["fastgan"])
    half_life = header.config.training.ema_halflives[0] if ema is None else ema
    training = replace(header.config.training, ema_halflife=half_life)
    content["config"] = to_dict(replace(header.config, training=training))
    return to_bytes({f"ema.{name}": value.detach().cpu().contiguous() for name, value in generator.items()}, content)


def read_networks(header: Header, ema: float | None = None) -> dict[str, Tensor]:
    """Read the tensors of generator, discriminator and EMA, by name; `fastgan.examples` have the EMA alone, in fp16.

    ema: half-life, in thousands of images, of the EMA that is named `ema.*`; None for the first. Raises UserError,
    naming the file, if it cannot be read, has no such EMA, or its tensors do not fit `header.model`.
    """
    saved = dict(zip(NETWORKS, NETWORKS, strict=True)) | {"ema": ema_prefix(header, ema)}
    tensors = {
        name + key.removeprefix(prefix): value
        for name, prefix in saved.items()
        for key, value in _read(header, prefix + ".").items()
    }
    generator, discriminator = _shapes(header)
    modules = {"generator": generator, "discriminator": discriminator, "ema": generator}
    if all(name.startswith("ema.") for name in tensors):
        modules = {"ema": generator}
    for name, module in modules.items():
        _saved(header.path, module, name, tensors)
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}


def load_generator(
    path: str | Path, device: str | torch.device = "cpu", ema: float | None = None
) -> tuple[nn.Module, Config]:
    """EMA generator of a run, in eval mode and without gradients, and the run's configuration.

    path: a run's folder or a checkpoint file. ema: half-life in thousands of images; None for the first.
    `generator(z, label)` maps z [N, z_dim] and label [N] int64 (None for a network without classes) to images
    [N, C, H, W] of range [-1, 1]. Raises UserError, naming the file, if it cannot be loaded or has no such EMA.
    """
    while True:
        header = read_header(path)
        prefix = ema_prefix(header, ema)
        with contextlib.suppress(_Replaced):
            tensors = _read(header, prefix + ".")
            break
    _saved(header.path, _shapes(header)[0], prefix, tensors)  # before memory is taken for a larger network
    generator = models.build_generator(header.model)
    _load_module(header.path, generator, prefix, tensors)
    _grow(generator, header)
    merge_spectral_norm(generator)
    generator = generator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator.eval().requires_grad_(False), header.config


def require_networks(header: Header) -> None:
    """Raise UserError if the file's networks do not have the shapes of `header.model`, before they take memory."""
    generator, discriminator = _shapes(header)
    try:
        with safe_open(header.path, framework="pt") as file:
            there = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{header.path} cannot be read: {error}") from None
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in there.items()}
    for name, module in {"generator": generator, "discriminator": discriminator, "ema": generator}.items():
        _saved(header.path, module, name, tensors)


def ema_prefix(header: Header, half_life: float | None) -> str:
    """Start of the names of an EMA's tensors. Raises UserError, naming the file, if it has none of that half-life."""
    known = header.config.training.ema_halflives
    if half_life is None or half_life == known[0]:
        return "ema"
    if half_life not in known:
        of = f"EMAs of half-lives {', '.join(f'{each:g}' for each in known)}" if known[1:] else f"one EMA, {known[0]:g}"
        raise UserError(f"--ema {half_life:g}: {header.path} has {of}")
    return f"other_emas.{known.index(half_life) - 1}"


def _shapes(header: Header) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the meta device. Raises UserError, naming the file, for impossible sizes."""
    try:
        with torch.device("meta"):
            return models.build(header.model)
    except (ValueError, TypeError, RuntimeError) as error:  # depending on the impossible size
        raise UserError(f"{header.path}: header.model: {readable(str(error).partition(chr(10))[0])}") from None


def require_trusted(header: Header) -> None:
    """Raise UserError if the header names images at a URL: the file may be anyone's, and must not make this machine
    fetch what it names."""
    source = header.config.data.source
    if has_scheme(source):
        url = readable(source, 1000)
        raise UserError(f"{header.path} names images at {url}; if you want them fetched from there, give --data {url}")


def difference(dataset: ImageDataset, saved: DatasetSummary) -> str | None:
    """How a data set differs from the one a checkpoint was trained on, for messages; None if it does not."""
    if dataset.class_names != saved["class_names"]:
        return f"has classes {dataset.class_names}, not {saved['class_names']}"
    if len(dataset) != saved["images"]:
        return f"has {len(dataset):,} images, not {saved['images']:,}"
    if dataset.digests["images"] != saved["digests"].get("images"):
        return "has as many images, but other ones, or in another order"
    if dataset.digests["labels"] != saved["digests"].get("labels"):
        return "has the same images, but with other labels"
    return None


def _grow(network: Any, header: Header) -> None:
    """Grow a network to the stage of the checkpoint."""
    if isinstance(network, ProgressiveGrowing):
        start: Any = header.config.growth.grow_from  # no longer "auto"
        network.grown_from = start or header.model.resolution
    if header.stage is not None:
        network.grow_to(*header.stage)


def named_tensors(state: State) -> dict[str, Tensor]:
    """All tensors that a checkpoint of `state` holds, by name; not copied."""
    tensors = {}
    for prefix, module in state.modules().items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}.{name}"] = value
    for prefix, (optimizer, module) in state.optimizers().items():
        for name, parameter in module.named_parameters():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{prefix}.{name}.{moment}"] = value
    return tensors


def _tensors(state: State) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in named_tensors(state).items()}


def _read(header: Header, prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`. Raises UserError, naming the tensor, if one is not as it was saved."""
    with _whole_ones_named(header.path):
        return dict(_read_each(header, prefix))


def _read_each(header: Header, prefix: str) -> Iterator[tuple[str, Tensor]]:
    damaged = f"{header.path} is damaged: tensor"
    try:
        with safe_open(header.path, framework="pt") as file:
            if header.digest not in (file.metadata() or {}).get("fastgan", ""):
                raise _Replaced(f"{header.path} was replaced while it was read; run the same command again")
            there = set(file.keys())
            for name in sorted(name for name in there | header.digests.keys() if name.startswith(prefix)):
                if name not in there or name not in header.digests:
                    raise UserError(f"{damaged} {readable(name)} is {'missing' if name not in there else 'unknown'}")
                tensor = file.get_tensor(name)
                if _tensor_digest(tensor) != header.digests[name]:
                    raise UserError(f"{damaged} {readable(name)} differs from the one that was saved")
                yield name, tensor
    except (SafetensorError, OSError) as error:
        raise UserError(f"{header.path} cannot be read: {error}") from None


@torch.no_grad()
def _load_module(path: Path, module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    saved = _saved(path, module, prefix, tensors)
    for name, value in module.state_dict().items():  # aliases: copies keep device and memory format
        value.copy_(saved[name])


def _saved(path: Path, module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named `prefix`.*, by the module's names. Raises UserError if names or shapes are not the module's."""
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
    path: Path, optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str, tensors: dict[str, Tensor]
) -> None:
    states = {}
    names = next(names for kind, names in _MOMENTS.items() if isinstance(optimizer, kind))
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    for index, (name, parameter) in enumerate(trained):  # numbered as by the optimizer
        start = f"{prefix}.{name}."
        moments = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        moments = {key: value for key, value in moments.items() if "." not in key}  # for a, skip those of a.b
        shapes = {key: () if key == "step" else parameter.shape for key in names}
        if moments and {key: value.shape for key, value in moments.items()} != shapes:
            raise UserError(f"{path}: {start}* are not the moments that {type(optimizer).__name__} keeps: {names}")
        for key, value in moments.items():
            if key != "step":  # moments need their parameter's memory format; they are saved contiguous
                moments[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        if moments:
            states[index] = moments
    content = optimizer.state_dict()
    content["state"] = states
    optimizer.load_state_dict(content)
