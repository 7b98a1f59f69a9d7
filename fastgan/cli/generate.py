"""`fastgan generate`: draw images from a trained generator, and pictures of studies of it.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C. Every image written is complete.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from fastgan import examples
from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line, nearest, program, readable
from fastgan.files import prepare_to_write, require_other
from fastgan.options import (
    LARGEST_NUMPY_SEED,
    LARGEST_SEED,
    HalfLife,
    PathText,
    SeedFormat,
    parse_options,
    print_commands,
)
from fastgan.progress import ProgressBar
from fastgan.runs.animation import ANIMATIONS, QUALITY, SMALLEST_FRAME, require_animation, save_animation
from fastgan.runs.grid import (
    PICTURES,
    SMALLEST_CELL,
    Section,
    draw_grid,
    enlargement,
    require_fits,
    save_picture,
    to_picture,
)
from fastgan.runs.memory import out_of_memory_is_user_error, require

if TYPE_CHECKING:  # torch is imported after the options are parsed, so that --help is quick
    import numpy as np
    import torch
    from torch import nn

    from fastgan.models import ModelConfig


GRID_COLUMNS = 16
STILL, MOVING = tuple(PICTURES), tuple(ANIMATIONS)
PICTURE_STEPS, ANIMATION_STEPS = 9, 48
FPS = 25
MOST_FRAMES = 1_000_000  # of an animation: a longer one is a typing error
MOST_SIDES = 100  # beyond, places in the scene lose precision
MAX_DRAWS = 100_000  # the deviation has converged long before
MAX_SEEDS = 1_000_000  # a longer list is a typing error, and would fill the memory


def _classes(default: str):
    """How tyro presents --classes."""
    return tyro.conf.arg(metavar="LIST", aliases=["--class"], help_behavior_hint=f"(default: {default})")


Label = tuple[str, int | None]  # the name of a class and its number; ("", None) for a network without classes


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that all sub-commands share. A study is a subclass with `study`, which draws one section a class."""

    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
    local or at a URL. hf://USER/NAME, one of the Hugging Face hub. example:digits, one that comes with fastgan."""
    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """Seeds of the random latents, a row each: numbers and ranges, like 0-7 or 1,5,8-10."""
    seed_format: SeedFormat = "torch"
    """How a seed becomes a latent. numpy: as in the official StyleGAN2 scripts."""
    classes: Annotated[str | None, _classes("the first")] = None
    """Classes by name, like 3,5; the study is repeated for each."""
    trunc: Annotated[float, tyro.conf.arg(aliases=["--truncation"])] = 1.0
    """Truncation psi: 1 is full variety, less is more typical images, 0 the average image."""
    projected: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Latents that `fastgan project` has found, in place of random ones; --seeds are then their numbers, by default
    all. Styles have a class in them; to others give --class."""
    edit: Annotated[str, tyro.conf.arg(metavar="NAME=NUMBER,...", help_behavior_hint="(default: none)")] = ""
    """Moves all images along directions of w, like f0=2.5,f3=-1: names that `fastgan directions` has found, and
    strengths in their standard deviations."""
    directions: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/directions.safetensors)")
    ] = None
    """File of directions for --edit."""
    out: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in RUN)")] = None
    """File name of the picture, ending in .png, .jpg or .webp. The default is in the current folder for a URL or an
    example."""
    ema: HalfLife = None
    """Half-life of the EMA to draw from, in thousands of images, of a training that has kept several."""
    device: str = "auto"
    """cpu, cuda, or cuda:1 and so on. auto: the first GPU if there is one, else the CPU."""

    smallest_cell: ClassVar[int] = 96  # least width in pixels of an image in the picture
    name: ClassVar[str]  # of the sub-command
    file_name: ClassVar[str]  # default of `out`, in the run's folder
    endings: ClassVar[tuple[str, ...]] = STILL  # allowed in `out`
    all_classes: ClassVar[bool] = False  # the default of `classes`: all, or the first

    def check(self) -> None:
        """Raises UserError for options that are wrong for any checkpoint."""
        self._check_seeds("seeds")
        if self.directions is not None and not self.edits():
            raise UserError(f"--directions {readable(self.directions)}: is for --edit; give both or neither")
        if self.projected is not None and self.seed_format == "numpy":
            raise UserError("--seed-format numpy: is of random latents, not of --projected; leave one of them out")
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

    def edits(self) -> dict[str, float]:
        """Strengths by name, of `edit`. Raises UserError for another form."""
        found = {}
        for part in filter(None, self.edit.split(",")):
            name, _, number = (text.strip() for text in part.rpartition("="))
            try:
                strength = float(number)
            except ValueError:
                strength = math.nan
            if not name or not math.isfinite(strength):
                raise UserError(f"--edit {readable(part)}: must be a name and a number, like f0=2.5")
            found[name] = strength
        return found

    def is_folder(self) -> bool:
        """Whether `out` is a folder for single images."""
        return False

    def images(self, classes: int) -> tuple[int, int]:
        """Number of columns and rows of images in the picture."""
        return self.columns(), len(parse_seeds(self.seeds)) * classes

    def columns(self) -> int:
        return 1

    def require_memory(self, model: ModelConfig, classes: int, out: Path) -> None:
        """Raises UserError, before anything is drawn, for a picture too large for the memory or its file format."""
        if self.is_folder() or out.suffix.lower() not in STILL:
            return
        (columns, rows), (height, width) = self.images(classes), model.feature_size(model.resolution)
        factor = enlargement(width, self.smallest_cell)
        width, height = width * factor, height * factor
        what = f"a picture of {columns:,} times {rows:,} images"
        require(6.0 * columns * width * rows * height, what, "give fewer --seeds, --classes or --steps")
        require_fits((columns * width, rows * height), out)

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        """Draw the picture and write it to `out`. Raises Unsupported if the generator lacks what it needs."""
        sections = []
        for class_name, label in labels:
            section = self.study(generator, label=label, truncation=self.trunc, seed_format=self.seed_format)
            sections.append(self.titled(section, class_name))
        save_picture(draw_grid(sections, self.smallest_cell), out)

    def study(self, generator: nn.Module, **settings: Any) -> Section:
        """One section of the picture. settings: `label`, `truncation` and `seed_format`, see `fastgan.figures`."""
        raise NotImplementedError

    def titled(self, section: Section, class_name: str = "") -> Section:
        """The section with its class and truncation in the first line of its heading."""
        first, *others = section.heading.splitlines()
        first += f", class {class_name}" if class_name else ""
        first += f", truncation {self.trunc:g}" if self.trunc != 1 else ""
        first += f", edited by {self.edit}" if self.edit else ""
        return section._replace(heading="\n".join([first, *others]))


@dataclass(frozen=True, kw_only=True)
class Grid(Options):
    """Images of many latents: one picture of them all, or a file each.

    The same checkpoint, seed and class always give the same image. This is the default sub-command.
    """

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-9"
    """Seeds of the random latents: numbers and ranges, like 0-63 or 1,5,8-10."""
    classes: Annotated[str | None, _classes("all")] = None
    """Classes by name, like 3,5; each is drawn for every seed."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE|DIR", help_behavior_hint="(default: RUN/generated.png)")
    ] = None
    """A name that ends in .png, .jpg or .webp: one picture with a row of images a class. A name without an ending: a
    folder for single images, as PNG."""

    name, file_name, all_classes, smallest_cell = "grid", "generated.png", True, SMALLEST_CELL

    def is_folder(self) -> bool:
        if self.out is None:
            return False
        from PIL import Image

        ending = Path(self.out).suffix.lower()  # also of a folder like v1.5
        return Path(self.out).is_dir() or ending not in {*STILL, *MOVING, *Image.registered_extensions()}

    def images(self, classes: int) -> tuple[int, int]:
        seeds = len(parse_seeds(self.seeds))
        return min(seeds, GRID_COLUMNS), -(-seeds // GRID_COLUMNS) * classes

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        from fastgan.runs import drawing

        seeds, batch = parse_seeds(self.seeds), drawing.recommended_batch(generator)
        if self.is_folder():
            for name, label in labels:
                # The class's number as well: "a" and "A" may be one file name.
                start = "" if label is None else f"class{label:02d}-{name}-"
                for first in range(0, len(seeds), batch):
                    part = seeds[first : first + batch]
                    for seed, image in zip(part, self._draw(generator, part, label), strict=True):
                        save_picture(to_picture(image), out / f"{start}seed{seed:04d}.png")
            return
        heading = f"seeds {self.seeds}, truncation {self.trunc:g}" + (f", edited by {self.edit}" if self.edit else "")
        rows = []
        for name, label in labels:
            drawn = self._draw(generator, seeds, label)
            rows += [(name, drawn[start : start + GRID_COLUMNS]) for start in range(0, len(drawn), GRID_COLUMNS)]
        save_picture(draw_grid([Section(heading, rows)]), out)

    def _draw(self, generator: nn.Module, seeds: list[int], label: int | None) -> np.ndarray:
        import torch

        from fastgan.runs import drawing

        z = drawing.latents(seeds, generator.z_dim, self.seed_format)
        labels = None if label is None else torch.full((len(seeds),), label)
        batch = drawing.recommended_batch(generator)
        return drawing.draw(generator, z, labels, truncation=self.trunc, batch=batch)


@dataclass(frozen=True, kw_only=True)
class Classes(Options):
    """The same latents as each class: a row a class, a column a latent."""

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-7"
    """Seeds of the random latents, a column each: numbers and ranges, like 0-7 or 1,5,8-10."""
    classes: Annotated[str | None, _classes("all")] = None
    """Classes by name, like 3,5."""

    name, file_name, all_classes = "classes", "classes.png", True

    def images(self, classes: int) -> tuple[int, int]:
        return len(parse_seeds(self.seeds)), classes

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        from fastgan import figures

        settings = {"truncation": self.trunc, "seed_format": self.seed_format}
        section = figures.classes(generator, parse_seeds(self.seeds), labels, **settings)
        save_picture(draw_grid([self.titled(section)], self.smallest_cell), out)


@dataclass(frozen=True, kw_only=True)
class Animated(Options):
    """Base class of studies that can be animations."""

    fps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {FPS})")] = None
    """Frames per second of an animation, from 1 to 50, of an .mp4 to 120."""
    quality: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {QUALITY})")] = None
    """Quality of an .mp4, from 1, the smallest file, to 10, nearest to the images."""

    def check(self) -> None:
        super().check()
        out = Path(self.file_name if self.out is None else self.out)
        if out.suffix.lower() in MOVING:
            require_animation(out, self._fps())
        elif self.fps is not None:
            raise UserError(f"--fps {self.fps}: is of an animation, and {readable(str(out))} is none")
        if self.quality is not None and out.suffix.lower() != ".mp4":
            raise UserError(f"--quality {self.quality}: is of an .mp4, and {readable(str(out))} is none")
        if self.quality is not None and not 1 <= self.quality <= 10:
            raise UserError(f"--quality {self.quality}: must be from 1 to 10")

    def _fps(self) -> int:
        return FPS if self.fps is None else self.fps

    def require_memory_of_frames(self, count: int, images: tuple[int, int], model: ModelConfig, out: Path) -> None:
        """Raises UserError for more frames than anyone wants, or frames too large for the memory or the file's format.

        images: columns and rows of a frame.
        """
        if count > MOST_FRAMES:
            raise UserError(f"an animation of {count:,} frames is too long; give fewer --steps or --seeds")
        (columns, rows), (height, width) = images, model.feature_size(model.resolution)
        factor = enlargement(rows * height, SMALLEST_FRAME)
        size = columns * width * factor, rows * height * factor
        largest = ANIMATIONS[out.suffix.lower()].largest
        if max(size) > largest:
            raise UserError(
                f"{out}: a frame of {size[0]}x{size[1]} is larger than the {largest} pixels that a side of "
                f"{out.suffix} may have; give fewer --seeds or --classes"
            )
        require(60.0 * size[0] * size[1], f"frames of {columns:,} times {rows:,} images", "give fewer --seeds")

    def save(self, frames: Iterator[np.ndarray], total: int, out: Path) -> None:
        """Write an animation, with its progress."""
        progress = ProgressBar(frames, total=total, unit=" frames", leave=False)
        save_animation(progress, out, self._fps(), QUALITY if self.quality is None else self.quality)


