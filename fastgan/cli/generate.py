"""`python -m fastgan.generate`: draw images from a trained generator, and pictures of what is behind them.

Exit status: 0 when done, 2 for a mistake in options or files, 130 after Ctrl-C; every image written is whole.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

import numpy as np
import tyro

from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line, nearest, program, readable
from fastgan.files import prepare_to_write
from fastgan.options import LARGEST_NUMPY_SEED, LARGEST_SEED, PathText, SeedFormat, parse_options
from fastgan.progress import ProgressBar
from fastgan.runs.grid import (
    PICTURES,
    SMALLEST_CELL,
    SMALLEST_FRAME,
    Section,
    draw_grid,
    enlargement,
    require_fits,
    require_video,
    save_animation,
    save_picture,
    to_picture,
)
from fastgan.runs.memory import require, shortage_is_a_mistake

if TYPE_CHECKING:  # torch is imported once the options are known, so that --help is quick
    from torch import Tensor, nn

    from fastgan.models import ModelConfig


GRID_COLUMNS = 16
STILL, ANIMATIONS = tuple(PICTURES), (".gif", ".mp4")
PICTURE_STEPS, ANIMATION_STEPS = 9, 48
MOST_DRAWS = 100_000  # the deviation is known well long before
MOST_SEEDS = 1_000_000  # more is a slip of the finger, and the list alone would fill the memory


def _classes(default: str):
    """What tyro is told about --classes."""
    return tyro.conf.arg(metavar="LIST", aliases=["--class"], help_behavior_hint=f"(default: {default})")


Label = tuple[str, int | None]  # the name of a class and its number; ("", None) for a network without classes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all sub-commands have in common. A study is a sub-class with `rows`, and draws a section a class."""

    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
    here or at a URL."""
    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """The random latents, a row each: numbers and ranges, like 0-7 or 1,5,8-10."""
    seed_format: SeedFormat = "torch"
    """How a seed becomes a latent. numpy: as in the official StyleGAN2 scripts."""
    classes: Annotated[str | None, _classes("the first")] = None
    """Which classes, by name, like 3,5; the study is made of each."""
    trunc: Annotated[float, tyro.conf.arg(aliases=["--truncation"])] = 1.0
    """Truncation psi: 1 is full variety, less is more typical images, 0 the average image."""
    out: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in RUN)")] = None
    """Name of the picture, ending in .png, .jpg or .webp. Of a network at a URL: by default in the current folder."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""

    smallest_cell: ClassVar[int] = 96  # pixels of an image in the picture
    name: ClassVar[str]  # of the sub-command
    file_name: ClassVar[str]  # of the picture where `out` does not say
    endings: ClassVar[tuple[str, ...]] = STILL  # that `out` may have; none: any
    all_classes: ClassVar[bool] = False  # whether they are drawn where `classes` does not say
    sources: ClassVar[bool] = False  # whether the first row and column are those of a table

    def check(self) -> None:
        """Raises UserError for a mistake that shows without the checkpoint."""
        self._check_seeds("seeds")
        if self.out is not None and not self.is_folder() and Path(self.out).suffix.lower() not in self.endings:
            *others, last = self.endings
            raise UserError(f"--out {readable(self.out)}: the name must end in {', '.join(others)} or {last}")

    def _check_seeds(self, name: str) -> None:
        text, option = getattr(self, name), f"--{name.replace('_', '-')}"
        largest = max(parse_seeds(text, option))
        if self.seed_format == "numpy" and largest > LARGEST_NUMPY_SEED:
            raise UserError(
                f"{option} {text}: {largest} is out of range; a seed of numpy is from 0 to {LARGEST_NUMPY_SEED}"
            )

    def latents(self, generator: nn.Module, seeds: list[int]) -> Tensor:
        """Of these seeds, [len(seeds), z_dim]."""
        from fastgan.runs import drawing

        return drawing.latents(seeds, generator.z_dim, self.seed_format)

    def is_folder(self) -> bool:
        """Whether `out` is a folder for single images."""
        return False

    def images(self, classes: int) -> tuple[int, int]:
        """Columns and rows of images that the picture will have."""
        return self.columns(), len(parse_seeds(self.seeds)) * classes

    def columns(self) -> int:
        """Images beside each other."""
        return 1

    def require_memory(self, model: ModelConfig, classes: int, out: Path) -> None:
        """Raises UserError, before anything is drawn, for a picture that memory or its format cannot hold."""
        if self.is_folder() or out.suffix.lower() not in STILL:
            return
        (columns, rows), (height, width) = self.images(classes), model.plane(model.resolution)
        factor = enlargement(width, self.smallest_cell)
        width, height = width * factor, height * factor
        what = f"a picture of {columns:,} times {rows:,} images"
        require(6.0 * columns * width * rows * height, what, "give fewer --seeds, --classes or --steps")
        require_fits((columns * width, rows * height), out)

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        """Draw it and write it to `out`. Raises Unsupported if the generator lacks what it needs."""
        sections = []
        for class_name, label in labels:
            heading, columns, rows = self.study(generator, {"label": label, "truncation": self.trunc})
            sections.append(Section(self.titled(heading, class_name), rows, columns, self.sources))
        save_picture(draw_grid(sections, self.smallest_cell), out)

    def study(
        self, generator: nn.Module, options: dict[str, Any]
    ) -> tuple[str, list[str], list[tuple[str, np.ndarray]]]:
        """Heading, labels of the columns, and labelled rows of images uint8 [columns, H, W, C].

        `options` are what each function of `fastgan.studies` takes. Rows are drawn one by one, since floating-point
        images, of which there are many, take four times the memory.
        """
        raise NotImplementedError

    def titled(self, heading: str, class_name: str = "") -> str:
        """The first line of a heading, with what was chosen."""
        first, *others = heading.splitlines()
        first += f", class {class_name}" if class_name else ""
        first += f", truncation {self.trunc:g}" if self.trunc != 1 else ""
        return "\n".join([first, *others])


