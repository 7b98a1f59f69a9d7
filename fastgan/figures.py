"""Studies as labelled pictures, as `fastgan generate` writes them.

Each function draws one study and returns a `fastgan.runs.grid.Section`: a heading, labels of the columns, and labelled
rows of uint8 images. Common arguments:

- `seeds`: one latent each, by `fastgan.runs.drawing.latents` with `seed_format`.
- `settings`: `label` and `truncation`, as the functions of `fastgan.studies` take them.

Rows are drawn and converted to uint8 one by one: as floating-point numbers they would take four times the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from fastgan import studies
from fastgan.editing import Direction
from fastgan.runs import drawing
from fastgan.runs.drawing import to_uint8
from fastgan.runs.grid import Section

SPACES = {
    "slerp": "the arc between latents",
    "z": "the line between latents",
    "w": "the line between styles",
    "spline": "the curve through styles",
}


def classes(
    generator: nn.Module,
    seeds: Sequence[int],
    labels: Sequence[tuple[str, int | None]],
    *,
    seed_format: str = "torch",
    truncation: float = 1.0,
) -> Section:
    """A row a class, a column a latent. labels: names of classes and their numbers.

    Raises Unsupported if the number is None, as for a network without classes.
    """
    if labels[0][1] is None:
        network = f"this network of {studies.architecture(generator)}"
        raise studies.Unsupported(f"{network} was trained without classes")
    z = drawing.latents(seeds, generator.z_dim, seed_format)
    rows = []
    for name, label in labels:
        images = studies.classes(generator, z, [label], truncation=truncation)
        rows.append((name, to_uint8(images[0])))
    return Section("the same latent as each class", rows, seed_labels(seeds))


def interpolation(
    generator: nn.Module,
    seeds: Sequence[int],
    *,
    steps: int,
    space: studies.Space,
    loop: bool = False,
    seed_format: str = "torch",
    **settings,
) -> Section:
    """A row from each seed to the next, a column a step. loop: whether there is a row from the last to the first."""
    z = drawing.latents(seeds, generator.z_dim, seed_format)
    space = "w" if z.ndim == 3 and space != "spline" else space
    frames = map(to_uint8, studies.interpolation_frames(generator, z, steps=steps, space=space, loop=loop, **settings))
    first = last = next(frames)
    rows = []
    for start, end in itertools.pairwise([*seeds, *seeds[: int(loop)]]):
        row = [last, *itertools.islice(frames, steps - 1)]
        row += [first] * (steps - len(row))  # a loop ends where it began
        rows.append((f"seed {start} to {end}", np.stack(row)))
        last = row[-1]
    return Section(f"along {SPACES[space]}", rows, [f"{step / (steps - 1):.3g}" for step in range(steps)])


def interpolation_frames(
    generator: nn.Module,
    seeds: Sequence[int],
    labels: Sequence[int | None],
    *,
    steps: int,
    space: studies.Space,
    loop: bool = False,
    grid: tuple[int, int] = (1, 1),
    batch: int | None = None,
    seed_format: str = "torch",
    truncation: float = 1.0,
) -> Iterator[np.ndarray]:
    """Frames of an animation through the seeds, uint8 [H, W, C].

    grid: columns and rows of a frame, each an interpolation through as many of the seeds, in their order. Every class
    has such a grid, side by side. batch: as of `fastgan.studies.interpolation_batches`.
    """
    columns, rows = grid
    count, rest = divmod(len(seeds), columns * rows)
    if rest:
        raise ValueError(f"seeds is of length {len(seeds)}, must be a multiple of {columns} x {rows}, the grid")
    parts = drawing.latents(seeds, generator.z_dim, seed_format).split(count)
    options = {"steps": steps, "space": space, "loop": loop, "truncation": truncation, "batch": batch}

    def images(z: Tensor, label: int | None) -> Iterator[np.ndarray]:
        batches = studies.interpolation_batches(generator, z, label=label, **options)
        return (image for drawn in batches for image in to_uint8(drawn))

    cells = [
        [images(parts[row * columns + column], label) for label in labels for column in range(columns)]
        for row in range(rows)
    ]
    across = [zip(*row, strict=True) for row in cells]
    return (np.concatenate([np.concatenate(row, 1) for row in frame]) for frame in zip(*across, strict=True))


def moving_frames(
    generator: nn.Module,
    seeds: Sequence[int],
    labels: Sequence[int | None],
    transforms: Sequence[Tensor],
    *,
    seed_format: str = "torch",
    truncation: float = 1.0,
) -> Iterator[np.ndarray]:
    """Frames of an animation of moved scenes, a frame a transform: uint8 [len(labels) * H, len(seeds) * W, C]."""
    z = drawing.latents(seeds, generator.z_dim, seed_format)
    by_class = [studies.moving_frames(generator, z, transforms, label=each, truncation=truncation) for each in labels]
    for frame in zip(*by_class, strict=True):
        rows = [np.concatenate([*to_uint8(images)], 1) for images in frame]
        yield np.concatenate(rows)


def mixing(
    generator: nn.Module,
    seeds_a: Sequence[int],
    seeds_b: Sequence[int],
    layers: str | Sequence[int],
    *,
    seed_format: str = "torch",
    **settings,
) -> Section:
    """Source A in rows, source B in columns, and the images that take the styles of `layers` from source B."""
    chosen = studies.style_layers(generator, layers)
    a, b = (drawing.latents(seeds, generator.z_dim, seed_format) for seeds in (seeds_a, seeds_b))
    top = to_uint8(studies.samples(generator, b, **settings)[0])
    rows = [("source B", np.concatenate([np.full_like(top[:1], 255), top]))]  # an empty corner
    for seed, z in zip(seeds_a, a.split(1), strict=True):
        own = studies.samples(generator, z, **settings)
        mixed = studies.mix(generator, z, b, chosen, **settings)
        rows.append((f"seed {seed}", np.concatenate([to_uint8(images[0]) for images in (own, mixed)])))
    name = f" ({layers})" if isinstance(layers, str) else ""
    heading = f"layers {_ranges(chosen)}{name} of 0-{generator.num_ws - 1} from source B"
    return Section(heading, rows, ["source A", *seed_labels(seeds_b)], sources=True)


def directions(
    generator: nn.Module,
    seed: int,
    directions: Sequence[Direction],
    strengths: Sequence[float],
    *,
    seed_format: str = "torch",
    **settings,
) -> Section:
    """A row a direction of w, with its share; a column a strength; of one latent."""
    z = drawing.latents([seed], generator.z_dim, seed_format)
    rows = []
    for each in directions:
        images = studies.edits(generator, z, [each], strengths, **settings)[0, 0]
        rows.append((f"{each.name}, {100 * each.share:.0f} %", to_uint8(images)))
    heading = f"directions of w, seed {seed}\nlayers {_ranges(list(directions[0].layers))} of 0-{generator.num_ws - 1}"
    return Section(heading, rows, [f"{strength:+.3g}" for strength in strengths])


def noise(generator: nn.Module, seeds: Sequence[int], *, draws: int, seed_format: str = "torch", **settings) -> Section:
    """Images with noise in all, no, coarse and fine layers, and the standard deviation over `draws` of the noise.

    The deviation is the mean over channels, in grey; all rows have one scale, whose end is in the heading.
    """
    latents = drawing.latents(seeds, generator.z_dim, seed_format).split(1)
    images = [to_uint8(studies.noise_by_layer(generator, z, **settings)[0]) for z in latents]
    deviations = [_grey(studies.noise_deviation(generator, z, draws=draws, **settings)[0]) for z in latents]
    largest = max(float(deviation.max()) for deviation in deviations)
    shown = [to_uint8(2 * deviation / (largest or 1.0) - 1) for deviation in deviations]  # black is 0
    for image in shown:
        image[..., 3:] = 255  # the alpha channel, if there is one: opaque
    rows = [(f"seed {seed}", np.concatenate(row)) for seed, *row in zip(seeds, images, shown, strict=True)]
    fine = studies.fine_noise_from(generator)
    heading = (
        f"noise by layer\ncoarse: to {fine // 2}x{fine // 2}, fine: from {fine}x{fine}\n"
        f"deviation over {draws} draws: white is {50 * largest:.3g} % of the range of images"
    )
    return Section(heading, rows, ["all noise", "none", "coarse only", "fine only", "deviation"])


def truncation(
    generator: nn.Module,
    seeds: Sequence[int],
    psis: Sequence[float],
    *,
    seed_format: str = "torch",
    label: int | None = None,
) -> Section:
    """A row a seed, a column a truncation psi."""
    rows = []
    for seed in seeds:
        z = drawing.latents([seed], generator.z_dim, seed_format)
        rows.append((f"seed {seed}", to_uint8(studies.truncation_sweep(generator, z, psis, label=label)[0])))
    return Section("truncation psi", rows, [f"{psi:.3g}" for psi in psis])


def growth(generator: nn.Module, seeds: Sequence[int], *, seed_format: str = "torch", **settings) -> Section:
    """A row a seed, a column a resolution of training; smaller images are enlarged to the size of the largest."""
    columns = [f"{resolution}x{resolution}" for resolution in studies.growth_levels(generator)]
    rows = []
    for seed in seeds:
        z = drawing.latents([seed], generator.z_dim, seed_format)
        rows.append((f"seed {seed}", to_uint8(studies.growth(generator, z, **settings)[0])))
    return Section("levels of growth", rows, columns)


def seed_labels(seeds: Sequence[int]) -> list[str]:
    return [f"seed {seed}" for seed in seeds]


def _grey(image: Tensor) -> Tensor:
    """[..., C, H, W] with the mean over channels in each channel."""
    return image.mean(-3, keepdim=True).expand_as(image)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 7] to "0-2, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