@dataclass(frozen=True, kw_only=True)
class Interpolate(Animated):
    """Interpolation from each latent to the next: a picture with a row a pair, or an animation."""

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """Seeds of the random latents to go through, two or more."""
    space: Literal["auto", "slerp", "z", "w", "spline"] = "auto"
    """Path through the latents. slerp: the arc between two. z: the straight line. w: the line between their styles.
    spline: a smooth curve through the styles of all. The last two need a style-based network. auto: spline for an
    animation of one, else slerp."""
    loop: bool = False
    """Also go from the last latent to the first, so that an animation ends where it begins."""
    steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: {PICTURE_STEPS}; animation: {ANIMATION_STEPS})"),
    ] = None
    """Images from one latent to the next, both included."""
    grid: Annotated[str, tyro.conf.arg(metavar="COLUMNSxROWS")] = "1x1"
    """Several interpolations at once, in the frames of an animation: --grid 4x2 --seeds 0-23 are 8, of 3 seeds each."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/interpolate.png)")
    ] = None
    """A name that ends in .png, .jpg or .webp; or in .gif or .mp4, for an animation with the classes side by side. MP4
    needs PyAV, the extra "video" of this package."""

    name, file_name, endings = "interpolate", "interpolate.png", STILL + MOVING

    def check(self) -> None:
        super().check()
        if self.steps is not None and self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2, for both ends are among them")
        if self._grid() != (1, 1) and not self._moves():
            raise UserError(f"--grid {self.grid}: is of an animation; give --out a name that ends in .gif or .mp4")
        if self.projected is None:  # else --seeds are numbers of latents that are still to be read
            self._keyframes()

    def images(self, classes: int) -> tuple[int, int]:
        return self.steps or PICTURE_STEPS, (len(parse_seeds(self.seeds)) - 1 + self.loop) * classes

    def require_memory(self, model: ModelConfig, classes: int, out: Path) -> None:
        super().require_memory(model, classes, out)
        if self._moves():
            columns, rows = self._grid()
            self.require_memory_of_frames(self._frames(), (classes * columns, rows), model, out)

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        seeds = self._keyframes()
        if not self._moves():
            return super().write(generator, labels, out)
        from fastgan import figures

        frames = figures.interpolation_frames(
            generator,
            seeds,
            [label for _, label in labels],
            steps=self.steps or ANIMATION_STEPS,
            space=self._space(generator),
            loop=self.loop,
            grid=self._grid(),
            truncation=self.trunc,
            seed_format=self.seed_format,
        )
        return self.save(frames, self._frames(), out)

    def study(self, generator, **settings):
        from fastgan import figures

        settings |= {"steps": self.steps or PICTURE_STEPS, "space": self._space(generator), "loop": self.loop}
        return figures.interpolation(generator, parse_seeds(self.seeds), **settings)

    def _moves(self) -> bool:
        """Whether it is an animation."""
        return self.out is not None and Path(self.out).suffix.lower() in MOVING

    def _space(self, generator: nn.Module) -> Any:
        """The space; for "auto" the one that suits this network."""
        if self.space != "auto":
            return self.space
        from fastgan.models.style_based import StyleBasedGenerator

        return "spline" if self._moves() and isinstance(generator, StyleBasedGenerator) else "slerp"

    def _grid(self) -> tuple[int, int]:
        """Columns and rows of `grid`."""
        parts = self.grid.lower().split("x")
        if len(parts) != 2 or not all(re.fullmatch("[1-9][0-9]{0,2}", part) for part in parts):
            raise UserError(f"--grid {readable(self.grid)}: must be two numbers, like 4x2")
        return int(parts[0]), int(parts[1])

    def _keyframes(self) -> list[int]:
        """The seeds. Raises UserError if there are no interpolations through them."""
        seeds, (columns, rows) = parse_seeds(self.seeds), self._grid()
        if len(seeds) < 2:
            raise UserError(f"--seeds {self.seeds}: give two or more to interpolate between")
        if len(seeds) % (columns * rows) or len(seeds) < 2 * columns * rows:
            raise UserError(
                f"--grid {self.grid}: --seeds {self.seeds} are {len(seeds)}, must be two or more for each of "
                f"{columns * rows} interpolations, and as many for each"
            )
        if self.loop and seeds[0] == seeds[-1]:
            raise UserError(f"--seeds {self.seeds}: end where they begin, as --loop does; leave out one of the two")
        return seeds

    def _frames(self) -> int:
        """Number of frames of the animation."""
        columns, rows = self._grid()
        keyframes = len(parse_seeds(self.seeds)) // (columns * rows)
        steps = (self.steps or ANIMATION_STEPS) - 1
        return keyframes * steps if self.loop else (keyframes - 1) * steps + 1


@dataclass(frozen=True, kw_only=True)
class Move(Animated):
    """Base class of animations of scenes that move. Subclasses define `transform`, for a network whose first layer has
    an input that can be moved."""

    steps: int = ANIMATION_STEPS
    """Frames, after which the animation begins anew."""
    beside: Annotated[PathText | None, tyro.conf.arg(metavar="RUN|FILE|URL", help_behavior_hint="(default: none)")] = (
        None
    )
    """Another network, drawn below at the same frames, from the same seeds. For a StyleGAN2, whose images do not move
    with its input, the constant input is resampled."""

    endings = MOVING

    def check(self) -> None:
        super().check()
        if self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2")
        if self.beside is not None and self.edits():
            raise UserError(f"--edit {readable(self.edit)}: directions are of one network; leave out --beside")

    def transform(self, share: torch.Tensor) -> torch.Tensor:
        """The transforms, [F, 3, 3], at these shares of the animation, [F], from 0 to below 1."""
        raise NotImplementedError

    def require_memory(self, model: ModelConfig, classes: int, out: Path) -> None:
        rows = classes * (1 + (self.beside is not None))
        self.require_memory_of_frames(self.steps, (len(parse_seeds(self.seeds)), rows), model, out)

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        frames: Iterator[np.ndarray] = self._frames(generator, labels)
        if self.beside is not None:
            frames = map(one_below_another, frames, self._frames_beside(labels))
        self.save(frames, self.steps, out)

    def _frames(self, generator: nn.Module, labels: list[Label]) -> Iterator[np.ndarray]:
        import torch

        from fastgan import figures

        numbers = [label for _, label in labels]
        transforms = self.transform(torch.arange(self.steps) / self.steps)
        settings = {"truncation": self.trunc, "seed_format": self.seed_format}
        return figures.moving_frames(generator, parse_seeds(self.seeds), numbers, transforms, **settings)

    def _frames_beside(self, labels: list[Label]) -> Iterator[np.ndarray]:
        from fastgan.runs import precision
        from fastgan.runs.networks import open_networks

        _, _, names, load, *_ = open_networks(self.beside)
        if names and labels[0][1] is None:
            labels = parse_classes(None, names)[:1]
        elif names:
            labels = parse_classes(",".join(name for name, _ in labels), names)
        else:
            labels = [("", None)] * len(labels)
        return self._frames(load(precision.choose_device(self.device)), labels)


@dataclass(frozen=True, kw_only=True)
class Translate(Move):
    """An animation of scenes that move to one side and back: a stylegan3 draws them anew at every place.

    Latents side by side. Details that do not move with their object stick to the pixels (Karras et al. 2021).
    """

    x: float = 0.25
    """Farthest place to the right, in widths of the image; negative: to the left."""
    y: float = 0.0
    """Farthest place downwards, in heights of the image; negative: upwards."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/translate.gif)")
    ] = None
    """A name that ends in .gif, or in .mp4, which needs PyAV, the extra "video" of this package."""

    name, file_name = "translate", "translate.gif"

    def check(self) -> None:
        super().check()
        for name, value in (("x", self.x), ("y", self.y)):
            if not -MOST_SIDES <= value <= MOST_SIDES:
                raise UserError(f"--{name} {value:g}: must be from -{MOST_SIDES} to {MOST_SIDES}")

    def transform(self, share: torch.Tensor) -> torch.Tensor:
        from fastgan import studies

        there = there_and_back(share)
        return studies.translation(self.x * there, self.y * there)


