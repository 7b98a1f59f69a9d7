"""`python -m fastgan.metrics`: how far the samples of a trained generator are from real images.

Exit status: 0 when done, 2 for a mistake in options or files, 130 after Ctrl-C; a file written is whole.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastgan.errors import UserError, command_line
from fastgan.training import process
from fastgan.training.config import LARGEST_SEED
from fastgan.training.files import write_atomically
from fastgan.training.memory import shortage_is_a_mistake

BATCH = 64  # images that are drawn at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how far the samples of a trained generator (psi 1) are from real images: KID and a Fréchet distance, on
    features of EfficientNet-Lite0.

    Beside it stands the distance that training images have themselves, as the floor. Needs the extra "metrics" of this
    package; docs/metrics.md says what the numbers mean, and with which others they can be compared.
    """

    checkpoint: Annotated[str, tyro.conf.arg(metavar="RUN|FILE")]
    """Folder of a training run, or a checkpoint file."""
    samples: int = 5000
    """How many images are drawn, and at most how many real ones are compared with."""
    split: Literal["auto", "heldout", "train"] = "auto"
    """Real images: heldout, glyphs in fonts that were not trained with, or --heldout; train: half of the training
    images. auto: heldout where there are such."""
    heldout: Annotated[str | None, tyro.conf.arg(metavar="DIR|ZIP", help_behavior_hint="")] = None
    """Held-out images of your own, for data that bring none."""
    seed: int = 0
    """What is random follows from it: latents, labels, and which images are compared."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the numbers here."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""

    def check(self) -> None:
        """Raises UserError for a mistake that shows without the checkpoint."""
        if self.samples < 4:
            raise UserError(f"--samples {self.samples}: must be at least 4; some thousands say more")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed {self.seed}: must be from 0 to {LARGEST_SEED}")
        if self.heldout is not None and self.split == "train":
            raise UserError("--split train and --heldout exclude each other; leave one of them out")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = tyro.cli(Options, prog="python -m fastgan.metrics", args=argv)
    with shortage_is_a_mistake("give fewer --samples, or another --device"):
        process.keep_freed_memory()
        found = measure(options)
        print(table(found))
        if options.json is not None:
            write_atomically(Path(options.json), (json.dumps(found, indent=2) + "\n").encode(), "--json")
    return 0


def measure(options: Options) -> dict[str, Any]:
    """The numbers that `options` asks for, as they are written to JSON. Raises UserError for a mistake."""
    options.check()

    from fastgan.metrics import features
    from fastgan.training import checkpoint, precision

    features.require_packages()
    device = precision.choose_device(options.device)
    header = checkpoint.read_header(options.checkpoint)
    generator, _ = checkpoint.load_generator(header.path, device)
    train, heldout = _data(header, options)
    if options.json is not None:
        try:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder for --json {options.json}: {error.strerror}") from None

    from fastgan.metrics.reference import SUBSETS, reference

    extractor = features.Extractor(device)
    real = reference(train, heldout, options.samples, extractor, seed=options.seed)
    samples = real.distances_of(extractor(_draw(generator, header, train, options), "looking at samples"))
    return {
        "checkpoint": str(header.path),
        "arch": header.model.arch,
        "images_shown": header.images,
        "data": header.config.data.source,
        "real": real.names[0],
        "real_images": len(real.real),
        "features": extractor.weights,
        "seed": options.seed,
        "subsets": SUBSETS,
        "samples": _as_dict(samples),
        "floor": {"of": real.names[1]} | _as_dict(real.floor),
    }


def _data(header, options: Options):
    """The images that a run was trained with, and those held out from it or None."""
    from fastgan import data
    from fastgan.training.checkpoint import difference

    given = header.config.data
    size = given.resolution, given.channels
    glyphs = {"classes": given.classes} if given.source == "glyphs" else {}
    train = data.open_dataset(given.source, *size, **glyphs)
    if problem := difference(train, header.dataset):
        raise UserError(f"{given.source} {problem}; put there again what {header.path} was trained on")
    if options.heldout is not None:
        heldout = data.open_dataset(options.heldout, *size)
    elif given.source == "glyphs" and options.split != "train":
        heldout = data.open_dataset("glyphs", *size, split="heldout", **glyphs)
    elif options.split == "heldout":
        raise UserError(f"--split heldout: {given.source} has no held-out part; give --heldout DIR, or --split train")
    else:
        heldout = None
    for dataset, least in ((train, 4), (heldout, 2)):
        if dataset is not None and len(dataset) < least:
            raise UserError(f"{dataset.source}: there are {len(dataset)} images, must be {least} at least")
    return train, heldout


def _draw(generator, header, train, options: Options):
    """Samples as `python -m fastgan.generate` draws them, with labels as frequent as in the training images."""
    import torch

    from fastgan.metrics.reference import random_labels
    from fastgan.training import sampling

    random = torch.Generator().manual_seed(options.seed)
    z = torch.randn(options.samples, header.model.z_dim, generator=random)
    labels = None
    if header.model.num_classes:
        labels = torch.from_numpy(random_labels(train, options.samples, options.seed))
    return sampling.draw(generator, z, labels, batch=BATCH)


def _as_dict(distances) -> dict[str, float]:
    return {
        "images": distances.images,
        "kid": distances.kernel.mean,
        "kid_std": distances.kernel.std,
        "frechet": distances.frechet,
    }


def table(found: dict[str, Any]) -> str:
    """For people: samples, and the floor below."""
    rows = {"samples": found["samples"], f"{found['floor']['of']} (the floor)": found["floor"]}
    wide = max(map(len, rows))
    lines = [
        f"{found['arch']} after {found['images_shown']:,} images",
        f"distances to {found['real_images']:,} real images: {found['real']}",
        "",
        f"{'':{wide}}  {'images':>7}  {'KID x 1000':>16}  {'Fréchet distance':>16}",
    ]
    for name, row in rows.items():
        kernel = f"{row['kid'] * 1e3:.3f} ± {row['kid_std'] * 1e3:.3f}"
        lines.append(f"{name:{wide}}  {row['images']:7,}  {kernel:>16}  {row['frechet']:16.3f}")
    return "\n".join([*lines, "", "on features of EfficientNet-Lite0: not comparable with numbers of Inception's"])


if __name__ == "__main__":
    sys.exit(main())
