"""The configuration of a run: all options of a training as typed dataclasses, which tyro turns into the command line.

config.json and every checkpoint hold it. Options that depend on architecture, objective or data are "auto" until
`fastgan.training.configure.resolve` replaces them. Imports no torch: `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from fastgan.data.images import parse_size
from fastgan.errors import UserError
from fastgan.options import LARGEST_SEED, Count, PathText, argument, from_json
from fastgan.runs.process import MOST_THREADS

FILE_NAME = "config.json"
MOST_BLUR = 100  # pixels; the filter has six times as many taps

Architecture = Literal["stylegan2", "stylegan3", "stylegan", "pggan", "r3gan", "fastgan", "dcgan", "cgan", "mlp"]
Loss = Literal[
    "nonsaturating", "minimax", "least-squares", "hinge", "noisy-hinge", "wgan", "wgan-gp", "relativistic"
]  # fmt: skip
Auto = Literal["auto"]
ADA = ("ada", "fixed", "ramp")  # values of --augment with the transformations of ADA, of probability p


@dataclass(frozen=True)
class NetworkOptions:
    """Generator and discriminator."""

    arch: Architecture | Auto = "auto"
    """Architecture. stylegan2: best images. stylegan3: details move with what they are on. r3gan: a modern baseline.
    fastgan: for few images. stylegan, pggan: grow from small images to large ones. dcgan, cgan, mlp: simple and fast.
    auto: that of --init-from, else stylegan2."""
    variant: str | Auto = "auto"
    """For dcgan: transposed (the default, as in the paper) or upsample. For cgan: conv (the default) or mlp. For
    stylegan3: t (the default), whose images move with the scene, or r, whose images also turn with it."""
    z_dim: int | Auto = "auto"
    """Size of the latent vector."""
    channel_base: int | Auto = "auto"
    """Width of the networks: channel_base / r feature maps at resolution r, up to --channel-max. The discriminator of
    stylegan3's variant r has half of both."""
    channel_max: int | Auto = "auto"
    """Most feature maps of a layer."""
    synthesis_layers: int | Auto = "auto"
    """Number of layers of stylegan3's generator, beside the one that makes the image. auto: 14 from 128 pixels on, else
    6."""
    margin: int | Auto = "auto"
    """Samples around the image on each side in stylegan3's feature maps, which keep the borders from telling layers
    where they are. auto: 10 from 128 pixels on, else 4."""
    mapping_layers: int | Auto = "auto"
    """Number of layers of the mapping network, for stylegan, stylegan2 and stylegan3."""
    mapping_lr: float | Auto = "auto"
    """Learning-rate multiplier of the mapping network."""
    tanh: bool | Auto = "auto"
    """tanh at the generator's end, so that pixels cannot leave the range of images. For stylegan2, stylegan3, stylegan,
    pggan and r3gan; the others always have it. auto: yes for images below 128 pixels, 64 for r3gan; no above, as in the
    papers. Matters most for pictures with a plain background, such as glyphs and drawings."""
    noise: bool | Auto = "auto"
    """Noise inputs of stylegan2's generator, which vary details such as hair. auto: yes, but no from 64 to 127 pixels,
    where a short training draws cleaner shapes without, and for transparent images."""
    pixel_shuffle: bool | Auto = "auto"
    """stylegan2 works at half the resolution, 2x2 pixels at each place: half of the time, and less detail. auto: yes
    from 64 to 127 pixels, else no, as in the paper."""
    discriminator: Literal["own", "projected"] | Auto = "auto"
    """own: that of the architecture. projected: small discriminators on features of a frozen network that was trained
    on photographs (EfficientNet-Lite0, extra "metrics"). auto: that of --init-from, else own."""
    projected_size: int | Auto = "auto"
    """For --discriminator projected: enlarge smaller images until the shorter side has this size, a multiple of 32 from
    64. auto: 64 below 64 pixels, 128 below 128, else 224."""
    discriminator_norm: bool | Auto = "auto"
    """Batch norm in the discriminator, for dcgan, cgan, fastgan and projected. auto: yes, except with a gradient
    penalty."""
    discriminator_mapping_layers: int | Auto = "auto"
    """Dense layers between a label's embedding and its projection, in the discriminator of stylegan2 and stylegan3.
    auto: 0. StyleGAN2-ADA has 8."""


