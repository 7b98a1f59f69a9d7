"""Configuration of a training from its command line: parsing, replacing "auto", and checking.

Imports no torch: `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fastgan.data.detect import detect_format
from fastgan.data.images import parse_size, size_text
from fastgan.errors import UserError, program, readable
from fastgan.options import parse_count, parse_options
from fastgan.runs.config import (
    Config,
    DataOptions,
    GrowthOptions,
    NetworkOptions,
    check_values,
    flag,
    is_trainable,
    pyramid,
)
from fastgan.training.recipes import recipe

# Options that a resumed run must keep: others would change the networks or the order of the data.
FIXED_ON_RESUME = frozenset(vars(NetworkOptions()) | vars(GrowthOptions())) | {
    "resolution", "channels", "classes", "labels", "batch", "seed", "optimizer", "discriminator_steps", "init_from",
    "freeze_d",
}  # fmt: skip


@dataclass(frozen=True)
class _CommandLine(Config):
    recipe: Literal["family", "auto"] = "family"
    """Values of options that say "auto", and more. family: those of --arch, mostly its paper's. auto: what suits the
    number of images, their size and this machine, also --arch; printed with the reasons. Options that you give win."""


_CommandLine.__doc__ = Config.__doc__


class Command(NamedTuple):
    """A command line: its configuration, value of --recipe, and names of the options that it has."""

    config: Config
    recipe: str
    given: frozenset[str]


def parse_command(argv: list[str] | None, default: Config | None = None) -> Command:
    """The command line `argv` (None: this process's), with `default` for options not given.

    Prints help and raises SystemExit if asked to. Raises UserError, naming the option, for a mistake.
    """
    argv = _thousands(sys.argv[1:] if argv is None else argv)
    found = parse_options(_CommandLine, program("train"), argv, _CommandLine(**vars(default or Config())))
    names = (token.partition("=")[0].lstrip("-").replace("-", "_") for token in argv if token.startswith("--"))
    given = frozenset(name.removeprefix("no_") for name in names)
    groups = {name: value for name, value in vars(found).items() if name != "recipe"}
    return Command(Config(**groups), found.recipe, given)


def parse(argv: list[str] | None, default: Config | None = None) -> Config:
    """Configuration of a command line, as for `parse_command`."""
    return parse_command(argv, default).config


def _thousands(argv: Sequence[str]) -> list[str]:
    """Replace `--kimg 25000`, as in other projects, by `--images=25000000`. Raises UserError if it is no number."""
    found, tokens = [], iter(argv)
    for token in tokens:
        name, equals, value = token.partition("=")
        if name != "--kimg":
            found.append(token)
            continue
        value = value if equals else next(tokens, "")
        try:
            found.append(f"--images={parse_count(f'{value}k')}")
        except ValueError:
            given = f"--kimg {readable(value)}".strip()
            raise UserError(f"{given}: must be thousands of images, like 25000; or give --images, like 25M") from None
    return found


def resolve(config: Config) -> Config:
    """Replace every "auto" that depends on architecture, objective or data, and check the result.

    Raises UserError, naming the option, for a value out of range or for options that exclude each other.
    """
    if config.network.arch == "auto":
        config = dataclasses.replace(config, network=dataclasses.replace(config.network, arch="stylegan2"))
    data = resolve_data(config.data)
    config = dataclasses.replace(config, data=data)
    width, height = parse_size(data.resolution)
    if width == height:
        data = dataclasses.replace(data, resolution=width)
        config = dataclasses.replace(config, data=data)
    check_values(config)
    if data.source != "glyphs" and data.classes != "auto":
        raise UserError(f"--classes {data.classes}: {data.source} brings its own classes; leave it out")
    if data.source == "glyphs" and data.classes == "auto":
        data = dataclasses.replace(data, classes=10)
    if data.labels == "auto":
        data = dataclasses.replace(data, labels=config.network.arch in (*STYLES, "r3gan", "cgan"))
    network = config.network
    side = pyramid(data.resolution)[0]
    auto = recipe(network.arch, side, config.training.loss, network.discriminator, network.variant)
    if network.arch == "stylegan2" and data.channels == 4:
        # With noise a generator dithers alpha: single pixels are opaque or transparent where they should be in between.
        auto["noise"] = False
    if config.training.minutes:
        auto["images"] = 0
    if config.growth.grow_from != "auto":  # keep the values of the remaining levels
        left = (side // config.growth.grow_from).bit_length() if config.growth.grow_from > 0 else 0
        for name in ("level_batch", "level_lr"):
            auto[name] = auto[name][-left:] if left else ()
    if config.regularization.augment not in ("auto", auto["augment"]):
        auto["augment_p"] = 0.2 if config.regularization.augment in ("fixed", "ramp") else 0.0
    filled = {
        group: dataclasses.replace(
            options, **{name: auto[name] for name, value in vars(options).items() if value == "auto" and name in auto}
        )
        for group, options in vars(config).items()
        if group in ("network", "training", "regularization", "growth")
    }
    resolved = dataclasses.replace(config, data=data, **filled)
    check_values(resolved)
    _check_together(resolved)
    return resolved


def resolve_data(options: DataOptions) -> DataOptions:
    """Replace "auto" for resolution and channels by those of the images."""
    if "auto" not in (options.resolution, options.channels):
        return options
    found = detect_format(options.source)
    if options.channels == "auto":
        options = dataclasses.replace(options, channels=found.channels)
    if options.resolution == "auto":
        size = size_text(found.size)
        if not is_trainable(size):
            raise UserError(
                f"--data {options.source}: its images are {size}; a side must halve until the smaller one is 4 to "
                f"7: {program('dataset')} makes them fit, or choose a --resolution"
            )
        options = dataclasses.replace(options, resolution=size)
    return options


_VARIANTS = {"dcgan": ("transposed", "upsample"), "cgan": ("conv", "mlp"), "stylegan3": ("t", "r")}
STYLES = ("stylegan", "stylegan2", "stylegan3")
_GROWING = ("stylegan", "pggan")
OF_BLOCKS = ("stylegan", "stylegan2", "stylegan3", "pggan", "r3gan")
_SQUARE = ("stylegan", "stylegan3", "pggan")  # images are square, their side a power of two
GROUPED = ("stylegan", "stylegan2", "stylegan3", "pggan")  # minibatch stddev compares groups of 4 samples


def _check_together(config: Config) -> None:
    """Raise UserError for options that exclude each other."""
    network, training, terms, growth = config.network, config.training, config.regularization, config.growth
    arch, side = network.arch, config.data.resolution
    variants = _VARIANTS.get(arch, ())
    if pyramid(side)[1] != (4, 4) and arch in _SQUARE:
        raise UserError(
            f"--resolution {side}: must be a power of two for {arch}, whose images are square; give another --arch"
        )
    if network.variant not in ("", *variants):
        known = f"must be {' or '.join(variants)} for {arch}" if variants else f"{arch} has no variants; leave it out"
        raise UserError(f"--variant {network.variant}: {known}")
    if training.style_mixing and arch not in STYLES:
        raise UserError(f"--style-mixing {training.style_mixing}: {arch} has no styles to mix; leave it out")
    if terms.path_length and arch not in STYLES:
        raise UserError(f"--path-length {terms.path_length}: {arch} has no styles; leave it out")
    if not network.tanh and arch not in OF_BLOCKS:
        raise UserError(f"--tanh False: the images of {arch} always go through tanh; leave it out")
    if not network.noise and arch != "stylegan2":
        raise UserError(f"--noise False: is for stylegan2, not {arch}; leave it out")
    if network.pixel_shuffle and arch != "stylegan2":
        raise UserError(f"--pixel-shuffle True: is for stylegan2, not {arch}; leave it out")
    if network.pixel_shuffle and pyramid(side)[0] < 16:
        raise UserError(f"--pixel-shuffle True: --resolution {side} must be 16 at least; leave it out")
    projected = network.discriminator == "projected"
    if bool(network.projected_size) != projected:
        given = "must be at least 64 for" if projected else "needs"
        raise UserError(f"--projected-size {network.projected_size}: {given} --discriminator projected")
    if projected and growth.grow_from:
        raise UserError(
            f"--grow-from {growth.grow_from}: the projected discriminator does not grow; give 0, or leave it out"
        )
    if network.discriminator_mapping_layers and arch not in ("stylegan2", "stylegan3"):
        raise UserError(
            f"--discriminator-mapping-layers {network.discriminator_mapping_layers}: {arch} has none; leave it out"
        )
    for name in ("synthesis_layers", "margin"):
        if getattr(network, name) and arch != "stylegan3":
            raise UserError(f"{flag(name)} {getattr(network, name)}: is for stylegan3, not {arch}; leave it out")
    if arch == "stylegan3" and not network.synthesis_layers:
        raise UserError("--synthesis-layers 0: must be 3 at least for stylegan3")
    if bool(terms.blur) != bool(terms.blur_images):
        name, missing = ("blur", "blur_images") if terms.blur else ("blur_images", "blur")
        raise UserError(f"{flag(name)} {getattr(terms, name):g}: needs {flag(missing)}; give both, or neither")
    if not training.images and not training.minutes:
        raise UserError("--images 0: must be at least 1, or give --minutes")
    if training.images and training.minutes:
        raise UserError(f"--images {training.images}: excludes --minutes {training.minutes:g}; leave one of them out")
    if training.minutes and growth.grow_from:
        raise UserError(f"--minutes {training.minutes:g}: networks grow by --images; give those, or --grow-from 0")
    if config.machine.checkpoint_blocks and arch not in OF_BLOCKS:
        raise UserError(f"--checkpoint-blocks: {arch} is not made of blocks; leave it out")
    if config.machine.compile and config.machine.checkpoint_blocks:
        raise UserError("--compile: computes nothing again, so not with --checkpoint-blocks; leave one of them out")
    if terms.gp_lambda and training.loss != "wgan-gp":
        raise UserError(f"--gp-lambda {terms.gp_lambda}: belongs to --loss wgan-gp, not {training.loss}")
    if terms.augment_p and terms.augment not in ("fixed", "ramp"):
        raise UserError(f"--augment-p {terms.augment_p}: needs --augment fixed or ramp, not {terms.augment}")
    if training.freeze_d and training.init_from is None:
        raise UserError(f"--freeze-d {training.freeze_d}: is for trained networks; give them with --init-from")
    if training.freeze_d and growth.grow_from:
        raise UserError(f"--freeze-d {training.freeze_d}: the layers of networks that grow must learn; leave one out")
    if not growth.grow_from:
        set_anyway = [name for name in ("level_batch", "level_lr") if getattr(growth, name)]
        if set_anyway:
            raise UserError(f"{flag(set_anyway[0])}: nothing grows; give --grow-from with pggan or stylegan")
    elif arch not in _GROWING:
        raise UserError(f"--grow-from {growth.grow_from}: {arch} does not grow; leave it out")
    elif growth.grow_from not in (4, 8) or growth.grow_from > side or growth.grow_from < (4 if arch == "pggan" else 8):
        first = "4 or 8" if arch == "pggan" else "8"
        raise UserError(f"--grow-from {growth.grow_from}: must be {first} for {arch}, or 0 for no growth")
    else:
        count = (side // growth.grow_from).bit_length()
        for name in ("level_batch", "level_lr"):
            given = getattr(growth, name)
            if given and len(given) != count:
                numbers = " ".join(map(str, given))
                raise UserError(f"{flag(name)} {numbers}: must be {count} numbers, one for each resolution, or none")
    if training.init_from is None:  # trained networks may have another group size
        check_groups(config, 4 if arch in GROUPED and not projected else None)
    check_processes(config, 1)


def check_processes(config: Config, count: int) -> None:
    """Raise UserError if `count` processes cannot share each batch of a resolved configuration equally."""
    for name, batch in _batches(config):
        share, rest = divmod(batch, count)
        if rest:
            raise UserError(f"{flag(name)} {batch}: must be a multiple of {count}, for as many processes")
        if 0 < config.training.batch_gpu < share and share % config.training.batch_gpu:
            images = f"the {share} images of a process, of " if count > 1 else ""
            raise UserError(
                f"--batch-gpu {config.training.batch_gpu}: must divide {images}{flag(name)} {batch} into equal parts"
            )


def check_groups(config: Config, group: int | None, processes: int = 1) -> None:
    """Raise UserError if the images that go through the discriminator at once are not a multiple of `group`.

    group: minibatch stddev group size; None if there are no groups, or one group is the whole batch.
    """
    for name, batch in _batches(config) if group else ():
        share, micro = batch // processes, config.training.batch_gpu
        at_once = micro if 0 < micro < share else share
        if at_once > group and at_once % group:
            option = f"--batch-gpu {micro}" if at_once < share else f"{flag(name)} {batch}"
            of_each = f" for each of {processes} processes" if at_once == share < batch else ""
            raise UserError(
                f"{option}: must be a multiple of {group}{of_each}, as the discriminator "
                f"compares groups of {group} images"
            )


def _batches(config: Config) -> list[tuple[str, int]]:
    """Option name and size of every batch of a resolved configuration."""
    return [("batch", config.training.batch), *(("level_batch", batch) for batch in config.growth.level_batch)]