@dataclass(frozen=True, kw_only=True)
class Rotate(Move):
    """An animation of scenes that turn around the image's centre: a stylegan3 draws them anew at every angle.

    Latents side by side. Images of stylegan3's variant r turn as a whole; those of t only begin to.
    """

    degrees: float = 360.0
    """Counter-clockwise; negative: clockwise. Whole turns go on for ever, others go back as well."""
    out: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/rotate.gif)")] = (
        None
    )
    """A name that ends in .gif, or in .mp4, which needs PyAV, the extra "video" of this package."""

    name, file_name = "rotate", "rotate.gif"

    def check(self) -> None:
        super().check()
        if not math.isfinite(self.degrees):
            raise UserError(f"--degrees {self.degrees:g}: must be a finite number")

    def transform(self, share: torch.Tensor) -> torch.Tensor:
        from fastgan import studies

        turned = share if self.degrees % 360 == 0 else there_and_back(share)
        return studies.rotation(math.radians(self.degrees) * turned)

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        super().write(generator, labels, out)
        if getattr(generator, "turns", True) is False:
            print("note: these images need not turn as a whole; of stylegan3 only variant r is made to")


@dataclass(frozen=True, kw_only=True)
class Mix(Options):
    """Style mixing: images of source A in rows, with the styles of some layers from the images of source B in columns.

    For a style-based network; figure 3 of Karras et al. 2019.
    """

    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-3"
    """Seeds of source A, the rows: numbers and ranges, like 0-7 or 1,5,8-10."""
    seeds_b: Annotated[str, tyro.conf.arg(metavar="LIST")] = "10-15"
    """Seeds of source B, the columns."""
    layers: Annotated[str, tyro.conf.arg(metavar="coarse|middle|fine|LIST")] = "coarse"
    """Layers that take their style from B: those of 4x4 and 8x8 (coarse), of 16x16 and 32x32 (middle), of 64x64 and
    more (fine), or numbers, like 2-4. Each resolution has two layers, counted from 0."""

    name, file_name = "mix", "mix.png"

    def check(self) -> None:
        super().check()
        self._check_seeds("seeds_b")
        self._layers()

    def columns(self) -> int:
        return 1 + len(parse_seeds(self.seeds_b, "--seeds-b"))

    def study(self, generator, **settings):
        from fastgan import figures

        seeds, seeds_b = parse_seeds(self.seeds), parse_seeds(self.seeds_b)
        return figures.mixing(generator, seeds, seeds_b, self._layers(), **settings)

    def _layers(self) -> str | list[int]:
        if self.layers in ("coarse", "middle", "fine"):
            return self.layers
        if self.layers.isalpha():
            raise UserError(f"--layers {self.layers}: must be coarse, middle, fine, or numbers like 2-4")
        return parse_seeds(self.layers, "--layers")