@dataclass(frozen=True)
class DataOptions:
    """Training images."""

    source: Annotated[PathText, argument(name="data", metavar="glyphs|emoji|DIR|ZIP|URL")] = "glyphs"
    """glyphs: rendered characters. emoji: colour pictures (extra "emoji"). DIR, ZIP: your own images, with sub-folders
    or dataset.json as classes. Also anything that `fastgan dataset` has prepared; for shards, their shards.json, as a
    file or a URL."""
    resolution: Annotated[int | str, argument(metavar="N|WxH|auto")] = "auto"
    """Side of square images in pixels, or width and height, like 32, 28 or 1024x768. Halved again and again, the
    shorter side must come to 4 to 7 pixels. stylegan3, stylegan and pggan need a power of two. auto: that of the
    images, 32 for glyphs and emoji."""
    channels: int | Auto = "auto"
    """1: grey, 3: colour, 4: colour with transparency. auto: that of the images, 1 for glyphs."""
    classes: int | Auto = "auto"
    """For glyphs: 10 (digits, the default), 26 (capitals) or 62 (digits and both cases). Other data bring their own
    classes."""
    labels: bool | Auto = "auto"
    """Class-conditional networks. auto: yes for stylegan2, stylegan3, stylegan, r3gan and cgan; no for the others, as
    in their papers."""
    mirror: bool = False
    """Flip an image left to right with probability 1/2 each time it is shown. Doubles data such as faces or
    landscapes. Not for letters and digits, which are not symmetric."""


@dataclass(frozen=True)
class TrainingOptions:
    """Objective and optimizers. "auto" depends on architecture, objective and resolution; the run's config.json has the
    value."""

    images: Count | Auto = "auto"
    """Length of the training: real images shown to the discriminator, like 500k or 25M. --kimg gives it in
    thousands."""
    minutes: float = 0.0
    """Length of the training in minutes, in place of --images: it ends after that time, and so do all schedules.
    Start-up is not counted. 0: --images."""
    batch: int | Auto = "auto"
    """Images a step, over all processes."""
    batch_gpu: int = 0
    """Micro-batch: images that go through the networks at once. Gradients add up to those of --batch, in less memory.
    Batch norm and minibatch stddev see one micro-batch. 0: all images of a process."""
    init_from: Annotated[PathText | None, argument(metavar="RUN|FILE|URL", help_behavior_hint="")] = None
    """Start with trained networks: a run or checkpoint, a .pkl file of stylegan2-ada-pytorch or stylegan3 (StyleGAN2
    only), or a .pt file of rosinality's; local or at a URL. Sizes default to those of the file. With other sizes,
    resolutions, classes or colours, layers that fit are copied and the rest is initialised."""
    freeze_d: int = 0
    """With --init-from: freeze this many layers of the discriminator, from the image on. Helps with few images (Mo et
    al. 2020, FreezeD: 10 or more). Counted like stylegan2-ada's --freezed: from_rgb, then the convolutions of each
    block. A residual block of r3gan counts as one."""
    loss: Loss | Auto = "auto"
    """Objective. auto: hinge for the projected discriminator, wgan-gp for pggan, relativistic for r3gan, noisy-hinge
    for fastgan, else nonsaturating."""
    discriminator_steps: int | Auto = "auto"
    """Discriminator updates for each generator update. auto: 5 for wgan and wgan-gp (1 in pggan), else 1."""
    optimizer: Literal["adam", "rmsprop"] | Auto = "auto"
    """Optimizer of both networks. auto: rmsprop for wgan, else adam."""
    lr_g: float | Auto = "auto"
    """Learning rate of the generator."""
    lr_d: float | Auto = "auto"
    """Learning rate of the discriminator."""
    final_lr: float | Auto = "auto"
    """Fraction of the learning rates at the end, annealed on a cosine. auto: 0.25 for r3gan, else 1."""
    lr_warmup: float | Auto = "auto"
    """Fraction of the training in which the learning rates rise from 0. auto: 0."""
    betas: Annotated[tuple[float, float] | Auto, argument(metavar="BETA1 BETA2|auto")] = "auto"
    """Adam's beta1 and beta2."""
    final_beta2: Annotated[float | Auto | None, argument(metavar="FLOAT|None|auto")] = "auto"
    """Adam's beta2 at the end, annealed on a cosine. None: constant. auto: 0.99 for r3gan, else None."""
    ema_halflife: Annotated[float | tuple[float, ...] | Auto, argument(metavar="FLOAT ...|auto")] = "auto"
    """Half-life of the generator's EMA, which draws the images, in thousands of images shown. Several, like 10 2.5 40:
    the first draws the images, and the checkpoint keeps the others beside it, among which `fastgan evaluate --ema all`
    finds the best."""
    ema_rampup: float | Auto = "auto"
    """Limit of that half-life early on, as a fraction of the images shown so far; of several it limits the first, and
    the others stay in proportion. 0: no limit."""
    style_mixing: float | Auto = "auto"
    """Probability that an image has two latents, swapped at a random layer. auto: 0.9 for stylegan and stylegan2,
    else 0."""

    @property
    def ema_halflives(self) -> tuple[float, ...]:
        """Half-lives of all EMAs, also of a single one. Raises ValueError if `ema_halflife` is still "auto"."""
        return self.ema_halflife if isinstance(self.ema_halflife, tuple) else (float(self.ema_halflife),)


