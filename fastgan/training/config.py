"""All options of a training as one typed configuration, which tyro turns into the command line.

Defaults that depend on architecture and resolution are "auto" here and stand in `recipe`. Imports no torch: `--help` is
quick.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from fastgan.errors import UserError

LARGEST_SEED = 2**64 - 1  # of torch's random number generators

Architecture = Literal["stylegan2", "dcgan"]
Auto = Literal["auto"]


def recipe(arch: str, resolution: int) -> dict[str, Any]:
    """What "auto" stands for, by option name.

    From 128 pixels on, StyleGAN2's numbers are those of Karras et al. 2020 and of its successor StyleGAN2-ADA. Below,
    they are for a training of minutes instead of weeks, found by trial on glyphs: a narrow network that sees more
    images in the same time, larger steps, and a mapping network that moves at all within a few thousand of them.
    DCGAN's are those of Radford et al. 2016, narrower below 64 pixels.
    """
    if arch == "dcgan":
        return {
            "z_dim": 100, "channel_base": 32 * resolution, "channel_max": 1024 if resolution >= 64 else 256,
            "mapping_layers": 0, "mapping_lr": 1.0, "lr_g": 0.0002, "lr_d": 0.0002, "betas": (0.5, 0.999),
            "r1_gamma": 0.0, "r1_interval": 1, "style_mixing": 0.0,
        }  # fmt: skip
    if resolution >= 128:
        return {
            "z_dim": 512, "channel_base": 16384 if resolution < 512 else 32768, "channel_max": 512,
            "mapping_layers": 8, "mapping_lr": 0.01, "lr_g": 0.002, "lr_d": 0.002, "betas": (0.0, 0.99),
            "r1_gamma": 0.0002 * resolution**2 / 32, "r1_interval": 16, "style_mixing": 0.9,
        }  # fmt: skip
    return {
        "z_dim": 128, "channel_base": 512 if resolution <= 32 else 2048, "channel_max": 128,
        "mapping_layers": 2, "mapping_lr": 0.1, "lr_g": 0.005, "lr_d": 0.005, "betas": (0.0, 0.99),
        "r1_gamma": 1.0, "r1_interval": 8, "style_mixing": 0.9,
    }  # fmt: skip


@dataclass(frozen=True)
class NetworkOptions:
    """The pair of networks: a generator that draws, a critic that tells drawn from real."""

    arch: Architecture = "stylegan2"
    """Architecture. stylegan2: best images; dcgan: simple and quick."""
    z_dim: int | Auto = "auto"
    """Size of the random vector an image is drawn from."""
    channel_base: int | Auto = "auto"
    """Width of the networks: channel_base / r feature maps at resolution r ..."""
    channel_max: int | Auto = "auto"
    """... and never more than this."""
    mapping_layers: int | Auto = "auto"
    """Depth of stylegan2's mapping network."""
    mapping_lr: float | Auto = "auto"
    """How much slower than the rest the mapping network learns."""


@dataclass(frozen=True)
class DataOptions:
    """The images to learn from."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="glyphs|emoji|DIR|ZIP")] = "glyphs"
    """glyphs: characters drawn on the spot. emoji: colour pictures (extra "emoji").
    DIR, ZIP: your images, sub-folders or dataset.json being their classes."""
    resolution: int = 32
    """Side of the square images in pixels, a power of two."""
    channels: int = 1
    """1 for grey images, 3 for colour."""
    classes: int | Auto = "auto"
    """For glyphs: 10 (digits, the default), 26 (capitals) or 62 (both cases and digits). Folders and zips bring
    their own."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to learn. "auto" is what suits the architecture."""

    images: int = 50_000
    """Length of the training: how many real images are shown to the critic, all in all."""
    batch: int = 32
    """Images a step."""
    lr_g: float | Auto = "auto"
    """Learning rate of the generator. auto: 0.005 for a small stylegan2, 0.002 from 128 pixels on; 0.0002 for
    dcgan."""
    lr_d: float | Auto = "auto"
    """Learning rate of the critic. auto: as the generator's."""
    betas: tuple[float, float] | Auto = "auto"
    """Adam's two averaging factors. auto: 0 0.99 for stylegan2, 0.5 0.999 for dcgan."""
    loss: Literal["nonsaturating"] = "nonsaturating"
    """What generator and critic compete for."""
    r1_gamma: float | Auto = "auto"
    """Strength of the R1 gradient penalty, which keeps the critic smooth; 0 switches it off. auto: 1 for a small
    stylegan2, 0.0002 * resolution^2 / 32 from 128 pixels on; 0 for dcgan. More resolution wants more."""
    r1_interval: int | Auto = "auto"
    """Apply R1 every so many steps, that much stronger. auto: 8 for a small stylegan2, 16 from 128 pixels on."""
    ema_halflife: float = 10.0
    """Images are drawn by a running average of the generator; its half-life in thousands of images shown."""
    ema_rampup: float = 0.05
    """Early on the half-life is at most this share of the images shown so far; 0 for no such limit."""
    style_mixing: float | Auto = "auto"
    """Share of images drawn with two latents, swapped at a random layer. auto: 0.9 for stylegan2."""


