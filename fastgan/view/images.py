"""Images of a run's generator as the controls of the page describe them, as HTML.

Controls that a generator lacks are ignored, so that runs of different families can be shown by the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan import studies
from fastgan.editing import style_offset
from fastgan.models import stylegan3
from fastgan.runs.drawing import latents
from fastgan.studies import to_uint8
from fastgan.view import rendering
from fastgan.view.watching import Run

MORE_SEEDS = 12
MAX_CLASSES = 64
FRAMES, POSITIONS = 24, 9  # of an interpolation: in the animation, and in the row beside it
SEEDS, CLASSES = "more seeds", "every class"


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of a projected image, in place of a seed's.

    Attributes:
        run: name of the run whose generator they belong to.
        name: of the image, in captions.
        values: ws [1, num_ws, w_dim], or z [1, z_dim] of a generator without styles.
        class_name: class of z; None for styles and without classes.
    """

    run: str
    name: str
    values: Tensor
    class_name: str | None = None


class Point(NamedTuple):
    """The image that the controls describe.

    Attributes:
        seed, class_name, psi: the latent, its class and its truncation. An unknown class is the first one.
        projected: latents in place of the seed's.
        noise: "const", "random" or "none", in the layers of the resolutions `sides`; None for all layers.
        strengths: of the run's directions, in their order.
        x, y, degrees: movement of the scene, in widths of the image, and its counterclockwise rotation.
    """

    seed: int = 0
    class_name: str | None = None
    psi: float = 1.0
    projected: Latents | None = None
    noise: str = "const"
    sides: tuple[int, ...] | None = None
    strengths: tuple[float, ...] = ()
    x: float = 0.0
    y: float = 0.0
    degrees: float = 0.0


def has(run: Run, part: str) -> bool:
    """Whether the generator has a part: one of its `supports`, or "movement"."""
    generator: Any = run.generator
    return isinstance(generator, stylegan3.Generator) if part == "movement" else part in generator.supports


def image(run: Run, point: Point) -> str:
    """The large image of a point, with everything that is done to it."""
    generator: Any = run.generator
    seeds, options = _edited(run, point)
    if has(run, "movement") and (point.x or point.y or point.degrees):
        turn = studies.rotation(math.radians(point.degrees))
        drawn = studies.move(generator, seeds, [turn @ studies.translation(point.x, point.y)], **options)
    else:
        if has(run, "noise"):
            sides = generator.noise_resolutions
            shown = sides if point.sides is None else point.sides
            options["noise"] = [point.noise if side in shown else "none" for side in sides]
        drawn = studies.samples(generator, seeds, **options)
    return rendering.figure(to_uint8(drawn[0, 0]), caption(run, point), f"{_file_name(point)}.png")


def sheet(run: Run, point: Point, shows: str) -> str:
    """The next seeds, or the same latent in every class. A click chooses a seed, or a class, see `class_of`."""
    if shows == CLASSES and run.classes and not _has_styles(point):
        names = run.classes[:MAX_CLASSES]
        points = [point._replace(class_name=name) for name in names]
        return rendering.sheet(
            np.concatenate([_plain(run, [each.seed], each) for each in points]),
            names,
            [-1 - number for number in range(len(names))],
        )
    seeds = range(point.seed + 1, point.seed + 1 + MORE_SEEDS)
    images = _plain(run, seeds, point._replace(projected=None))
    return rendering.sheet(images, [f"seed {number}" for number in seeds], seeds)


def class_of(choice: int) -> int:
    """Number of the class that a negative choice of the sheet stands for."""
    return -1 - choice