@dataclass(frozen=True, kw_only=True)
class Grid(Options):
    """Images of many latents: one picture of them all, or single files.

    The same checkpoint, seed and class always give the same image. It is what you get without a sub-command.
    """

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-9"
    """Which random latents: numbers and ranges, like 0-63 or 1,5,8-10."""
    classes: Annotated[str | None, _classes("all")] = None
    """Which classes, by name, like 3,5; each is drawn for every seed."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE|DIR", help_behavior_hint="(default: RUN/generated.png)")
    ] = None
    """A name that ends in .png, .jpg or .webp: one picture with a row of images a class. Without an ending a folder
    for single images, as PNG."""

    name, file_name, all_classes, smallest_cell = "grid", "generated.png", True, SMALLEST_CELL

    def is_folder(self) -> bool:
        if self.out is None:
            return False
        from PIL import Image

        ending = Path(self.out).suffix.lower()  # also of a folder like v1.5
        return Path(self.out).is_dir() or ending not in {*STILL, *ANIMATIONS, *Image.registered_extensions()}

    def images(self, classes: int) -> tuple[int, int]:
        seeds = len(parse_seeds(self.seeds))
        return min(seeds, GRID_COLUMNS), -(-seeds // GRID_COLUMNS) * classes

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        seeds = parse_seeds(self.seeds)
        rows = []
        for name, label in labels:
            if not self.is_folder():
                drawn = self._images(generator, seeds, label)
                rows += [(name, drawn[start : start + GRID_COLUMNS]) for start in range(0, len(drawn), GRID_COLUMNS)]
                continue
            start = "" if label is None else f"class{label:02d}-{name}-"  # the number: "a" and "A" may be one file name
            for seed in seeds:
                image = self._images(generator, [seed], label)[0]
                save_picture(to_picture(image), out / f"{start}seed{seed:04d}.png")
        if rows:
            save_picture(draw_grid([Section(f"seeds {self.seeds}, truncation {self.trunc:g}", rows)]), out)

    def _images(self, generator: nn.Module, seeds: list[int], label: int | None) -> np.ndarray:
        import torch

        from fastgan.runs import drawing

        labels = None if label is None else torch.full((len(seeds),), label)
        return drawing.draw(generator, self.latents(generator, seeds), labels, truncation=self.trunc)


@dataclass(frozen=True, kw_only=True)
class Classes(Options):
    """The same latents as each class: a row a class, a column a latent."""

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-7"
    """The random latents, a column each: numbers and ranges, like 0-7 or 1,5,8-10."""
    classes: Annotated[str | None, _classes("all")] = None
    """Which classes, by name, like 3,5."""

    name, file_name, all_classes = "classes", "classes.png", True

    def images(self, classes: int) -> tuple[int, int]:
        return len(parse_seeds(self.seeds)), classes

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        from fastgan import studies

        if labels[0][1] is None:
            network = f"this network of {studies.architecture(generator)}"
            raise studies.Unsupported(f"{network} was trained without classes")
        seeds = parse_seeds(self.seeds)
        rows = []
        for name, label in labels:
            images = studies.classes(generator, self.latents(generator, seeds), [label], truncation=self.trunc)
            rows.append((name, studies.to_uint8(images[0])))
        heading = self.titled("the same latent as each class")
        save_picture(draw_grid([Section(heading, rows, _named(seeds))], self.smallest_cell), out)


@dataclass(frozen=True, kw_only=True)
class Interpolate(Options):
    """From one latent to the next, and the next: a picture with a row for each pair, or an animation."""

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """The random latents to go through, two or more. An animation that ends where it began: 0-3,0."""
    space: Literal["slerp", "z", "w"] = "slerp"
    """slerp: along the arc between latents; z: straight between them; w: straight between their styles, for a
    style-based network."""
    steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {PICTURE_STEPS}; animation: {ANIMATION_STEPS})"),
    ] = None
    """Images from one latent to the next, with both of them."""
    fps: int = 25
    """Images a second of an animation, from 1 to 50."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/interpolate.png)")
    ] = None
    """A name that ends in .png, .jpg or .webp, or for an animation, with the classes side by side, in .gif or .mp4. MP4
    needs imageio-ffmpeg, the extra "video" of this package."""

    name, file_name, endings = "interpolate", "interpolate.png", STILL + ANIMATIONS

    def check(self) -> None:
        super().check()
        if len(parse_seeds(self.seeds)) < 2:
            raise UserError(f"--seeds {self.seeds}: give two or more to go between")
        if self.steps is not None and self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2, for both ends are among them")
        if not 1 <= self.fps <= 50:
            raise UserError(f"--fps {self.fps}: must be from 1 to 50")
        if self.out is not None and Path(self.out).suffix.lower() == ".mp4":
            require_video(Path(self.out))

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        if out.suffix.lower() in STILL:
            return super().write(generator, labels, out)
        from fastgan import studies

        z = self.latents(generator, parse_seeds(self.seeds))
        options = {"steps": self.steps or ANIMATION_STEPS, "space": self.space, "truncation": self.trunc}
        paths = [studies.interpolation_frames(generator, z, label=label, **options) for _, label in labels]
        frames = (np.concatenate([studies.to_uint8(image) for image in each], 1) for each in zip(*paths, strict=True))
        total = (len(parse_seeds(self.seeds)) - 1) * ((self.steps or ANIMATION_STEPS) - 1) + 1
        bar = ProgressBar(frames, total=total, unit=" images", leave=False)
        return save_animation(bar, out, self.fps)

    def images(self, classes: int) -> tuple[int, int]:
        return self.steps or PICTURE_STEPS, (len(parse_seeds(self.seeds)) - 1) * classes

    def require_memory(self, model: ModelConfig, classes: int, out: Path) -> None:
        super().require_memory(model, classes, out)
        if out.suffix.lower() == ".gif":  # all frames are there at the end; an MP4 is written as they come
            frames = (len(parse_seeds(self.seeds)) - 1) * (self.steps or ANIMATION_STEPS)
            height, width = model.plane(model.resolution)
            factor = enlargement(height, SMALLEST_FRAME)
            what = f"an animation of {frames:,} images"
            require(
                float(frames * classes * width * height * factor**2), what, "give fewer --steps or --seeds, or an .mp4"
            )

    def study(self, generator, options):
        from fastgan import studies

        steps = self.steps or PICTURE_STEPS
        rows = []
        for pair in itertools.pairwise(parse_seeds(self.seeds)):
            z = self.latents(generator, pair)
            images = studies.interpolate(generator, z, steps=steps, space=self.space, **options)
            rows.append((f"seed {pair[0]} to {pair[1]}", studies.to_uint8(images[0])))
        way = {"slerp": "the arc between latents", "z": "the line between latents", "w": "the line between styles"}
        return f"along {way[self.space]}", [f"{step / (steps - 1):.3g}" for step in range(steps)], rows


