"""Studies of a trained generator: the effect of latents, styles, noise, truncation and growth on the image.

Functions on tensors; `fastgan generate` makes labelled pictures of them, by `fastgan.figures`. Common arguments:

- `generator`: in eval mode, on any device, as `fastgan.runs.checkpoint.load_generator` returns it.
- `seeds`: numbers from 0, one latent each; the same seed is the same latent everywhere. Or the latents themselves,
  a tensor [N, z_dim], or styles [N, num_ws, w_dim] such as `fastgan.projection` finds, which need no label.
- `label`: the class of all images, for a conditional generator; None for one without classes.
- `truncation`: psi, the factor that pulls w towards its mean; 1 for no truncation.

Returned images are fp32 [rows, columns, C, H, W] on the CPU, of nominal range [-1, 1]. Each is drawn by itself and with
the generator's fixed noise, so it does not depend on the others, and equals that of `samples` for the same latent.

Functions raise `Unsupported`, a ValueError, if the generator lacks a part that the study needs, and ValueError for
other invalid arguments.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fastgan import paths
from fastgan.editing import Direction, style_offset
from fastgan.models.moving import MOVABLE, rotation, synthesize_moved, translation
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.models.style_based import StyleBasedGenerator
from fastgan.runs.drawing import Unsupported, architecture, draw_batches, draw_tensor, inference, latents, to_uint8
from fastgan.transparency import premultiplied

__all__ = [
    "LAYERS",
    "Unsupported",
    "architecture",
    "classes",
    "edits",
    "fine_noise_from",
    "growth",
    "growth_levels",
    "interpolate",
    "interpolate_at",
    "interpolation_batches",
    "interpolation_frames",
    "mix",
    "move",
    "moving_frames",
    "noise_by_layer",
    "noise_deviation",
    "rotation",
    "samples",
    "style_layers",
    "styles",
    "to_uint8",
    "translation",
    "truncation_sweep",
]

# Slices of the layers' styles, two a resolution: coarse is 4x4 and 8x8, middle 16x16 and 32x32, fine the rest
# (Karras et al. 2019, "A Style-Based Generator Architecture for GANs", arXiv 1812.04948, figure 3).
LAYERS = {"coarse": (0, 4), "middle": (4, 8), "fine": (8, None)}
LARGEST_CONDITION = 1e6  # of a transform: beyond it fp32 has no inverse of use
MOST_AT_ONCE, AT_ONCE_CPU, AT_ONCE_GPU = 16, 2**18, 2**22  # images, and pixels, of a batch of an animation
FINE_NOISE_FROM = 64  # resolution; figure 5 of the same paper

Space = Literal["z", "slerp", "w", "spline"]
CURVES = {"z": paths.lines, "slerp": paths.arcs, "w": paths.lines, "spline": paths.spline}  # by space
Seeds = Sequence[int] | Tensor


def samples(
    generator: nn.Module,
    seeds: Seeds,
    *,
    noise: str | Sequence[str] = "const",
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Plain images, one a seed: [1, len(seeds), C, H, W].

    noise: "const", "none" or "random", or a sequence with one of these a layer, as the generator's `synthesize` takes
    it. Anything but "const" needs a generator with noise.
    """
    z = _latents(generator, seeds)
    if noise == "const":
        return _images(generator, z, label, truncation)[None]
    noisy = _with_noise(generator)
    return _synthesize(noisy, _styles(noisy, z, label, truncation), noise)[None]


def classes(generator: nn.Module, seeds: Seeds, labels: Sequence[int], *, truncation: float = 1.0) -> Tensor:
    """The same latents as each class: [len(labels), len(seeds), C, H, W]."""
    if not len(labels):
        raise ValueError("labels is empty, must have at least one class")
    z = _latents(generator, seeds)
    return torch.stack([_images(generator, z, label, truncation) for label in labels])


