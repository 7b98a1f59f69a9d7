"""`fastgan project`: find the latents whose images are nearest to given ones.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C. Every file written is complete.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastgan.cli.generate import FPS, MOVING, parse_classes
from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line, program, readable
from fastgan.files import prepare_to_write, require_other, write_atomically
from fastgan.options import LARGEST_SEED, HalfLife, PathText, parse_options
from fastgan.progress import ProgressBar
from fastgan.runs.animation import ANIMATIONS, SMALLEST_FRAME, require_animation, save_animation
from fastgan.runs.grid import Section, draw_grid, enlargement, save_picture
from fastgan.runs.memory import out_of_memory_is_user_error, require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from fastgan.models import ModelConfig

COLUMNS = 8
TOGETHER = 8  # images that are projected at once
MOST_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the latents whose images are nearest to given ones: w of a style-based network, else z.

    Writes a picture of the given images and those found, and the latents, which `fastgan generate --projected` draws,
    mixes and interpolates. Karras et al. 2020 (StyleGAN2), appendix D.
    """

    images: Annotated[tuple[PathText, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image files, cropped and resized to the network's size as `fastgan dataset` does."""
    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
    local or at a URL. hf://USER/NAME, one of the Hugging Face hub. example:digits, one that comes with fastgan."""
    space: Literal["auto", "w", "w+", "z"] = "auto"
    """w: one for all layers. w+: one for each layer, nearer, but less of an image of this network. z: the latents of
    networks without styles. auto: w if there is one."""
    noise: bool = True
    """Also find the noise inputs of a network that has some: it draws with them what w cannot tell, like hair."""
    trunc: Annotated[
        float | None, tyro.conf.arg(aliases=["--truncation"], metavar="PSI", help_behavior_hint="(default: no limit)")
    ] = None
    """Keeps w near their mean, where images are typical, at the cost of likeness: at most PSI times as far as random
    ones on average. With --class, those of the class."""
    steps: int = 200
    """Steps of Adam."""
    distance: Literal["perceptual", "lpips", "pixels"] = "perceptual"
    """perceptual: by features of EfficientNet-Lite0 (extra "metrics") and pixels. lpips: by LPIPS with VGG (extra
    "lpips") and pixels. pixels: the mean square, quickest."""
    vgg_weights: Annotated[
        PathText | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the data cache, if it is there)"),
    ] = None
    """Weights of VGG for lpips: vgg16-397923af.pth of torchvision. Download them yourself."""
    classes: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME", help_behavior_hint="(default: any)")] = (
        None
    )
    """Class of the random images that it starts from."""
    tune: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 0
    """Then train a copy of the network for so many steps to draw the given images at the w found for them, and write it
    beside the picture (pivotal tuning, Roich et al. 2021; style-based networks). 0: not."""
    seed: int = 0
    """Seed of the random images that it starts from, and of the noise on the way."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/projected.png)")
    ] = None
    """File name of the picture, ending in .png, .jpg or .webp. The latents are saved beside it, as .safetensors."""
    video: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write an animation of the way: a name that ends in .gif, or in .mp4, which needs PyAV, the extra
    "video" of this package."""
    ema: HalfLife = None
    """Half-life of the EMA to use, in thousands of images, of a training that has kept several."""
    device: str = "auto"
    """cpu, cuda, or cuda:1 and so on. auto: the first GPU if there is one, else the CPU."""

    def check(self) -> None:
        """Raises UserError for options that are wrong for any checkpoint."""
        from fastgan.runs.grid import PICTURES

        if not self.images:
            raise UserError("give one image or more")
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"--steps {self.steps}: must be from 1 to {MOST_STEPS:,}")
        if self.trunc is not None and not 0 < self.trunc < math.inf:
            raise UserError(f"--trunc {self.trunc:g}: must be above 0")
        if not 0 <= self.tune <= MOST_STEPS:
            raise UserError(f"--tune {self.tune}: must be from 0 to {MOST_STEPS:,}")
        if self.vgg_weights is not None and self.distance != "lpips":
            raise UserError(f"--vgg-weights {readable(self.vgg_weights)}: is for --distance lpips alone")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed {self.seed}: must be from 0 to {LARGEST_SEED}")
        for name, allowed in (("out", tuple(PICTURES)), ("video", MOVING)):
            given = getattr(self, name)
            if given is not None and Path(given).suffix.lower() not in allowed:
                *others, last = allowed
                raise UserError(f"--{name} {readable(given)}: the name must end in {', '.join(others)} or {last}")
        if self.video is not None:
            require_animation(Path(self.video), FPS)

    def label(self, names: list[str]) -> int:
        """Number of the class, of those with these names. Raises UserError unless it is one of them."""
        found = parse_classes(self.classes, names, "--class")
        if len(found) != 1:
            raise UserError(f"--class {readable(self.classes)}: must be one class, which all images start from")
        return found[0][1]


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("project"), argv)
    with out_of_memory_is_user_error("give fewer images, or another --device"):
        project(options)
    return 0