@dataclass(frozen=True)
class MachineOptions:
    """Where and how to compute."""

    amp: bool = False
    """Compute in bf16 where the device is faster so, else in fp32; says which."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""
    threads: int = 0
    """CPU threads; 0: OMP_NUM_THREADS, or one a physical core."""
    seed: int = 0
    """Everything random follows from it: the same seed on the same CPU and threads gives the same weights."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where. Intervals are in images; 0 means only at the end."""

    out: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/ARCH-DATA-NNN)")] = None
    """Folder of this run."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN|FILE", help_behavior_hint="")] = None
    """Go on with the run in this folder, with its options, as if it had never stopped; --images N to train longer."""
    checkpoint_interval: int = 10_000
    """Save everything, to resume from."""
    grid_interval: int = 10_000
    """Write a picture: real images above, generated ones by class below."""
    log_interval: int = 1_000
    """Write losses and speed to log.jsonl and TensorBoard."""
    tensorboard: bool = True
    """Write a TensorBoard log (tensorboard --logdir runs)."""


@dataclass(frozen=True)
class Config:
    """Train a GAN.

    With no option at all: a small StyleGAN2 learns 32x32 pictures of the ten digits, in minutes on a CPU. Ctrl-C ends
    after the current step and saves (exit status 130); --resume goes on from there.
    """

    network: NetworkOptions = field(default_factory=NetworkOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def steps(self) -> int:
        """Optimizer steps in all: `images` in batches, the last one full as well."""
        return -(-self.training.images // self.training.batch)


# Changing these would make another network, or break the order of the data, in the middle of a run.
FIXED_ON_RESUME = frozenset(vars(NetworkOptions())) | {"resolution", "channels", "classes", "batch", "seed"}


def parse(argv: list[str] | None, default: Config | None = None) -> Config:
    """The configuration that the command line `argv` (None: this process's) asks for, over `default`.

    Prints help, or what is wrong with an option, and raises SystemExit as argparse does.
    """
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[Config],
        prog="python -m fastgan.train",
        args=argv,
        default=default or Config(),
    )


def resolve(config: Config) -> Config:
    """The same configuration with every "auto" that depends on the architecture replaced, checked.

    Raises UserError, naming the option, for a value out of range or for options that contradict each other.
    """
    network, training, data, output = config.network, config.training, config.data, config.output
    _require(
        data.resolution >= 8 and data.resolution & (data.resolution - 1) == 0,
        "resolution",
        data.resolution,
        "a power of two, at least 8",
    )
    auto = recipe(network.arch, data.resolution)
    if training.style_mixing not in ("auto", 0, 0.0) and not auto["style_mixing"]:
        raise UserError(
            f"--style-mixing {training.style_mixing}: {config.network.arch} has no styles to mix; leave it out"
        )
    if data.source != "glyphs" and data.classes != "auto":
        raise UserError(f"--classes {data.classes}: {data.source} brings its own classes; leave it out")

    network, training = (
        dataclasses.replace(group, **{name: auto[name] for name, value in vars(group).items() if value == "auto"})
        for group in (network, training)
    )
    if data.source == "glyphs" and data.classes == "auto":
        data = dataclasses.replace(data, classes=10)

    _require(data.channels in (1, 3), "channels", data.channels, "1 (grey) or 3 (colour)")
    for name in ("z_dim", "channel_base", "channel_max"):
        _require(getattr(network, name) > 0, name, getattr(network, name), "at least 1")
    _require(network.mapping_layers >= 0, "mapping_layers", network.mapping_layers, "at least 0")
    _require(network.mapping_lr > 0, "mapping_lr", network.mapping_lr, "more than 0")
    for name in ("images", "batch", "r1_interval"):
        _require(getattr(training, name) > 0, name, getattr(training, name), "at least 1")
    for name in ("lr_g", "lr_d"):
        _require(getattr(training, name) > 0, name, getattr(training, name), "more than 0")
    _require(all(0 <= beta < 1 for beta in training.betas), "betas", training.betas, "two numbers from 0 to below 1")
    for name in ("r1_gamma", "ema_halflife", "ema_rampup"):
        _require(getattr(training, name) >= 0, name, getattr(training, name), "at least 0")
    _require(0 <= training.style_mixing <= 1, "style_mixing", training.style_mixing, "from 0 to 1")
    grouped = network.arch != "stylegan2" or training.batch < 4 or training.batch % 4 == 0
    _require(grouped, "batch", training.batch, "a multiple of 4 for stylegan2, whose critic compares groups of 4")
    _require(config.machine.threads >= 0, "threads", config.machine.threads, "at least 0")
    _require(0 <= config.machine.seed <= LARGEST_SEED, "seed", config.machine.seed, f"from 0 to {LARGEST_SEED}")
    for name in ("checkpoint_interval", "grid_interval", "log_interval"):
        _require(getattr(output, name) >= 0, name, getattr(output, name), "at least 0")
    return dataclasses.replace(config, network=network, training=training, data=data)


def changes(saved: Config, given: Config) -> dict[str, tuple[Any, Any]]:
    """Option name to (saved value, given value), for every option that differs; `out` and `resume` aside."""
    before, after = options(saved), options(given)
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in ("out", "resume")
    }


def options(config: Config) -> dict[str, Any]:
    """All options flat, by the name they have on the command line but with underscores."""
    flat = {}
    for group in dataclasses.fields(config):
        for name, value in vars(getattr(config, group.name)).items():
            flat["data" if name == "source" else name] = value
    return flat


def flag(name: str) -> str:
    """`r1_gamma` as it is written on the command line: `--r1-gamma`."""
    return "--" + name.replace("_", "-")


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """As plain dictionaries, for JSON."""
    return dataclasses.asdict(config)


def from_dict(content: dict[str, dict[str, Any]]) -> Config:
    """The inverse of `to_dict`, also after JSON has made lists of tuples. Raises UserError for unknown options."""
    groups = {each.name: each.default_factory for each in dataclasses.fields(Config)}
    try:
        return Config(
            **{
                group: groups[group](
                    **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
                )
                for group, values in content.items()
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the saved configuration has an option this version does not know: {error}") from None


def _require(condition: bool, name: str, value: Any, right: str) -> None:
    if not condition:
        raise UserError(f"{flag(name)} {value}: must be {right}")