def interpolate(
    generator: nn.Module,
    seeds: Seeds,
    *,
    steps: int = 9,
    space: Space = "slerp",
    loop: bool = False,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Interpolation from each seed to the next, a row each: [len(seeds) - 1, steps, C, H, W], both ends included.

    Args:
        seeds: two or more.
        steps: images a row, at least 2, equally spaced.
        space: the path through the seeds. "z": the straight line between two latents. "slerp": the arc, which keeps
            the length that latents of a normal distribution have (White 2016, "Sampling Generative Networks", arXiv
            1609.04468, section 2.1). "w": the straight line between two styles (Karras et al. 2019, section 4.1).
            "spline": the cubic spline through all styles, which does not turn sharply at a seed. The last two need a
            style-based generator; seeds that are styles make "w" of the first two.
        loop: whether there is a last row, from the last seed to the first.
    """
    drawn = list(
        interpolation_frames(generator, seeds, steps=steps, space=space, loop=loop, label=label, truncation=truncation)
    )
    rows = torch.stack(drawn + drawn[:loop]).unfold(0, steps, steps - 1)  # the end of a row is the start of the next
    return rows.movedim(-1, 1).contiguous()


def interpolation_frames(
    generator: nn.Module,
    seeds: Seeds,
    *,
    steps: int = 9,
    space: Space = "slerp",
    loop: bool = False,
    label: int | None = None,
    truncation: float = 1.0,
) -> Iterator[Tensor]:
    """The images of `interpolate` one after the other, [C, H, W] each, drawn lazily.

    A seed between two rows comes once: (len(seeds) - 1) * (steps - 1) + 1 images in all. A loop ends before its first
    image: len(seeds) * (steps - 1). Arguments as in `interpolate`.
    """
    batches = interpolation_batches(
        generator, seeds, steps=steps, space=space, loop=loop, label=label, truncation=truncation, batch=1
    )
    return (image.float().cpu() for (image,) in batches)


def interpolation_batches(
    generator: nn.Module,
    seeds: Seeds,
    *,
    steps: int = 9,
    space: Space = "slerp",
    loop: bool = False,
    label: int | None = None,
    truncation: float = 1.0,
    batch: int | None = None,
) -> Iterator[Tensor]:
    """The images of `interpolation_frames`, `batch` of them at once, on the generator's device: [N, C, H, W] each.

    Batches are quicker, and may round differently. None: one image, and then as many at once as suit its size.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}, must be at least 2: both ends are included")
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}, must be at least 1")
    curve, draw = _interpolator(generator, seeds, space, loop, label, truncation)
    places = paths.places(len(seeds), steps, loop)

    def batches() -> Iterator[Tensor]:
        size = batch or 1
        while group := list(itertools.islice(places, size)):
            images = draw(torch.stack([curve(*place) for place in group]))
            size = batch or _at_once(images)
            yield images

    return batches()