def project(options: Options) -> None:
    """Write the files that `options` asks for. Raises UserError for a wrong option or file."""
    options.check()

    import torch

    from fastgan import projection
    from fastgan.metrics import registry
    from fastgan.runs import precision
    from fastgan.runs.drawing import Unsupported, to_uint8
    from fastgan.runs.networks import open_networks

    if options.distance != "pixels":
        registry.require_packages(registry.LITE0 if options.distance == "perceptual" else registry.VGG)
    weights = {registry.VGG: options.vgg_weights}
    vgg = registry.find_weights(registry.VGG, weights) if options.distance == "lpips" else None
    networks = open_networks(options.checkpoint, options.ema)
    path, model, names, load, *_ = networks
    label = None if options.classes is None else options.label(names)
    folder = Path() if has_scheme(options.checkpoint) else path.parent
    out = Path(options.out) if options.out is not None else folder / "projected.png"
    device = precision.choose_device(options.device)
    generator, distance = load(device), None
    targets = torch.stack([read_image(file, generator, model) for file in options.images])
    written = {out: "--out", out.with_suffix(".safetensors"): "--out"}
    if options.tune:
        suffix = networks.with_generator(generator)[1]  # raises if the format cannot be written
        tuned_file = out.with_name(f"{out.stem}-tuned{suffix}")
        written[tuned_file] = "--out"
    if options.video is not None:
        written[Path(options.video)] = "--video"
        require_frames(targets, options.steps, Path(options.video))
    for file, option in written.items():
        require_other(file, [path, *map(Path, options.images)], option)
        prepare_to_write(file, option)
    if options.distance != "pixels":
        from fastgan.metrics import perceptual

        distance = perceptual.PerceptualDistance(device) if vgg is None else perceptual.LPIPS(vgg, device)
    space = None if options.space == "auto" else options.space
    try:
        found_in = projection.require_space(generator, space)
    except Unsupported as error:
        raise UserError(f"--space {options.space}: {error}") from None
    if options.trunc is not None and found_in == "z":
        raise UserError(f"--trunc {options.trunc:g}: {model.arch} has no truncation; leave it out")
    if options.tune and found_in == "z":
        raise UserError(f"--tune {options.tune}: {model.arch} has no w to tune around; leave it out")
    frames: list[list[np.ndarray]] = []  # of each step, the images so far
    parts = []
    groups = targets.split(TOGETHER)
    with ProgressBar(total=options.steps * len(groups), unit=" steps") as progress:

        def watch(number: int, step: int, images: Tensor, distances: Tensor) -> None:
            progress.set_postfix({"distance": f"{distances.mean():.4f}"}, refresh=False)
            progress.update()
            if options.video is not None:
                if number == 0:
                    frames.append([])
                frames[step - 1].extend(to_uint8(images))

        for number, group in enumerate(groups):
            call: Callable[..., Any] = functools.partial(watch, number)
            found = projection.project(
                generator, group, space=space, steps=options.steps, perceptual=distance, noise=options.noise,
                truncation=options.trunc, num_classes=model.num_classes, label=label, seed=options.seed, watch=call,
            )  # fmt: skip
            parts.append(found)
    found = joined(parts)
    shown = [Path(file).name for file in options.images]
    projection.save(out.with_suffix(".safetensors"), found, shown)
    rows = {"given": to_uint8(targets), "found": to_uint8(found.images)}
    tuned = None
    if options.tune:
        tuned = tune(generator, found, targets, distance, options)
        rows["tuned"] = to_uint8(tuned.images)
        write_atomically(tuned_file, networks.with_generator(tuned.generator)[0])
    save_picture(draw_grid([side_by_side(rows)]), out)
    if options.video is not None:
        import numpy as np

        save_animation((np.concatenate(frame, 1) for frame in frames), Path(options.video), FPS)
        print(options.video)
    for i, name in enumerate(shown):
        of_class = "" if found.labels is None else f", class {names[found.labels[i]]}"
        after = "" if tuned is None else f", {tuned.psnr[i]:.1f} dB tuned"
        print(f"{name}: PSNR {found.psnr[i]:.1f} dB{after}, distance {found.distances[i]:.4f}{of_class}")
    print(out.with_suffix(".safetensors"))
    if tuned is not None:
        print(tuned_file)
    print(out)


