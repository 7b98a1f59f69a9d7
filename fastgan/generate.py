"""`python -m fastgan.generate`: draw images from a trained generator.

Exit status: 0 when done, 2 for a mistake in options or files, 130 after Ctrl-C; every image written is whole.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastgan.errors import UserError
from fastgan.training.config import LARGEST_SEED
from fastgan.training.memory import shortage_is_a_mistake

if TYPE_CHECKING:
    import numpy as np

GRID_COLUMNS = 16
MOST_SEEDS = 1_000_000  # more is a slip of the finger, and the list alone would fill the memory


@dataclass(frozen=True)
class Options:
    """Draw images from a trained generator: one picture of them all, or single files.

    The same checkpoint, seed and class always give the same image.
    """

    checkpoint: Annotated[str, tyro.conf.arg(metavar="RUN|FILE")]
    """Folder of a training run, or a checkpoint file."""
    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0-9"
    """Which random latents: numbers and ranges, like 0-63 or 1,5,8-10."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: all)")] = None
    """Which classes, by name, like 3,5; each is drawn for every seed."""
    trunc: float = 1.0
    """Truncation psi: 1 is full variety, less is more typical images, 0 the average image."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE|DIR", help_behavior_hint="(default: RUN/generated.png)")] = (
        None
    )
    """A name that ends in .png: one picture with a row of images a class. Else a folder for single images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = tyro.cli(Options, prog="python -m fastgan.generate", args=argv)
    try:
        with shortage_is_a_mistake("give fewer --seeds or --classes, a folder for --out, or another --device"):
            generate(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def generate(options: Options) -> None:
    """Draw what `options` asks for and write it. Raises UserError for a mistake in options or files."""
    seeds = parse_seeds(options.seeds)

    import torch

    from fastgan.training import checkpoint, precision, sampling
    from fastgan.training.grid import Section, draw_grid, save_png, to_picture

    header = checkpoint.read_header(options.checkpoint)
    classes = parse_classes(options.classes, header.dataset["class_names"])
    generator, _ = checkpoint.load_generator(header.path, precision.choose_device(options.device))

    out = Path(options.out) if options.out is not None else header.path.parent / "generated.png"
    single = out.suffix.lower() != ".png"
    try:
        (out if single else out.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder for --out {out}: {error.strerror}") from None

    def images(seeds: list[int], label: int | None) -> np.ndarray:
        labels = None if label is None else torch.full((len(seeds),), label)
        return sampling.draw(generator, sampling.latents(seeds, header.model.z_dim), labels, truncation=options.trunc)

    rows = []
    for name, label in classes or [("", None)]:
        if single:
            start = "" if label is None else f"class{label:02d}-{name}-"  # the number: "a" and "A" may be one file name
            for seed in seeds:
                save_png(to_picture(images([seed], label)[0]), out / f"{start}seed{seed:04d}.png")
        else:
            drawn = images(seeds, label)
            rows += [(name, drawn[start : start + GRID_COLUMNS]) for start in range(0, len(drawn), GRID_COLUMNS)]
    if rows:
        save_png(draw_grid([Section(f"seeds {options.seeds}, truncation {options.trunc:g}", rows)]), out)
    print(out)


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" to [0, 1, 2, 7]. Raises UserError for anything else."""
    seeds = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.strip().endswith("-"):
            raise UserError(
                f"--seeds {text}: {part!r} is no number from 0 up and no range; give something like 0-63 or 1,5,8-10"
            )
        if max(len(first), len(last)) > len(str(LARGEST_SEED)) or int(last or first) > LARGEST_SEED:
            raise UserError(f"--seeds {text}: {part.strip()} is out of range; a seed is from 0 to {LARGEST_SEED}")
        if int(last or first) < int(first):
            raise UserError(f"--seeds {text}: the range {part} is empty; give the smaller number first")
        if int(last or first) - int(first) + 1 + len(seeds) > MOST_SEEDS:
            raise UserError(f"--seeds {text}: these are more than {MOST_SEEDS:,} at once; give fewer")
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


if __name__ == "__main__":
    sys.exit(main())