@dataclass(frozen=True, kw_only=True)
class Mix(Options):
    """Style mixing: images of source A in rows, with some layers' styles from the images of source B in columns.

    For a style-based network; figure 3 of Karras et al. 2019.
    """

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """Source A, the rows: numbers and ranges, like 0-7 or 1,5,8-10."""
    seeds_b: Annotated[str, tyro.conf.arg(metavar="LIST")] = "10-15"
    """Source B, the columns."""
    layers: Annotated[str, tyro.conf.arg(metavar="coarse|middle|fine|LIST")] = "coarse"
    """What comes from B: the layers of 4x4 and 8x8 (coarse), of 16x16 and 32x32 (middle), of 64x64 and more (fine), or
    some by number, like 2-4. There are two a resolution, from 0."""

    name, file_name, sources = "mix", "mix.png", True

    def columns(self) -> int:
        return 1 + len(parse_seeds(self.seeds_b, "--seeds-b"))

    def check(self) -> None:
        super().check()
        self._check_seeds("seeds_b")
        self._layers()

    def study(self, generator, options):
        from fastgan import studies

        seeds, seeds_b = parse_seeds(self.seeds), parse_seeds(self.seeds_b)
        layers = studies.style_layers(generator, self._layers())
        a, b = self.latents(generator, seeds), self.latents(generator, seeds_b)
        top = studies.to_uint8(studies.samples(generator, b, **options)[0])
        rows = [("source B", np.concatenate([np.full_like(top[:1], 255), top]))]  # an empty corner
        for seed, z in zip(seeds, a.split(1), strict=True):
            own = studies.samples(generator, z, **options)
            mixed = studies.mix(generator, z, b, layers, **options)
            rows.append((f"seed {seed}", np.concatenate([studies.to_uint8(part[0]) for part in (own, mixed)])))
        word = f" ({self.layers})" if self.layers in studies.LAYERS else ""
        heading = f"layers {_ranges(layers)}{word} of 0-{generator.num_ws - 1} from source B"
        return heading, ["source A", *_named(seeds_b)], rows

    def _layers(self) -> str | list[int]:
        if self.layers in ("coarse", "middle", "fine"):
            return self.layers
        if self.layers.isalpha():
            raise UserError(f"--layers {self.layers}: must be coarse, middle, fine, or numbers like 2-4")
        return parse_seeds(self.layers, "--layers")