@dataclass(frozen=True, kw_only=True)
class Noise(Options):
    """Effect of the noise in the layers: images with noise in all, no, coarse and fine layers, and the standard
    deviation over many draws.

    For a network with noise; figures 4 and 5 of Karras et al. 2019. Fine is from 64x64 on, or the last resolution of a
    smaller network.
    """

    draws: int = 100
    """Draws of the noise for the standard deviation."""

    name, file_name = "noise", "noise.png"

    def check(self) -> None:
        super().check()
        if not 2 <= self.draws <= MAX_DRAWS:
            raise UserError(f"--draws {self.draws}: must be from 2 to {MAX_DRAWS:,}")

    def columns(self) -> int:
        return 5

    def study(self, generator, **settings):
        from fastgan import figures

        return figures.noise(generator, parse_seeds(self.seeds), draws=self.draws, **settings)


@dataclass(frozen=True, kw_only=True)
class Truncation(Options):
    """Images at truncation psi from -1 over 0, the average image, to 1, the plain image.

    For a network with truncation; figure 8 of Karras et al. 2019.
    """

    steps: int = 9
    """Number of psi, equally spaced."""
    trunc: tyro.conf.Suppress[tyro.conf.Fixed[float]] = 1.0  # psi is what varies

    name, file_name = "truncation", "truncation.png"

    def check(self) -> None:
        super().check()
        if self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2, for -1 and 1 are among them")

    def columns(self) -> int:
        return self.steps

    def study(self, generator, *, truncation, **settings):
        from fastgan import figures

        psis = [2 * step / (self.steps - 1) - 1 for step in range(self.steps)]
        return figures.truncation(generator, parse_seeds(self.seeds), psis, **settings)