def require_frames(targets: Tensor, steps: int, video: Path) -> None:
    """Raises UserError if the frames of the video are too many for the memory, or too wide for its format."""
    from fastgan.data.images import size_text

    n, _, height, width = targets.shape
    factor = enlargement(height, SMALLEST_FRAME)
    size, largest = (n * width * factor, height * factor), ANIMATIONS[video.suffix.lower()].largest
    if max(size) > largest:
        raise UserError(f"--video {video}: a frame of {size_text(size)} is too large; give fewer images")
    require(float(steps * targets.numel()), "the frames of --video", "give fewer images or --steps")


def read_image(file: str, generator: nn.Module, model: ModelConfig) -> Tensor:
    """An image as a network's images are, fp32 [C, H, W]. Says what was done to it; raises UserError if it is none."""
    import torch

    from fastgan.data.images import UnusableImage, read_regular
    from fastgan.projection import fitted

    try:
        pixels, note = fitted(read_regular(file), generator, model)
    except UnusableImage as error:
        raise UserError(f"{readable(file)} {error}") from None
    if note:
        print(f"{Path(file).name}: {note}")
    return torch.tensor(pixels).movedim(2, 0) / 127.5 - 1


def joined(parts: list[Any]) -> Any:
    """One projection of several."""
    import torch

    def together(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(map(torch.cat, zip(*values, strict=True)))
        return None if values[0] is None else torch.cat(values)

    return type(parts[0])(*map(together, zip(*parts, strict=True)))


def tune(generator: Any, found: Any, images: Tensor, perceptual: Any, options: Options) -> Any:
    """Pivotal tuning, with progress."""
    from fastgan import tuning

    with ProgressBar(total=options.tune, unit=" steps") as progress:

        def watch(step: int, distances: Tensor) -> None:
            progress.set_postfix({"distance": f"{distances.mean():.4f}"}, refresh=False)
            progress.update()

        return tuning.tune(
            generator, found, images, steps=options.tune, perceptual=perceptual, batch=TOGETHER, seed=options.seed,
            watch=watch,
        )  # fmt: skip


def side_by_side(images: dict[str, np.ndarray]) -> Section:
    """Rows of images [N, H, W, C] in uint8 by their names: each given one above what was found for it."""
    count = len(images["given"])
    parts = [slice(start, start + COLUMNS) for start in range(0, count, COLUMNS)]
    rows = [(name, each[part]) for part in parts for name, each in images.items()]
    return Section("projection: given images, and the nearest that were found", rows)
