"""The configuration of a run: all options of a training as typed dataclasses, which tyro turns into the command line.

config.json and every checkpoint hold it. Options that depend on architecture, objective or data are "auto" until
`fastgan.training.configure.resolve` replaces them. Imports no torch: `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from fastgan.data.images import parse_size
from fastgan.errors import UserError
from fastgan.options import LARGEST_SEED, Count, PathText, from_json

FILE_NAME = "config.json"
MOST_THREADS = 1024  # with many more OpenMP ends the process

Architecture = Literal["stylegan2", "stylegan", "pggan", "r3gan", "dcgan", "cgan", "mlp"]
Loss = Literal["nonsaturating", "minimax", "least-squares", "hinge", "wgan", "wgan-gp", "relativistic"]
Auto = Literal["auto"]


@dataclass(frozen=True)
class NetworkOptions:
    """The pair of networks: a generator that draws, a discriminator that tells drawn from real."""

    arch: Architecture | Auto = "auto"
    """Architecture. stylegan2: best images; r3gan: a modern baseline; stylegan, pggan: grow from small images to large
    ones; dcgan, cgan, mlp: simple and quick. auto: that of --init-from, else stylegan2."""
    variant: str | Auto = "auto"
    """For dcgan transposed (the paper's, default) or upsample; for cgan conv (default) or mlp."""
    z_dim: int | Auto = "auto"
    """Size of the random vector an image is drawn from."""
    channel_base: int | Auto = "auto"
    """Width of the networks: channel_base / r feature maps at resolution r ..."""
    channel_max: int | Auto = "auto"
    """... and never more than this."""
    mapping_layers: int | Auto = "auto"
    """Depth of the mapping network of stylegan and stylegan2."""
    mapping_lr: float | Auto = "auto"
    """How much slower than the rest the mapping network learns."""
    discriminator_norm: bool | Auto = "auto"
    """Whether the discriminator of dcgan and cgan has batch norm. auto: yes, but not with a gradient penalty."""
    discriminator_mapping_layers: int | Auto = "auto"
    """Dense layers between a label's embedding and what stylegan2's discriminator compares with. auto: 0, as most have;
    StyleGAN2-ADA has 8."""


@dataclass(frozen=True)
class DataOptions:
    """The images to learn from."""

    source: Annotated[PathText, tyro.conf.arg(name="data", metavar="glyphs|emoji|DIR|ZIP|URL")] = "glyphs"
    """glyphs: characters drawn on the spot. emoji: colour pictures (extra "emoji").
    DIR, ZIP: your images, sub-folders or dataset.json being their classes; or what `python -m fastgan.dataset` has
    made of any others, also the shards.json of shards, here or at a URL."""
    resolution: Annotated[int | str, tyro.conf.arg(metavar="N|WxH|auto")] = "auto"
    """Side of square images in pixels, or width and height, which can be halved until 4 to 7 rows or columns are left,
    like 32, 28 or 1024x768. For stylegan and pggan a power of two. auto: that of the images, 32 for glyphs and
    emoji."""
    channels: int | Auto = "auto"
    """1 for grey images, 3 for colour, 4 for colour with transparency. auto: what the images have, 1 for glyphs."""
    classes: int | Auto = "auto"
    """For glyphs: 10 (digits, the default), 26 (capitals) or 62 (both cases and digits). Folders and zips bring
    their own."""
    labels: bool | Auto = "auto"
    """Whether the networks are told the classes, and draw what is asked for. auto: yes for stylegan2, stylegan, r3gan
    and cgan; no for the others, as in their papers."""
    mirror: bool = False
    """Show each image turned left to right with probability 1/2, every time anew: faces and landscapes in twice the
    number. Not for what looks wrong in a mirror: letters and digits are not symmetric."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to learn. "auto" is what suits architecture, objective and resolution; config.json in the run's folder says
    what that was."""

    images: Count | Auto = "auto"
    """Length of the training: how many real images are shown to the discriminator, all in all, like 500k or 25M.
    The option --kimg gives it in thousands."""
    batch: int | Auto = "auto"
    """Images a step, of all processes together."""
    init_from: Annotated[PathText | None, tyro.conf.arg(metavar="RUN|FILE|URL", help_behavior_hint="")] = None
    """Start with these networks instead of new ones: those of a run or a checkpoint, a .pkl file of
    stylegan2-ada-pytorch or stylegan3 (its StyleGAN2), or a .pt of rosinality's; here or at a URL. Sizes are those
    found there, unless given: what fits other sizes, resolutions, classes or colours is taken; the rest is fresh."""
    freeze_d: int = 0
    """With --init-from: so many layers of the discriminator, from the image on, stay as they are, which helps where
    images are few (Mo et al. 2020, FreezeD; 10 or more). Counted as by stylegan2-ada's --freezed: from_rgb, then the
    convolutions of each block; for r3gan a residual block is one."""
    batch_gpu: int = 0
    """Images that go through the networks at once; their gradients are added up to those of --batch, in less memory;
    with 0 all of a process. Batch norm and minibatch stddev see so many images."""
    loss: Loss | Auto = "auto"
    """What generator and discriminator compete for. auto: wgan-gp for pggan, relativistic for r3gan, else
    nonsaturating."""
    discriminator_steps: int | Auto = "auto"
    """Steps of the discriminator for each of the generator. auto: 5 for wgan and wgan-gp (1 in pggan), else 1."""
    optimizer: Literal["adam", "rmsprop"] | Auto = "auto"
    """auto: rmsprop for wgan, else adam."""
    lr_g: float | Auto = "auto"
    """Learning rate of the generator."""
    lr_d: float | Auto = "auto"
    """Learning rate of the discriminator."""
    final_lr: float | Auto = "auto"
    """Share of the learning rates that is left at the end, on a cosine. auto: 0.25 for r3gan, else 1."""
    betas: tuple[float, float] | Auto = "auto"
    """Adam's two averaging factors."""
    final_beta2: float | Auto | None = "auto"
    """The second of them at the end, on a cosine; None: as at the start. auto: 0.99 for r3gan."""
    ema_halflife: float | Auto = "auto"
    """Images are drawn by a running average of the generator; its half-life in thousands of images shown."""
    ema_rampup: float | Auto = "auto"
    """Early on the half-life is at most this share of the images shown so far; 0 for no such limit."""
    style_mixing: float | Auto = "auto"
    """Share of images drawn with two latents, swapped at a random layer. auto: 0.9 for stylegan and stylegan2."""


@dataclass(frozen=True)
class RegularizationOptions:
    """What keeps discriminator and generator well-behaved. 0 switches a term off."""

    r1_gamma: float | Auto = "auto"
    """Strength of the R1 gradient penalty, which keeps the discriminator smooth at real images. More resolution wants
    more."""
    r2_gamma: float | Auto = "auto"
    """The same at generated images."""
    final_gamma: float | Auto = "auto"
    """Share of both that is left at the end, on a cosine. auto: 0.1 for r3gan, else 1."""
    r1_interval: int | Auto = "auto"
    """Apply R1 and R2 every so many steps, that much stronger. auto: 8 for a small stylegan2, 16 from 128 pixels on."""
    gp_lambda: float | Auto = "auto"
    """Strength of the gradient penalty of wgan-gp, between real and generated images. auto: 10 for that loss."""
    drift: float | Auto = "auto"
    """Strength of the square of real images' logits, which keeps them near 0 for a Wasserstein critic. auto: 0.001 for
    pggan."""
    clip: float | Auto = "auto"
    """Limit of the discriminator's weights. auto: 0.01 for wgan."""
    path_length: float | Auto = "auto"
    """Strength of stylegan2's path length penalty. auto: 2 from 128 pixels on."""
    path_interval: int | Auto = "auto"
    """Apply it every so many steps, that much stronger. auto: 4."""
    augment: Literal["none", "ada", "fixed", "ramp"] | Auto = "auto"
    """Show the discriminator altered images, for small data sets: flipped, moved, turned, recoloured. ada: as often as
    its overfitting asks for; fixed: with probability --augment-p; ramp: with one that rises to it on a cosine. auto:
    ramp for r3gan from 64 pixels on."""
    augment_p: float | Auto = "auto"
    """Probability of each alteration, for fixed and ramp."""
    ada_target: float = 0.6
    """For ada: the mean sign of the discriminator's verdicts on real images that counts as no overfitting."""
    ada_kimg: float = 500.0
    """For ada: thousands of images in which the probability can go from 0 to 1."""


@dataclass(frozen=True)
class GrowthOptions:
    """Networks that grow: stylegan and pggan learn small images first, and then ever larger ones."""

    grow_from: int | Auto = "auto"
    """Resolution of the first images; 0: no growth. auto: 4 for pggan, 8 for stylegan, else 0."""
    level_images: Count | Auto = "auto"
    """Images to train each resolution with, before and after it is faded in."""
    fade_images: Count | Auto = "auto"
    """Images to fade each resolution in with."""
    level_batch: tuple[int, ...] | Auto = "auto"
    """Images a step at each resolution, from the first on; empty: --batch."""
    level_lr: tuple[float, ...] | Auto = "auto"
    """Factor of the learning rates at each resolution; empty: 1."""


@dataclass(frozen=True)
class MachineOptions:
    """Where and how to compute."""

    amp: bool = False
    """Compute in bf16 where the device is faster so, else in fp32; says which."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""
    checkpoint_blocks: bool = False
    """Of each block of the networks keep the input only, and compute the rest again when gradients need it: less
    memory, more time."""
    compile: bool = False
    """Let torch.compile fuse what is between the operations, but where there are penalties: it knows no second
    derivatives. The first steps take minutes. bench/training_step.py measures what it gives; not known on GPUs yet."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Record each kind of step as a CUDA graph and replay it, which spares the launch of every single kernel. auto: on
    GPUs. If it fails, the reason is printed, and the training goes on without."""
    threads: int = 0
    """CPU threads; 0: OMP_NUM_THREADS, or one a physical core."""
    seed: int = 0
    """Everything random follows from it: the same seed on the same CPU and threads gives the same weights."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where. Intervals are in images; 0 means only at the end."""

    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/ARCH-DATA-NNN)")
    ] = None
    """Folder of this run."""
    resume: Annotated[PathText | None, tyro.conf.arg(metavar="RUN|FILE|auto", help_behavior_hint="")] = None
    """Go on with the run in this folder, with its options, as if it had never stopped; --images N to train longer.
    auto: with the one in --out, if it has begun: the same command begins a run and goes on with it."""
    checkpoint_interval: Count = 10_000
    """Save everything, to resume from."""
    keep_checkpoints: int = 1
    """The newest so many checkpoints are kept: checkpoint.safetensors is the last one, the others have the number of
    images in their names, and can be resumed from as well."""
    grid_interval: Count = 10_000
    """Write a picture: real images above, generated ones by class below."""
    log_interval: Count = 1_000
    """Write losses and speed to log.jsonl and TensorBoard."""
    metrics: Annotated[str, tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: none)")] = ""
    """Measure what is saved, by another process while this one trains on, and write it to the same logs: names of
    python -m fastgan.evaluate, such as kid,fd,pr (extra "metrics"), or fid (extra "fid"). The checkpoint that is best
    by the first of them is kept as checkpoint-best.safetensors."""
    metrics_interval: Count = 50_000
    """Save and measure so often."""
    metrics_samples: Count = 5000
    """How many images are drawn for it."""
    inception_weights: Annotated[
        PathText | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the data cache, if it is there)"),
    ] = None
    """Weights for those metrics that look with Inception; see docs/metrics.md."""
    tensorboard: bool = True
    """Write a TensorBoard log (tensorboard --logdir runs)."""
    wandb: Annotated[str | None, tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = None
    """Also log to this project of Weights & Biases (extra "wandb")."""


@dataclass(frozen=True)
class Config:
    """Train a GAN.

    With no option at all: a small StyleGAN2 learns 32x32 pictures of the ten digits, in minutes on a CPU. Ctrl-C ends
    after the current step and saves (exit status 130); --resume goes on from there.
    """

    network: NetworkOptions = field(default_factory=NetworkOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    regularization: RegularizationOptions = field(default_factory=RegularizationOptions)
    growth: GrowthOptions = field(default_factory=GrowthOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def pyramid(resolution: int | str) -> tuple[int, tuple[int, int]]:
    """The square resolution with as many levels, and height and width of the smallest: each level doubles both.

    32 gives (32, (4, 4)), "64x32" (32, (4, 8)). The smallest has 4 to 7 rows or columns if halving goes so far.
    """
    width, height = parse_size(resolution)
    halvings = 0
    while min(width, height) >= 8 and width % 2 == height % 2 == 0:
        width, height, halvings = width // 2, height // 2, halvings + 1
    return 4 << halvings, (height, width)


def is_trainable(resolution: int | str) -> bool:
    """Whether networks can be made for it."""
    square, first = pyramid(resolution)
    return square >= 8 and 4 <= min(first) <= 7


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    right: str  # what a value must be, for people


_AT_LEAST_0 = _Rule(lambda value: value >= 0, "at least 0")
_AT_LEAST_1 = _Rule(lambda value: value >= 1, "at least 1")
_MORE_THAN_0 = _Rule(lambda value: value > 0, "more than 0")
_SHARE = _Rule(lambda value: 0 <= value <= 1, "from 0 to 1")

_RULES = {
    "resolution": _Rule(
        is_trainable, "a number or WIDTHxHEIGHT, at least 8, that can be halved until the smaller one is 4 to 7"
    ),
    "channels": _Rule(lambda value: value in (1, 3, 4), "1 (grey), 3 (colour) or 4 (colour with transparency)"),
    **dict.fromkeys(("z_dim", "channel_base", "channel_max", "images", "batch", "discriminator_steps"), _AT_LEAST_1),
    **dict.fromkeys(("r1_interval", "path_interval"), _AT_LEAST_1),
    **dict.fromkeys(("mapping_lr", "lr_g", "lr_d", "ada_kimg"), _MORE_THAN_0),
    **dict.fromkeys(("r1_gamma", "r2_gamma", "gp_lambda", "drift", "clip", "path_length"), _AT_LEAST_0),
    **dict.fromkeys(("ema_halflife", "ema_rampup", "level_images", "fade_images"), _AT_LEAST_0),
    **dict.fromkeys(
        ("mapping_layers", "discriminator_mapping_layers"), _Rule(lambda value: 0 <= value <= 100, "0 to 100")
    ),
    "freeze_d": _AT_LEAST_0,
    "batch_gpu": _Rule(lambda value: value >= 0, "at least 1, or 0 for all images of a batch at once"),
    "keep_checkpoints": _AT_LEAST_1,
    "threads": _Rule(lambda value: 0 <= value <= MOST_THREADS, f"from 1 to {MOST_THREADS}, or 0 to choose by itself"),
    **dict.fromkeys(("checkpoint_interval", "grid_interval", "log_interval"), _AT_LEAST_0),
    "metrics_interval": _AT_LEAST_0,
    "metrics_samples": _Rule(lambda value: value >= 4, "at least 4; some thousands say more"),
    **dict.fromkeys(("style_mixing", "final_lr", "final_gamma", "augment_p"), _SHARE),
    "betas": _Rule(lambda value: all(0 <= beta < 1 for beta in value), "two numbers from 0 to below 1"),
    "final_beta2": _Rule(lambda value: value is None or 0 <= value < 1, "from 0 to below 1, or None"),
    "ada_target": _Rule(lambda value: -1 < value < 1, "between -1 and 1"),
    "level_batch": _Rule(lambda value: all(batch >= 1 for batch in value), "numbers of at least 1"),
    "level_lr": _Rule(lambda value: all(factor > 0 for factor in value), "numbers above 0"),
    "seed": _Rule(lambda value: 0 <= value <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}"),
}


def check_values(config: Config) -> None:
    """Raise UserError, naming the option, for a value out of range. "auto" passes."""
    for name, value in options(config).items():
        rule = _RULES.get(name)
        if rule and value != "auto" and not rule.holds(value):
            raise UserError(f"{flag(name)} {value}: must be {rule.right}")


def unresolved(config: Config) -> list[str]:
    """Options that are still "auto" where a training needs a value. `classes` may: most data bring their own."""
    own = {"classes"} if config.data.source != "glyphs" else set()
    groups = (config.network, config.data, config.training, config.regularization, config.growth)
    return [
        each.name
        for group in groups
        for each in dataclasses.fields(group)
        if each.default == "auto" == getattr(group, each.name) and each.name not in own
    ]


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


def from_dict(content: dict[str, dict[str, Any]], where: str = "config") -> Config:
    """The inverse of `to_dict`, also after JSON has made lists of tuples.

    where: what a message calls `content`. Raises UserError that names the first option that is wrong.
    """
    return from_json(Config, content, where)