@dataclass(frozen=True, kw_only=True)
class Growth(Options):
    """Images at every resolution that a growing network was trained at, enlarged to one size."""

    name, file_name = "growth", "growth.png"

    def study(self, generator, **settings):
        from fastgan import figures

        return figures.growth(generator, parse_seeds(self.seeds), **settings)


SUB_COMMANDS = {
    options.name: options for options in (Grid, Classes, Interpolate, Translate, Rotate, Mix, Noise, Truncation, Growth)
}


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse(sys.argv[1:] if argv is None else argv)
    folder = ", a folder for --out" if isinstance(options, Grid) else ""
    with out_of_memory_is_user_error(f"give fewer --seeds or --classes{folder}, or another --device"):
        generate(options)
    return 0


def parse(argv: list[str]) -> Options:
    """Parse the sub-command and its options. Prints help and raises SystemExit if asked to; raises UserError."""
    prog = program("generate")
    if argv and argv[0] in ("-h", "--help"):
        description = (
            "Draw images from a trained generator, and pictures of studies of it.\n\n"
            f"Options of a sub-command: `{prog} NAME --help`."
        )
        print_commands(SUB_COMMANDS, prog, Grid(checkpoint=tyro.MISSING), description)
    name = "grid"
    if argv and not argv[0].startswith("-"):
        name, *argv = argv
        if name not in SUB_COMMANDS:
            names = ", ".join(SUB_COMMANDS)
            raise UserError(f"{readable(name)}: no such sub-command; {nearest(name, SUB_COMMANDS)}there are {names}")
    return parse_options(SUB_COMMANDS[name], f"{prog} {name}", argv)