def mixed(run: Run, point: Point, second: int, sides: Sequence[int]) -> str:
    """The image with the styles of some layers from a second seed, beside both sources."""
    generator: Any = run.generator
    if not has(run, "style_mixing"):
        return "<p>This network has no styles to mix.</p>"
    a, b = (_styles(run, each) for each in (point, _second(point, second)))
    layers = [layer for layer in range(generator.num_ws) if 4 << layer // 2 in sides]
    result = studies.mix(generator, a, b, layers)[0, 0]
    sources = to_uint8(torch.cat([studies.samples(generator, each)[0] for each in (a, b)]))
    part = ", ".join(layers_of(run, side) for side in sorted(sides) if side in mixing_sides(run)) or "no layer"
    text = _caption(run, point, f"{_name(point)}, with {part} of seed {second}")
    found = rendering.figure(to_uint8(result), text, f"{_file_name(point)}-seed{second:04d}.png")
    return f'<div class="mixing">{found}{rendering.sheet(sources, [_name(point), f"seed {second}"], width=248)}</div>'


def mixing_sides(run: Run) -> list[int]:
    """Resolutions whose layers are mixed, two each."""
    generator: Any = run.generator
    return [4 * 2**i for i in range(-(-generator.num_ws // 2))] if has(run, "style_mixing") else []


def layers_of(run: Run, side: int) -> str:
    """Name of the two layers at a resolution; their numbers, if layers do not belong to one, as in stylegan3."""
    first = 2 * (side.bit_length() - 3)
    return f"{side}×{side}" if run.generator.noise_resolutions else f"{first}–{first + 1}"


def between(run: Run, point: Point, second: int, space: studies.Space, position: float, animated: bool = False) -> str:
    """The image at `position` of the way to a second seed, or all of it as an animation."""
    positions = [step / (FRAMES - 1) for step in range(FRAMES)] if animated else [position]
    images = _interpolated(run, point, second, space, positions)
    name = f"{_file_name(point)}-seed{second:04d}"
    if animated:
        text = _caption(run, point, f"from {_name(point)} to seed {second} and back")
        return rendering.animation(list(images), text, f"{name}.webp")
    text = _caption(run, point, f"{position:.0%} of the way from {_name(point)} to seed {second}")
    return rendering.figure(images[0], text, f"{name}-{position:.2f}.png")


def row(run: Run, point: Point, second: int, space: studies.Space) -> str:
    """Images along that way. A click chooses a position, in percent."""
    percents = [100 * step // (POSITIONS - 1) // 2 * 2 for step in range(POSITIONS)]  # steps of the slider
    images = _interpolated(run, point, second, space, [percent / 100 for percent in percents])
    return rendering.sheet(images, [f"{percent} %" for percent in percents], percents)


def compared(runs: Sequence[Run], point: Point) -> str:
    """The same point of several runs side by side, each above the next seeds."""
    point = Point(point.seed, point.class_name, point.psi)
    columns = []
    for run in runs:
        images = _plain(run, range(point.seed, point.seed + 1 + MORE_SEEDS), point)
        first = rendering.figure(images[0], caption(run, point), f"{_file_name(point)}.png")
        seeds = range(point.seed + 1, point.seed + 1 + MORE_SEEDS)
        others = rendering.sheet(images[1:], [f"seed {number}" for number in seeds], seeds)
        columns.append(f"<section>{rendering.heading(run.name)}{first}{others}</section>")
    return f'<div class="compared">{"".join(columns)}</div>'


def caption(run: Run, point: Point) -> str:
    """Text below a point's image."""
    text = _caption(run, point, _name(point))
    edits = [
        f"{direction.name} {strength:+g}"
        for direction, strength in zip(run.directions, point.strengths, strict=False)
        if strength
    ]
    if has(run, "movement"):
        edits += [f"{name} {value:+g}" for name, value in (("x", point.x), ("y", point.y)) if value]
        edits += [f"turned by {point.degrees:g}°"] if point.degrees else []
    return ", ".join([text, *edits])


def _caption(run: Run, point: Point, what: str) -> str:
    label = None if _has_styles(point) else run.label_of(point.class_name)
    what += f", class {run.classes[label]}" if label is not None else ""
    return what + (f", psi {point.psi:g}" if point.psi != 1 and has(run, "truncation") else "")


def _name(point: Point) -> str:
    return f"seed {point.seed}" if point.projected is None else point.projected.name


def _file_name(point: Point) -> str:
    return f"seed{point.seed:04d}" if point.projected is None else "projected"


def _has_styles(point: Point) -> bool:
    """Whether the latents are styles, which have no class any more."""
    return point.projected is not None and point.projected.values.ndim == 3


def _second(point: Point, seed: int) -> Point:
    return point._replace(seed=seed, projected=None)


def _seeds(point: Point) -> list[int] | Tensor:
    return [point.seed] if point.projected is None else point.projected.values


def _options(run: Run, point: Point) -> dict[str, Any]:
    """Label and truncation, as studies take them."""
    label = None if _has_styles(point) else run.label_of(point.class_name)
    return {"label": label, "truncation": point.psi if has(run, "truncation") else 1.0}


def _edited(run: Run, point: Point, seeds: Sequence[int] | None = None) -> tuple[Any, dict[str, Any]]:
    """Latents, of `seeds` in place of the point's own if given, moved along directions; and options for a study."""
    given, options = _seeds(point) if seeds is None else list(seeds), _options(run, point)
    strengths = {each.name: value for each, value in zip(run.directions, point.strengths, strict=False) if value}
    if not strengths:
        return given, options
    generator: Any = run.generator
    return studies.styles(generator, given, **options) + style_offset(generator, run.directions, strengths), {}


def _plain(run: Run, seeds: Sequence[int], point: Point) -> np.ndarray:
    """uint8 images of seeds, or of the projected latents, with the point's class, truncation and edits."""
    latents, options = _edited(run, point, None if point.projected else seeds)
    return to_uint8(studies.samples(run.generator, latents, **options)[0])


def _styles(run: Run, point: Point) -> Tensor:
    return studies.styles(run.generator, _seeds(point), **_options(run, point))


def _interpolated(run: Run, point: Point, second: int, space: studies.Space, positions: list[float]) -> np.ndarray:
    generator: Any = run.generator
    options = {"space": space, **_options(run, point)}
    seeds: Any = [point.seed, second]
    if _has_styles(point):
        seeds = torch.cat([_styles(run, each) for each in (point, _second(point, second))])
        options = {"space": "w"}
    elif point.projected is not None:
        seeds = torch.cat([point.projected.values, latents([second], generator.z_dim)])
    return to_uint8(studies.interpolate_at(generator, seeds, positions, **options)[0])