@dataclass(frozen=True, kw_only=True)
class Noise(Options):
    """What the noise in the layers adds: in all, in none, in coarse or fine ones only; and how much in many draws.

    For a network with noise; figures 4 and 5 of Karras et al. 2019. Fine is from 64x64 on, or the last resolution of a
    smaller network.
    """

    draws: int = 100
    """Draws of the noise that the standard deviation is of."""

    name, file_name = "noise", "noise.png"

    def check(self) -> None:
        super().check()
        if not 2 <= self.draws <= MOST_DRAWS:
            raise UserError(f"--draws {self.draws}: must be from 2 to {MOST_DRAWS:,}")

    def columns(self) -> int:
        return 5

    def study(self, generator, options):
        from fastgan import studies

        seeds = parse_seeds(self.seeds)
        latents = self.latents(generator, seeds).split(1)
        images = [studies.to_uint8(studies.noise_by_layer(generator, z, **options)[0]) for z in latents]
        deviations = [studies.noise_deviation(generator, z, draws=self.draws, **options)[0] for z in latents]
        deviations = [deviation.mean(-3, keepdim=True).expand_as(deviation) for deviation in deviations]  # in grey
        largest = max(float(deviation.max()) for deviation in deviations)
        shown = [studies.to_uint8(2 * deviation / (largest or 1.0) - 1) for deviation in deviations]  # black is 0
        for image in shown:
            image[..., 3:] = 255  # opaque, where images are transparent
        rows = [(f"seed {s}", np.concatenate(row)) for s, *row in zip(seeds, images, shown, strict=True)]
        fine = studies.fine_noise_from(generator)
        heading = (
            f"noise by layer\ncoarse: to {fine // 2}x{fine // 2}, fine: from {fine}x{fine}\n"
            f"deviation over {self.draws} draws: white is {50 * largest:.3g} % of the range of images"
        )
        return heading, ["all noise", "none", "coarse only", "fine only", "deviation"], rows


@dataclass(frozen=True, kw_only=True)
class Truncation(Options):
    """Images at truncation psi from -1 over 0, the average image, to 1, the plain image.

    For a network with truncation; figure 8 of Karras et al. 2019.
    """

    steps: int = 9
    """How many psi, at equal distances."""
    trunc: tyro.conf.Suppress[tyro.conf.Fixed[float]] = 1.0  # it is what varies

    name, file_name = "truncation", "truncation.png"

    def check(self) -> None:
        super().check()
        if self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2, for -1 and 1 are among them")

    def columns(self) -> int:
        return self.steps

    def study(self, generator, options):
        from fastgan import studies

        psis = [2 * step / (self.steps - 1) - 1 for step in range(self.steps)]
        rows = []
        for seed in parse_seeds(self.seeds):
            z = self.latents(generator, [seed])
            images = studies.truncation_sweep(generator, z, psis, label=options["label"])
            rows.append((f"seed {seed}", studies.to_uint8(images[0])))
        return "truncation psi", [f"{psi:.3g}" for psi in psis], rows