def generate(options: Options) -> None:
    """Draw and write the pictures that `options` asks for. Raises UserError for a wrong option or file."""
    options.check()

    from fastgan.runs import precision, process
    from fastgan.runs.drawing import Unsupported
    from fastgan.runs.networks import open_networks

    process.keep_freed_memory()
    path, model, names, load, *_ = open_networks(options.checkpoint, options.ema)
    labels = parse_classes(options.classes, names) or [("", None)]
    if options.classes is None and not options.all_classes:
        labels = labels[:1]
    folder = Path() if has_scheme(options.checkpoint) else path.parent
    out = Path(options.out) if options.out is not None else folder / options.file_name
    options.require_memory(model, len(labels), out)
    for file in (out, out.with_suffix(".safetensors")):
        require_other(file, [path])
    generator = load(precision.choose_device(options.device))
    if options.trunc != 1 and "truncation" not in generator.supports:
        raise UserError(f"--trunc {options.trunc:g}: {model.arch} has no truncation; leave it out")

    if options.projected is not None:
        options, generator = with_latents(options, generator)
        if options.seed_format.ndim == 3:  # styles, which have a class in them
            if options.classes is not None:
                raise UserError(
                    f"--projected {options.projected}: its styles have a class in them; leave out --classes"
                )
            labels = [("", None)]
    prepare_to_write(out / "image.png" if options.is_folder() else out)
    try:
        with edited(generator, options, folder):
            options.write(generator, labels, out)
    except Unsupported as error:
        raise UserError(f"{options.name}: {error}") from None
    if examples.is_example(options.checkpoint):
        print(f"{options.checkpoint} is described in {examples.card_of(options.checkpoint)}")
    print(out)