def _at_once(images: Tensor) -> int:
    """Number of images like these, [N, C, H, W], to draw at once: small ones take less time in batches."""
    pixels = images.shape[-2] * images.shape[-1]
    return max(1, min(MOST_AT_ONCE, (AT_ONCE_CPU if images.device.type == "cpu" else AT_ONCE_GPU) // pixels))


def interpolate_at(
    generator: nn.Module,
    seeds: Seeds,
    positions: Sequence[float],
    *,
    space: Space = "slerp",
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Images at given positions between two seeds: [1, len(positions), C, H, W].

    Args:
        seeds: two.
        positions: numbers from 0, the first seed, to 1, the second.
        space: as in `interpolate`.
    """
    if len(seeds) != 2:
        raise ValueError(f"seeds is of length {len(seeds)}, must be two")
    curve, draw = _interpolator(generator, seeds, space, False, label, truncation)
    return torch.cat([draw(curve(0, position)[None]).float().cpu() for position in positions])[None]


def mix(
    generator: nn.Module,
    seeds_a: Seeds,
    seeds_b: Seeds,
    layers: str | Sequence[int],
    *,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Style mixing (Karras et al. 2019, section 3.1 and figure 3): [len(seeds_a), len(seeds_b), C, H, W].

    The image in row i and column j takes the styles of `layers` from `seeds_b[j]`, all others from `seeds_a[i]`.

    layers: "coarse", "middle" or "fine" (see `LAYERS`), or indices from 0 to num_ws - 1, possibly none. Raises
    Unsupported for a layer that the generator does not have.
    """
    chosen = style_layers(generator, layers)
    styled = _with_styles(generator, "style mixing")
    a, b = (_styles(styled, _latents(generator, seeds), label, truncation) for seeds in (seeds_a, seeds_b))
    from_b = torch.zeros(styled.num_ws, 1, dtype=torch.bool, device=a.device)
    from_b[chosen] = True
    return torch.stack([_synthesize(styled, torch.where(from_b, b, own)) for own in a])


def style_layers(generator: nn.Module, layers: str | Sequence[int]) -> list[int]:
    """Indices of the layers that `mix` takes from B. Raises Unsupported if the generator has no such layer."""
    count = _with_styles(generator, "style mixing").num_ws
    network, last = f"this network of {architecture(generator)}", count - 1
    if isinstance(layers, str):
        if layers not in LAYERS:
            raise ValueError(f"layers is {layers!r}, must be one of {', '.join(LAYERS)}, or indices")
        chosen = list(range(count))[slice(*LAYERS[layers])]
        if not chosen:
            raise Unsupported(f"{network} has layers 0 to {last}, and {layers!r} ones begin at {LAYERS[layers][0]}")
        return chosen
    for layer in layers:
        if not 0 <= layer <= last:
            raise Unsupported(f"{network} has layers 0 to {last}, not {layer}")
    return list(layers)


def move(
    generator: nn.Module,
    seeds: Seeds,
    transforms: Sequence[Tensor],
    *,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Images of a scene that each of `transforms` has moved: [len(seeds), len(transforms), C, H, W].

    The input of the first layer is moved, not the image: what comes into view is drawn as well. StyleGAN3 evaluates
    its Fourier features at other places. StyleGAN2's constant is resampled as a periodic image, while its noise stays
    where it is: details that do not move with the image stick to the pixels.

    transforms: one or more affine maps [3, 3] from places of the image to the places of the scene that appear there,
    in homogeneous coordinates (x, y, 1) in which the image lies within [-0.5, 0.5], y downwards; `translation` and
    `rotation` make them. Raises ValueError for one that has no inverse, or is not affine; Unsupported for other
    generators.
    """
    return torch.stack(list(moving_frames(generator, seeds, transforms, label=label, truncation=truncation)), 1)


def moving_frames(
    generator: nn.Module,
    seeds: Seeds,
    transforms: Sequence[Tensor],
    *,
    label: int | None = None,
    truncation: float = 1.0,
) -> Iterator[Tensor]:
    """The images of `move` one transform after the other, [len(seeds), C, H, W] each, drawn lazily."""
    z = _latents(generator, seeds)
    if not isinstance(generator, MOVABLE):
        raise Unsupported(
            f"{architecture(generator)} has no input to move; give stylegan3, or stylegan2 to compare with"
        )
    if not len(transforms):
        raise ValueError("transforms is empty, must have at least one [3, 3]")
    for transform in transforms:
        _require_invertible(transform)
    ws = _styles(generator, z, label, truncation)

    def image(transform: Tensor) -> Tensor:
        with inference(generator):
            return torch.cat([synthesize_moved(generator, own, transform).float().cpu() for own in ws.split(1)])

    return map(image, transforms)


def _require_invertible(transform: Tensor) -> None:
    """Raises ValueError for what is no affine map [3, 3], or has no inverse."""
    shown = transform.tolist()
    if transform.shape != (3, 3) or not transform.isfinite().all() or shown[2] != [0, 0, 1]:
        raise ValueError(f"transforms: {shown} is no affine map, must be [3, 3] and finite, its last row 0 0 1")
    if torch.linalg.cond(transform.double().cpu()[:2, :2]) > LARGEST_CONDITION:
        raise ValueError(f"transforms: {shown} is singular, must have an inverse")


def edits(
    generator: nn.Module,
    seeds: Seeds,
    directions: Sequence[Direction],
    strengths: Sequence[float],
    *,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Images moved along directions of w: [len(seeds), len(directions), len(strengths), C, H, W].

    directions: of `fastgan.editing`. strengths: in steps of each direction; 0 is the image as it is. Raises ValueError
    for directions of another network, Unsupported for a generator without styles.
    """
    styled = _with_styles(generator, "editing")
    ws = _styles(styled, _latents(generator, seeds), label, truncation)
    moved = [
        torch.stack([ws + style_offset(styled, [each], {each.name: strength}) for strength in strengths], 1)
        for each in directions
    ]  # [N, strengths, num_ws, w_dim] each
    images = [_synthesize(styled, each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in moved]
    return torch.stack(images, 1)


def styles(generator: nn.Module, seeds: Seeds, *, label: int | None = None, truncation: float = 1.0) -> Tensor:
    """Styles of the seeds, which studies take in place of these: [len(seeds), num_ws, w_dim] on the generator's device.

    Raises Unsupported for a generator without styles.
    """
    return _styles(_with_styles(generator, "editing"), _latents(generator, seeds), label, truncation)


def noise_by_layer(
    generator: nn.Module,
    seeds: Seeds,
    *,
    fine_from: int | None = None,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Effect of the noise in coarse and fine layers (Karras et al. 2019, figure 5): [len(seeds), 4, C, H, W].

    Columns: noise in all layers, in none, in the coarse ones only, in the fine ones only.

    fine_from: the smallest resolution of fine layers; by default `fine_noise_from(generator)`.
    """
    noisy = _with_noise(generator)
    start = fine_noise_from(generator) if fine_from is None else fine_from
    fine = [resolution >= start for resolution in noisy.noise_resolutions]
    columns = [
        "const",
        "none",
        ["none" if is_fine else "const" for is_fine in fine],
        ["const" if is_fine else "none" for is_fine in fine],
    ]
    ws = _styles(noisy, _latents(generator, seeds), label, truncation)
    return torch.stack([_synthesize(noisy, ws, noise) for noise in columns], 1)


def fine_noise_from(generator: nn.Module) -> int:
    """The smallest resolution whose noise counts as fine: 64 as in the paper, or the last one of a smaller network."""
    return min(FINE_NOISE_FROM, _with_noise(generator).noise_resolutions[-1])


def noise_deviation(
    generator: nn.Module,
    seeds: Seeds,
    *,
    draws: int = 100,
    noise: str | Sequence[str] = "random",
    noise_seed: int = 0,
    label: int | None = None,
    truncation: float = 1.0,
) -> Tensor:
    """Standard deviation of each pixel over the noise (Karras et al. 2019, figure 4c): [len(seeds), 1, C, H, W].

    In units of the image, whose range is 2 wide; the unbiased estimate (divided by draws - 1). For images with an alpha
    channel, colours are premultiplied by it, so that invisible colours do not count.

    Args:
        draws: draws of the noise, at least 2.
        noise: "random", or one word a layer, as the generator's `synthesize` takes them.
        noise_seed: seed of the draws of each latent; torch's own RNG state stays as it was.
    """
    noisy = _with_noise(generator)
    if draws < 2:
        raise ValueError(f"draws is {draws}, must be at least 2")
    ws = _styles(noisy, _latents(generator, seeds), label, truncation)
    return torch.stack([_deviation(noisy, own[None], draws, noise, noise_seed) for own in ws])[:, None]


def truncation_sweep(
    generator: nn.Module,
    seeds: Seeds,
    psis: Sequence[float] = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    label: int | None = None,
) -> Tensor:
    """Images at each truncation psi (Karras et al. 2019, figure 8): [len(seeds), len(psis), C, H, W].

    At psi 1 a seed gives its plain image, at 0 the image of the mean w, below 0 that of the opposite side of the mean.
    """
    if not len(psis):
        raise ValueError("psis is empty, must have at least one number")
    if not isinstance(generator, StyleBasedGenerator):
        raise Unsupported(f"{architecture(generator)} has no truncation")
    z = _latents(generator, seeds)
    return torch.stack([_images(generator, z, label, psi) for psi in psis], 1)


def growth(generator: nn.Module, seeds: Seeds, *, label: int | None = None, truncation: float = 1.0) -> Tensor:
    """The same latents at every resolution of a growing generator: [len(seeds), len(growth_levels), C, H, W].

    Karras et al. 2018, "Progressive Growing of GANs", section 2. The output layer of a resolution is as it was when the
    next one had been faded in; the layers before it were trained further since. Smaller images are enlarged to the size
    of the largest, each pixel to a square. The generator is left at the resolution where it was.
    """
    levels, growing = growth_levels(generator), _growing(generator)
    z = _latents(generator, seeds)
    final, alpha = growing.stage_resolution, float(growing.alpha)
    columns = []
    try:
        for resolution in levels:
            growing.grow_to(resolution, alpha if resolution == final else 1.0)
            image = _images(generator, z, label, truncation)
            factor = final // resolution
            columns.append(image.repeat_interleave(factor, -2).repeat_interleave(factor, -1))
    finally:
        growing.grow_to(final, alpha)
    return torch.stack(columns, 1)


def growth_levels(generator: nn.Module) -> list[int]:
    """Resolutions that a growing generator was trained at so far, from the smallest.

    Raises Unsupported if it does not grow, or was trained without growth.
    """
    growing = _growing(generator)
    first, last = growing.grown_from, growing.resolutions[-1]
    if first == last:
        network = f"this network of {architecture(generator)}"
        raise Unsupported(f"{network} did not grow: it was trained at {last}x{last} alone")
    return [resolution for resolution in growing.resolutions if first <= resolution <= growing.stage_resolution]


def shapes_of_latents(generator: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of one latent that studies take in place of a seed: z, and styles where there are some."""
    shapes: list[tuple[int, ...]] = [(cast(int, generator.z_dim),)]  # nn.Module types attributes as tensors or modules
    if isinstance(generator, StyleBasedGenerator):
        shapes.append((generator.num_ws, generator.w_dim))
    return shapes


def _latents(generator: nn.Module, seeds: Seeds) -> Tensor:
    """z [len(seeds), z_dim]. Every study begins with it, so common arguments are checked here."""
    if generator.training:
        raise ValueError("generator is in training mode, must be in eval mode: call generator.eval()")
    if not len(seeds):
        raise ValueError("seeds is empty, must have at least one number")
    if not isinstance(seeds, Tensor):
        return latents(seeds, cast(int, generator.z_dim))
    shapes = shapes_of_latents(generator)
    if seeds.shape[1:] not in shapes:
        kinds = " or styles ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes)
        raise ValueError(f"seeds has shape {list(seeds.shape)}, must be latents {kinds}")
    return seeds.float().cpu()


def _images(generator: nn.Module, z: Tensor, label: int | None, truncation: float) -> Tensor:
    """[N, C, H, W] of z [N, z_dim], all of one label."""
    labels = None if label is None else torch.full((len(z),), label)
    return draw_tensor(generator, z, labels, truncation=truncation)


def _styles(generator: StyleBasedGenerator, z: Tensor, label: int | None, truncation: float) -> Tensor:
    """ws [N, num_ws, w_dim] on the generator's device, each mapped by itself, like the images."""
    device = next(generator.parameters()).device
    labels = None if label is None else torch.full((1,), label, device=device)
    with inference(generator):
        return torch.cat([generator.styles(own.to(device), labels, truncation=truncation) for own in z.split(1)])


def _synthesize(generator: StyleBasedGenerator, ws: Tensor, noise: str | Sequence[str] = "const") -> Tensor:
    """[N, C, H, W] of ws [N, num_ws, w_dim]."""
    with inference(generator):
        return torch.cat([generator.synthesize(own, noise=noise).float().cpu() for own in ws.split(1)])


def _interpolator(
    generator: nn.Module, seeds: Seeds, space: Space, loop: bool, label: int | None, truncation: float
) -> tuple[paths.Curve, Callable[[Tensor], Tensor]]:
    """The curve through the seeds in a space, and the images of points, all at once and on the generator's device."""
    if len(seeds) < 2:
        raise ValueError(f"seeds is of length {len(seeds)}, must have at least two to interpolate between")
    if space not in CURVES:
        raise ValueError(f"space is {space!r}, must be one of {', '.join(CURVES)}")
    points = _latents(generator, seeds)
    if points.ndim == 3 or space in ("w", "spline"):
        styled = _with_styles(generator, "interpolation in w")
        ws = _styles(styled, points, label, truncation)
        curve = CURVES["spline" if space == "spline" else "w"](ws, loop)

        def synthesize(ws: Tensor) -> Tensor:
            with inference(styled):
                return styled.synthesize(ws, noise="const")

        return curve, synthesize

    def draw(z: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(z),), label)
        (images,) = draw_batches(generator, z, labels, truncation=truncation, batch=len(z))
        return images

    return CURVES[space](points, loop), draw


def _with_styles(generator: nn.Module, study: str) -> StyleBasedGenerator:
    """The generator, if it has styles. Raises Unsupported, naming the study, if not."""
    if not isinstance(generator, StyleBasedGenerator):
        raise Unsupported(f"{architecture(generator)} has no styles: {study} needs a style-based generator")
    return generator


def _with_noise(generator: nn.Module) -> StyleBasedGenerator:
    """The generator, if its layers have noise. Raises Unsupported if not."""
    if not isinstance(generator, StyleBasedGenerator) or "noise" not in generator.supports:
        raise Unsupported(f"{architecture(generator)} has no noise: its layers have no random input")
    return generator


def _growing(generator: nn.Module) -> ProgressiveGrowing:
    """The generator, if it grows. Raises Unsupported if not."""
    if not isinstance(generator, ProgressiveGrowing):
        raise Unsupported(f"{architecture(generator)} does not grow: it has one resolution only")
    return generator


def _deviation(generator: StyleBasedGenerator, ws: Tensor, draws: int, noise: str | Sequence[str], seed: int) -> Tensor:
    """[C, H, W], by Welford's method, so that only one draw is in memory at a time."""

    def draw() -> Tensor:
        return premultiplied(generator.synthesize(ws, noise=noise))[0].double()

    with inference(generator), _seeded(ws.device, seed):
        mean = draw()
        squares = torch.zeros_like(mean)
        for count in range(2, draws + 1):
            image = draw()
            deviation = image - mean
            mean += deviation / count
            squares += deviation * (image - mean)
    return (squares / (draws - 1)).sqrt().float().cpu()


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the device's RNG within the block, and restore its state afterwards."""
    rng = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
    state = rng.get_state()
    rng.manual_seed(seed)
    try:
        yield
    finally:
        rng.set_state(state)