@dataclass(frozen=True, kw_only=True)
class Growth(Options):
    """Images at every resolution that a growing network was trained at, enlarged to one size."""

    name, file_name = "growth", "growth.png"

    def study(self, generator, options):
        from fastgan import studies

        columns = [f"{resolution}x{resolution}" for resolution in studies.growth_levels(generator)]
        rows = []
        for seed in parse_seeds(self.seeds):
            z = self.latents(generator, [seed])
            rows.append((f"seed {seed}", studies.to_uint8(studies.growth(generator, z, **options)[0])))
        return "levels of growth", columns, rows


SUB_COMMANDS = {options.name: options for options in (Grid, Classes, Interpolate, Mix, Noise, Truncation, Growth)}


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse(sys.argv[1:] if argv is None else argv)
    folder = ", a folder for --out" if isinstance(options, Grid) else ""
    with shortage_is_a_mistake(f"give fewer --seeds or --classes{folder}, or another --device"):
        generate(options)
    return 0


def parse(argv: list[str]) -> Options:
    """Sub-command and options. Prints help and raises SystemExit if asked to; raises UserError for a mistake."""
    prog = program("generate")
    if argv and argv[0] in ("-h", "--help"):
        kinds = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in SUB_COMMANDS.items())
        tyro.cli(
            Union[kinds],  # noqa: UP007
            default=Grid(checkpoint=tyro.MISSING),
            prog=prog,
            description="Draw images from a trained generator, and pictures of what is behind them. "
            "A sub-command's own --help lists its options.",
            args=["--help"],
        )
    name = "grid"
    if argv and not argv[0].startswith("-"):
        name, *argv = argv
        if name not in SUB_COMMANDS:
            names = ", ".join(SUB_COMMANDS)
            raise UserError(f"{readable(name)}: no such sub-command; {nearest(name, SUB_COMMANDS)}there are {names}")
    return parse_options(SUB_COMMANDS[name], f"{prog} {name}", argv)


def generate(options: Options) -> None:
    """Draw what `options` asks for and write it. Raises UserError for a mistake in options or files."""
    options.check()

    from fastgan.runs import precision
    from fastgan.runs.drawing import Unsupported
    from fastgan.runs.networks import open_networks

    path, model, names, load, *_ = open_networks(options.checkpoint)
    labels = parse_classes(options.classes, names) or [("", None)]
    if options.classes is None and not options.all_classes:
        labels = labels[:1]
    folder = Path() if has_scheme(options.checkpoint) else path.parent
    out = Path(options.out) if options.out is not None else folder / options.file_name
    options.require_memory(model, len(labels), out)
    generator = load(precision.choose_device(options.device))
    if options.trunc != 1 and "truncation" not in generator.supports:
        raise UserError(f"--trunc {options.trunc:g}: {model.arch} has no truncation; leave it out")

    prepare_to_write(out / "image.png" if options.is_folder() else out)
    try:
        options.write(generator, labels, out)
    except Unsupported as error:
        raise UserError(f"{options.name}: {error}") from None
    print(out)


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """ "0-2,7" to [0, 1, 2, 7]. Raises UserError, naming the option, for anything else."""
    seeds, shown = [], readable(text)
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.strip().endswith("-"):
            raise UserError(
                f"{option} {shown}: {readable(part)!r} is no number from 0 up and no range; give something like "
                "0-63 or 1,5,8-10"
            )
        if max(len(first), len(last)) > len(str(LARGEST_SEED)) or int(last or first) > LARGEST_SEED:
            raise UserError(
                f"{option} {shown}: {readable(part.strip())} is out of range; a seed is from 0 to {LARGEST_SEED}"
            )
        if int(last or first) < int(first):
            raise UserError(f"{option} {shown}: the range {part} is empty; give the smaller number first")
        if int(last or first) - int(first) + 1 + len(seeds) > MOST_SEEDS:
            raise UserError(f"{option} {shown}: these are more than {MOST_SEEDS:,} at once; give fewer")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def parse_classes(text: str | None, names: list[str]) -> list[tuple[str, int]]:
    """Class names, comma separated, to (name, label); all of `names` if None. Raises UserError for an unknown one."""
    if text is None:
        return [(name, label) for label, name in enumerate(names)]
    if not names:
        raise UserError(f"--classes {text}: this network was trained without classes; leave it out")
    wanted = [part.strip() for part in text.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(f"--classes {text}: there is no class {name!r}; there are {', '.join(names)}")
    return [(name, names.index(name)) for name in wanted]


def _named(seeds: list[int]) -> list[str]:
    return [f"seed {seed}" for seed in seeds]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 7] to "0-2, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