@dataclass(frozen=True)
class RegularizationOptions:
    """Penalties and augmentation. 0 switches a term off."""

    r1_gamma: float | Auto = "auto"
    """Weight of R1, the gradient penalty on real images. Larger images need more."""
    r2_gamma: float | Auto = "auto"
    """Weight of R2, the gradient penalty on generated images."""
    final_gamma: float | Auto = "auto"
    """Fraction of both weights at the end, annealed on a cosine. auto: 0.1 for r3gan, else 1."""
    r1_interval: int | Auto = "auto"
    """Lazy regularisation: apply R1 and R2 every N steps, multiplied by N. auto: 8 for networks with styles
    below 128 pixels, 16 for stylegan2 and stylegan3 from there on, else 1."""
    gp_lambda: float | Auto = "auto"
    """Weight of the gradient penalty of WGAN-GP, between real and generated images. auto: 10 for --loss wgan-gp."""
    drift: float | Auto = "auto"
    """Weight of the mean square of real logits, which keeps the logits of a Wasserstein critic near 0. auto: 0.001 for
    pggan."""
    clip: float | Auto = "auto"
    """Clip the discriminator's weights to [-clip, clip]. auto: 0.01 for wgan."""
    path_length: float | Auto = "auto"
    """Weight of the path length penalty, for networks with styles. auto: 2 for stylegan2 from 128 pixels on, else 0."""
    path_interval: int | Auto = "auto"
    """Apply the path length penalty every N generator updates, multiplied by N. auto: 4."""
    blur: float | Auto = "auto"
    """Blur all images that the discriminator sees early on, so that it first judges coarse features. Width in pixels of
    the Gaussian at the start, exp2(-(x / width)^2), which shrinks to 0 within --blur-images. auto: 10 for stylegan3's
    variant r from 128 pixels on, 2 below, else 0."""
    blur_images: Count | Auto = "auto"
    """Images in which the blur fades out."""
    augment: Literal["none", "ada", "fixed", "ramp", "diffaug"] | Auto = "auto"
    """Augment the images that the discriminator sees, against overfitting on small data. ada, fixed, ramp: flips,
    shifts, rotations and colours, each with a probability. ada: adapted to overfitting. fixed: --augment-p. ramp: from
    0 to --augment-p on a cosine. diffaug: colours, shifts and a cutout of every image, at less cost. auto: diffaug
    for fastgan and the projected discriminator, ramp for r3gan from 64 pixels on, else none."""
    augment_p: float | Auto = "auto"
    """Probability of each augmentation, for fixed and ramp."""
    ada_target: float = 0.6
    """For ada: mean sign of the logits on real images. Above it the probability rises, below it falls."""
    ada_kimg: float = 500.0
    """For ada: thousands of images in which the probability can go from 0 to 1."""


@dataclass(frozen=True)
class GrowthOptions:
    """Progressive growing, for stylegan and pggan: from small images to large ones."""

    grow_from: int | Auto = "auto"
    """Resolution of the first images. 0: no growth. auto: 4 for pggan, 8 for stylegan, else 0."""
    level_images: Count | Auto = "auto"
    """Images to train each resolution with, besides fading it in."""
    fade_images: Count | Auto = "auto"
    """Images to fade each resolution in with."""
    level_batch: Annotated[tuple[int, ...] | Auto, argument(metavar="INT ...|auto")] = "auto"
    """Images a step at each resolution, from the first on. Empty: --batch."""
    level_lr: Annotated[tuple[float, ...] | Auto, argument(metavar="FLOAT ...|auto")] = "auto"
    """Learning-rate factor at each resolution. Empty: 1."""


