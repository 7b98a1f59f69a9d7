"""`fastgan dataset`: prepare images of any source for training.

Exit status: 0 when done, 1 when done but images were skipped (a file lists them), 2 for a wrong option or file, 130
after Ctrl-C. The same command resumes a stopped preparation.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastgan.cores import usable_cpus
from fastgan.data import prepare
from fastgan.data.cache import default_cache_dir
from fastgan.data.images import CHANNELS, MAX_PIXELS, Crop, Ground, Target, parse_size, size_text
from fastgan.data.readers import ReaderOptions, accepted_sources, open_reader
from fastgan.data.shards import SHARD_INDEX
from fastgan.errors import UserError, command_line, program
from fastgan.options import PathText, parse_options

SKIPPED_IMAGES = 1  # exit status
MEGABYTE = 1_000_000
MAX_WORKERS = 512
MOST_REASONS = 8  # that the report lists


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prepare images for training: crop, resize, find their classes, and write a file or folder that training opens.

    Unusable images are skipped, and listed in a file beside the output. The same command resumes a stopped preparation.
    docs/data.md has an example of every source.
    """

    source: tyro.conf.Positional[
        Annotated[PathText, tyro.conf.arg(metavar="SOURCE", help=f"Images: {accepted_sources()}.")]
    ]
    out: Annotated[PathText | None, tyro.conf.arg(metavar="DIR|ZIP", help_behavior_hint="(default: in the cache)")] = (
        None
    )
    """A name that ends in .zip: a zip in StyleGAN's format. Any other name: a folder with an array that training maps
    into memory, or with shards."""
    resolution: Annotated[str, tyro.conf.arg(metavar="N|WxH")]
    """Size of the images in pixels: a number for square ones, or width and height, like 64x32."""
    channels: Literal[1, 3, 4] = 3
    """1 for grey images, 3 for colour, 4 for colour with transparency."""
    crop: Crop = "center"
    """center: the largest centred part of the wanted aspect ratio. pad: the whole image on a background. none: skip
    images of another aspect ratio."""
    ground: Ground = "white"
    """Background of transparent and padded images. With --channels 4 it is transparent."""
    enlarge: bool = False
    """Enlarge smaller images instead of skipping them."""
    labels: bool = True
    """Keep the classes."""
    shards: Annotated[int, tyro.conf.arg(metavar="MB")] = 0
    """Write tar shards of at most this many megabytes, for sets larger than the disk of the training machine. 0: no
    shards."""
    image_column: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: by its name)")] = (
        None
    )
    """Column of a table or of a Hugging Face set, or array of an .npz, with the images."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: by its name)")] = (
        None
    )
    """Column or array with the classes, as numbers or words."""
    split: str = "train"
    """Part of a torchvision or Hugging Face set, an .npz, or a folder of IDX files."""
    workers: int = 0
    """Number of processes. 0: one for each usable CPU."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("dataset"), argv)
    job = job_of(options)
    try:
        reader = open_reader(options.source, ReaderOptions(options.image_column, options.label_column, options.split))
        if (done := prepare.images_done(job.out)) is not None:
            print(f"resuming {job.out}, {done:,} images done")
        result = prepare.run(job, reader)
    except KeyboardInterrupt:
        done = prepare.images_done(job.out)
        if done is not None:
            print(f"stopped with {done:,} images done; run the same command again to resume", file=sys.stderr)
        raise
    print("\n".join(summary(job, result)))
    return SKIPPED_IMAGES if result.skipped else 0


def job_of(options: Options) -> prepare.Job:
    """The job that `options` describe. Raises UserError, naming the option, for an invalid one."""
    size = parse_size(options.resolution)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"--resolution {options.resolution}: must be at most {MAX_PIXELS:,} pixels in all")
    if not 0 <= options.workers <= MAX_WORKERS:
        raise UserError(f"--workers {options.workers}: must be 1 to {MAX_WORKERS}, or 0 for one a CPU")
    if options.shards < 0:
        raise UserError(f"--shards {options.shards}: must be 1 or more megabytes, or 0 for none")
    if options.out is None:
        stem = (
            "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(options.source).stem).strip("-.") or "images"
        )
        kind = f"-{options.shards}MB" if options.shards else ""
        name = f"{stem}-{size_text(size)}-{CHANNELS[options.channels]}{kind}"
        out = default_cache_dir() / "prepared" / name
    else:
        out = Path(options.out).expanduser()
    if options.shards and out.suffix.lower() == ".zip":
        raise UserError(f"--shards {options.shards}: a zip has none; choose a folder with --out, or leave it out")
    if not out.name:
        raise UserError(f"--out {options.out}: give the name of a folder or zip that is not there yet")
    target = Target(size, options.channels, options.crop, options.ground, options.enlarge)
    workers = options.workers or usable_cpus()
    return prepare.Job(options.source, out, target, options.shards * MEGABYTE, options.labels, workers)


def summary(job: prepare.Job, result: prepare.Result) -> list[str]:
    """Lines of the report: images written, images skipped, and the command to train on them."""
    size, count = size_text(job.target.size), len(result.class_names)
    classes = f"{count} classes" if count else "unlabelled"
    lines = [f"{job.out}: {result.images:,} images, {size} {CHANNELS[job.target.channels]}, {classes}"]
    if result.skipped:
        lines.append(f"skipped {len(result.skipped):,} images, listed in {result.skipped_file}:")
        reasons = Counter(prepare.kind_of(reason) for _, reason in result.skipped)
        lines += [f"  {number:,} {reason}" for reason, number in reasons.most_common(MOST_REASONS)]
        if rest := sum(reasons.values()) - sum(number for _, number in reasons.most_common(MOST_REASONS)):
            lines.append(f"  {rest:,} for other reasons")
        if prepare.SMALLER in reasons:
            lines.append("  (--enlarge uses smaller ones too)")
    lines += [f"note: {number:,} images: each {loss}" for loss, number in result.losses.most_common(MOST_REASONS)]
    lines += [f"note: {note}" for note in result.notes]
    data = job.out / SHARD_INDEX if job.shard_bytes else job.out
    width, height = job.target.size
    resolution = width if width == height else size
    lines.append(
        f"train with: {program('train')} --data {data} --resolution {resolution} --channels {job.target.channels}"
    )
    return lines
