"""`fastgan directions`: find directions in w along which images change, draw them, and save them.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastgan.cli.generate import Label, Options, generate, parse_seeds
from fastgan.errors import UserError, command_line, program, readable
from fastgan.options import PathText, parse_options
from fastgan.runs.grid import draw_grid, save_picture
from fastgan.runs.memory import out_of_memory_is_user_error

if TYPE_CHECKING:
    from torch import nn

    from fastgan.editing import Direction

MOST = 4096  # directions, and samples in thousands: more is a typing error


@dataclass(frozen=True, kw_only=True)
class Directions(Options):
    """Find directions in w along which images change in one way, ranked; write a sheet of them, directions x strengths,
    and beside it a file with which `fastgan generate --edit NAME=STRENGTH` edits.

    For a style-based network.
    """

    method: Literal["factorization", "components", "classes"] = "factorization"
    """factorization: what changes the layers' styles most (Shen and Zhou 2021). components: the principal components of
    w (Härkönen et al. 2020). classes: towards each class of a conditional network."""
    count: int = 8
    """Directions, the strongest first. Of classes all are found."""
    layers: Annotated[str, tyro.conf.arg(metavar="all|coarse|middle|fine|LIST")] = "all"
    """Layers that are edited: those of 4x4 and 8x8 (coarse), of 16x16 and 32x32 (middle), of 64x64 and more (fine), or
    numbers, like 2-4. Each resolution has two layers, counted from 0."""
    strength: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 4, of classes 2)")
    ] = None
    """The sheet's last column, and with a minus its first: standard deviations of w along a direction. Of classes, 1
    is the distance of the class's mean from that of all."""
    steps: int = 5
    """Columns of the sheet, equally spaced."""
    samples: int = 10
    """Latents, in thousands, that the distribution of w is measured by."""
    seeds: Annotated[str, tyro.conf.arg(metavar="LIST")] = "0"
    """Seeds of the random latents that are edited, a table each."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/directions.png)")
    ] = None
    """File name of the sheet, ending in .png, .jpg or .webp. The directions are saved beside it, as .safetensors."""

    name, file_name = "directions", "directions.png"

    def check(self) -> None:
        super().check()
        for name, value in (("count", self.count), ("samples", self.samples)):
            if not 1 <= value <= MOST:
                raise UserError(f"--{name} {value}: must be from 1 to {MOST:,}")
        if self.strength is not None and not math.isfinite(self.strength):
            raise UserError(f"--strength {self.strength:g}: must be a finite number")
        if self.steps < 2:
            raise UserError(f"--steps {self.steps}: must be at least 2, for both ends are among them")
        self._layers()

    def columns(self) -> int:
        return self.steps

    def images(self, classes: int) -> tuple[int, int]:
        rows = classes if self.method == "classes" else self.count
        return self.columns(), len(parse_seeds(self.seeds)) * classes * rows

    def write(self, generator: nn.Module, labels: list[Label], out: Path) -> None:
        from fastgan import editing, figures

        found = self._find(generator)
        settings: dict[str, Any] = {"truncation": self.trunc, "seed_format": self.seed_format}
        sections = []
        for class_name, label in labels:
            for seed in parse_seeds(self.seeds):
                section = figures.directions(generator, seed, found, self._strengths(), label=label, **settings)
                sections.append(self.titled(section, class_name))
        file = out.with_suffix(".safetensors")
        editing.save(file, found)
        save_picture(draw_grid(sections, self.smallest_cell), out)
        for each in found:
            print(f"{each.name:12} {100 * each.share:5.1f} %")
        print(file)

    def _find(self, generator: nn.Module) -> list[Direction]:
        from fastgan import editing, studies
        from fastgan.runs.networks import open_networks

        layers = None if self.layers == "all" else studies.style_layers(generator, self._layers())
        given: dict[str, Any] = {"layers": layers, "samples": 1000 * self.samples}
        if self.method == "classes":
            return editing.of_classes(generator, open_networks(self.checkpoint, self.ema).class_names, **given)
        find = editing.factorized if self.method == "factorization" else editing.principal
        return find(generator, count=self.count, **given)

    def _layers(self) -> str | list[int]:
        if self.layers in ("all", "coarse", "middle", "fine"):
            return self.layers
        if self.layers.isalpha():
            raise UserError(f"--layers {readable(self.layers)}: must be all, coarse, middle, fine, or numbers like 2-4")
        return parse_seeds(self.layers, "--layers")

    def _strengths(self) -> list[float]:
        largest = self.strength if self.strength is not None else 2.0 if self.method == "classes" else 4.0
        return [largest * (2 * step / (self.steps - 1) - 1) for step in range(self.steps)]


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Directions, program("directions"), argv)
    with out_of_memory_is_user_error("give fewer --seeds or --count, or another --device"):
        generate(options)
    return 0