def with_latents(options: Options, generator: nn.Module) -> tuple[Options, nn.Module]:
    """The options with the latents of `options.projected` as their seeds, and the generator with its noise maps.

    Raises UserError if they do not fit.
    """
    from fastgan import projection, studies

    file = Path(options.projected)
    if getattr(options, "beside", None) is not None:
        raise UserError(f"--projected {file}: are latents of one network; leave out --beside")
    found = projection.load(file)
    latents = found.latents
    if latents.shape[1:] not in studies.shapes_of_latents(generator):
        shown = f"{'styles' if latents.ndim == 3 else 'latents'} {list(latents.shape)}"
        raise UserError(f"--projected {file}: has {shown}, which are of another network") from None
    given = {}
    for name in ("seeds", "seeds_b"):
        if hasattr(options, name):
            text = getattr(options, name)
            all_of_them = f"0-{len(latents) - 1}" if len(latents) > 1 else "0"
            is_default = text == next(field.default for field in fields(options) if field.name == name)
            given[name] = all_of_them if is_default else text
            if max(parse_seeds(given[name])) >= len(latents):
                raise UserError(f"--{name.replace('_', '-')} {text}: {file} has images 0 to {len(latents) - 1}")
    if isinstance(options, Move | Growth):
        if found.noise:
            print(f"note: {options.name} draws with the network's own noise, not with that of {file}")
    else:
        try:
            generator, latents = projection.with_noise(generator, found)
        except ValueError as error:
            raise UserError(f"--projected {file}: {error}") from None
    return replace(options, seed_format=latents, **given), generator