@dataclass(frozen=True)
class MachineOptions:
    """Device, precision and speed."""

    amp: bool = False
    """Mixed precision: compute in bf16 (fp16 on GPUs without it) where the device is faster so. The run's first lines
    say what is used."""
    device: str = "auto"
    """cpu, cuda, or cuda:1 and so on. auto: the first GPU if there is one, else the CPU."""
    checkpoint_blocks: bool = False
    """Activation checkpointing: keep only the input of each block of the networks, and recompute the rest in backward.
    Less memory, more time."""
    compile: bool = False
    """Use torch.compile in steps without penalties, as it does not support second derivatives. The first steps take
    minutes. docs/performance.md shows the gain on CPUs."""
    capture_steps: Literal["auto", "on", "off"] = "auto"
    """Capture each kind of step once and replay it, without the Python code of modules and autograd: as a CUDA graph on
    a GPU, as a list of operations on a CPU. If capturing fails, the reason is printed and training continues without.
    auto: where it is possible."""
    threads: int = 0
    """CPU threads. 0: OMP_NUM_THREADS, else one for each physical core."""
    seed: int = 0
    """Seed of all random numbers. The same seed on the same CPU and number of threads gives the same weights."""


@dataclass(frozen=True)
class OutputOptions:
    """Files and logs of the run. Intervals are in images. 0: only at the end."""

    out: Annotated[PathText | None, argument(metavar="DIR", help_behavior_hint="(default: runs/ARCH-DATA-NNN)")] = None
    """Folder of this run."""
    resume: Annotated[PathText | None, argument(metavar="RUN|FILE|auto", help_behavior_hint="")] = None
    """Resume the run in this folder with its options, as if it had never stopped. Longer: with --images N. auto: resume
    the run in --out if there is one, so that the same command starts and resumes it."""
    checkpoint_interval: Count = 10_000
    """Images between checkpoints."""
    keep_checkpoints: int = 1
    """Number of checkpoints to keep. The newest is checkpoint.safetensors. Older ones have their number of images in
    the name, and can be resumed from as well."""
    grid_interval: Count = 10_000
    """Images between pictures of samples: real images above, generated ones by class below."""
    log_interval: Count = 1_000
    """Images between lines in log.jsonl and points in TensorBoard: losses and speed."""
    metrics: Annotated[str, argument(metavar="NAMES", help_behavior_hint="(default: none)")] = ""
    """Evaluate checkpoints in a background process and log the results. Names as for `fastgan evaluate`, such as
    kid,fd,pr (extra "metrics") or fid (extra "fid"). The checkpoint that is best by the first metric is kept as
    checkpoint-best.safetensors."""
    metrics_interval: Count = 50_000
    """Images between evaluations. Each saves a checkpoint."""
    metrics_samples: Count = 5000
    """Images drawn for an evaluation."""
    inception_weights: Annotated[
        PathText | None,
        argument(metavar="FILE", help_behavior_hint="(default: in the data cache, if it is there)"),
    ] = None
    """Weights for metrics on Inception's features. docs/metrics.md names their source."""
    tensorboard: bool = True
    """Write a log for TensorBoard, which `tensorboard --logdir runs` shows."""
    wandb: Annotated[str | None, argument(metavar="PROJECT", help_behavior_hint="")] = None
    """Also log to this project of Weights & Biases (extra "wandb")."""