def edited(generator: nn.Module, options: Options, folder: Path) -> AbstractContextManager[None]:
    """Edits the generator by `options.edit`, within a block. Raises UserError for directions that it lacks.

    folder: of the run.
    """
    edits = options.edits()
    if not edits:
        return nullcontext()
    from fastgan import editing

    file = folder / editing.FILE_NAME if options.directions is None else Path(options.directions)
    directions = editing.load(file)
    try:
        editing.style_offset(editing.require_styles(generator), directions, edits)
    except ValueError as error:
        raise UserError(f"--edit {options.edit}: {error} ({file})") from None
    return editing.edited(generator, directions, edits)


def there_and_back(share: torch.Tensor) -> torch.Tensor:
    """From 0 to 1 and back to 0, slowly at both ends, for shares from 0 to 1."""
    return (1 - (2 * math.pi * share).cos()) / 2


def one_below_another(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One frame of two, uint8 [H, W, C]. Raises UserError if they differ in size or colours."""
    import numpy as np

    if first.shape != second.shape:
        shown = ["{1}x{0}, {2} channels".format(*frame.shape) for frame in (second, first)]
        raise UserError(f"--beside: its frames are {shown[0]}, must be {shown[1]} as those of --checkpoint")
    return np.concatenate([first, second])


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """ "0-2,7" to [0, 1, 2, 7]. Raises UserError, naming the option, for anything else."""
    seeds, shown = [], readable(text)
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.strip().endswith("-"):
            raise UserError(
                f"{option} {shown}: {readable(part)!r} is neither a number from 0 up nor a range; give something like "
                "0-63 or 1,5,8-10"
            )
        if max(len(first), len(last)) > len(str(LARGEST_SEED)) or int(last or first) > LARGEST_SEED:
            raise UserError(
                f"{option} {shown}: {readable(part.strip())} is out of range; a seed is from 0 to {LARGEST_SEED}"
            )
        if int(last or first) < int(first):
            raise UserError(f"{option} {shown}: the range {part} is empty; give the smaller number first")
        if int(last or first) - int(first) + 1 + len(seeds) > MAX_SEEDS:
            raise UserError(f"{option} {shown}: more than {MAX_SEEDS:,} at once; give fewer")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def parse_classes(text: str | None, names: list[str], option: str = "--classes") -> list[tuple[str, int]]:
    """Comma-separated class names to (name, label); all of `names` if None. Raises UserError for an unknown name."""
    if text is None:
        return [(name, label) for label, name in enumerate(names)]
    if not names:
        raise UserError(f"{option} {text}: this network was trained without classes; leave it out")
    wanted = [part.strip() for part in text.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(f"{option} {text}: there is no class {name!r}; there are {', '.join(names)}")
    return [(name, names.index(name)) for name in wanted]