@dataclass(frozen=True)
class Config:
    """Train a GAN.

    Without options: a small StyleGAN2 learns 32x32 images of the ten digits, in minutes on a CPU. Ctrl-C stops after
    the current step and saves (exit status 130); --resume continues from there.
    """

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    regularization: RegularizationOptions = field(default_factory=RegularizationOptions)
    growth: GrowthOptions = field(default_factory=GrowthOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def pyramid(resolution: int | str) -> tuple[int, tuple[int, int]]:
    """`ModelConfig.resolution` and `base_size` (height, width of the smallest level) for --resolution.

    Each level doubles height and width. 32 gives (32, (4, 4)), "64x32" gives (32, (4, 8)). The smallest level has 4 to
    7 rows or columns if the sides can be halved that far.
    """
    width, height = parse_size(resolution)
    halvings = 0
    while min(width, height) >= 8 and width % 2 == height % 2 == 0:
        width, height, halvings = width // 2, height // 2, halvings + 1
    return 4 << halvings, (height, width)


def is_trainable(resolution: int | str) -> bool:
    """Whether networks can be built for this resolution."""
    square, first = pyramid(resolution)
    return square >= 8 and 4 <= min(first) <= 7


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    requirement: str  # what a value must be, for messages


_AT_LEAST_0 = _Rule(lambda value: value >= 0, "at least 0")
_AT_LEAST_1 = _Rule(lambda value: value >= 1, "at least 1")
_MORE_THAN_0 = _Rule(lambda value: value > 0, "more than 0")
_SHARE = _Rule(lambda value: 0 <= value <= 1, "from 0 to 1")

_RULES = {
    "resolution": _Rule(
        is_trainable, "a number or WIDTHxHEIGHT, at least 8, that can be halved until the smaller one is 4 to 7"
    ),
    "channels": _Rule(lambda value: value in (1, 3, 4), "1 (grey), 3 (colour) or 4 (colour with transparency)"),
    **dict.fromkeys(("z_dim", "channel_base", "channel_max", "batch", "discriminator_steps"), _AT_LEAST_1),
    **dict.fromkeys(("r1_interval", "path_interval"), _AT_LEAST_1),
    "images": _Rule(lambda value: value >= 0, "at least 1, or 0 with --minutes"),
    **dict.fromkeys(("mapping_lr", "lr_g", "lr_d", "ada_kimg"), _MORE_THAN_0),
    **dict.fromkeys(("r1_gamma", "r2_gamma", "gp_lambda", "drift", "clip", "path_length"), _AT_LEAST_0),
    **dict.fromkeys(("minutes", "ema_rampup", "level_images", "fade_images", "blur_images"), _AT_LEAST_0),
    "blur": _Rule(lambda value: 0 <= value <= MOST_BLUR, f"from 0 to {MOST_BLUR}"),
    "synthesis_layers": _Rule(lambda value: value == 0 or 3 <= value <= 100, "3 to 100"),
    "margin": _Rule(lambda value: 0 <= value <= 100, "0 to 100"),
    "ema_halflife": _Rule(
        lambda value: (
            min(value, default=0) > 0 and len({*value}) == len(value) if isinstance(value, tuple) else value >= 0
        ),
        "at least 0, or different numbers above 0",
    ),
    **dict.fromkeys(
        ("mapping_layers", "discriminator_mapping_layers"), _Rule(lambda value: 0 <= value <= 100, "0 to 100")
    ),
    "projected_size": _Rule(lambda value: value != 32 and value >= 0 == value % 32, "a multiple of 32 from 64"),
    "freeze_d": _AT_LEAST_0,
    "batch_gpu": _Rule(lambda value: value >= 0, "at least 1, or 0 for all images of a batch at once"),
    "keep_checkpoints": _AT_LEAST_1,
    "threads": _Rule(lambda value: 0 <= value <= MOST_THREADS, f"from 1 to {MOST_THREADS}, or 0 to choose by itself"),
    **dict.fromkeys(("checkpoint_interval", "grid_interval", "log_interval"), _AT_LEAST_0),
    "metrics_interval": _AT_LEAST_0,
    "metrics_samples": _Rule(lambda value: value >= 4, "at least 4; some thousands say more"),
    **dict.fromkeys(("style_mixing", "final_lr", "lr_warmup", "final_gamma", "augment_p"), _SHARE),
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
            raise UserError(f"{flag(name)} {value}: must be {rule.requirement}")


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
    """Options that differ, except `out` and `resume`: name to (saved value, given value)."""
    before, after = options(saved), options(given)
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in ("out", "resume")
    }


def options(config: Config) -> dict[str, Any]:
    """All options in one dictionary, by their name on the command line with underscores."""
    flat = {}
    for group in dataclasses.fields(config):
        for name, value in vars(getattr(config, group.name)).items():
            flat["data" if name == "source" else name] = value
    return flat


def flag(name: str) -> str:
    """Command-line spelling of an option: "r1_gamma" gives "--r1-gamma"."""
    return "--" + name.replace("_", "-")


def typed(name: str, value: Any) -> list[str]:
    """Words of a command line that give an option a value: ["--betas", "0", "0.99"], ["--no-mirror"]."""
    if isinstance(options(Config())[name], bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), *(str(each).removesuffix(".0") for each in (value if isinstance(value, tuple) else (value,)))]


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Plain dictionaries, for JSON."""
    return dataclasses.asdict(config)


def from_dict(content: dict[str, dict[str, Any]], where: str = "config") -> Config:
    """Inverse of `to_dict`, also from JSON, which has lists for tuples.

    where: name of `content` in messages. Raises UserError, naming the first wrong option.
    """
    return from_json(Config, content, where)
