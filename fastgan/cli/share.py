"""`fastgan share`: a trained generator as a folder to hand on, with a card, and on the Hugging Face hub.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C. The folder is complete, or is not there.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastgan.cli import evaluate
from fastgan.cli.generate import Grid, Label
from fastgan.data import hub
from fastgan.errors import UserError, command_line, program, readable
from fastgan.files import TEMPORARY_SUFFIX, file_digest, remove, sync_directory, write_atomically
from fastgan.options import HalfLife, PathText, parse_options
from fastgan.runs.config import FILE_NAME as CONFIG_FILE_NAME
from fastgan.runs.grid import SMALLEST_CELL
from fastgan.runs.memory import out_of_memory_is_user_error

if TYPE_CHECKING:
    from fastgan.runs.checkpoint import Header

CARD, PICTURE, METRICS = "README.md", "samples.png", "metrics.json"
WIDEST = 2048  # pixels of the picture's side, about; larger if a single image is
MOST_CLASSES, MOST_SEEDS, SEEDS_WITHOUT_CLASSES = 10, 10, 32  # in the picture


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained generator into a folder to hand on: the EMA's weights alone, the options of its training, a
    picture of samples, metrics, and a card, README.md, that describes them.

    The folder, and its copy on the Hugging Face hub, is loaded like a run: --checkpoint DIR, hf://USER/NAME. Places of
    files and the machine are left out.
    """

    run: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, or a checkpoint file; local or at a URL."""
    out: Annotated[PathText, tyro.conf.arg(metavar="DIR")]
    """Folder to write, a new one. Its name is the card's title."""
    license: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none is given)")] = None
    """Licence of the network, like apache-2.0 or cc-by-4.0. Mind the licences of the training images and of networks
    that the training began with."""
    about: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """What the training images are, their source and licence. Known of built-in data."""
    metrics: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/metrics.json, if it is there)")
    ] = None
    """Metrics of this checkpoint, as written by --json of fastgan evaluate."""
    ema: HalfLife = None
    """Half-life of the EMA to share, in thousands of images, of a training that has kept several."""
    push: Annotated[str | None, tyro.conf.arg(metavar="USER/NAME", help_behavior_hint="")] = None
    """Also upload the folder to this repository of the Hugging Face hub, which is created if there is none. Needs the
    extra "huggingface", and hf auth login."""
    private: bool = False
    """With --push: create the repository for you alone."""

    def check(self) -> None:
        """Raises UserError for options that are wrong for any checkpoint."""
        for name in ("license", "about"):
            given = getattr(self, name)
            if given is not None and (not given.strip() or not given.isprintable()):
                raise UserError(f"--{name} {readable(given)}: must be one line of text")
        if self.private and self.push is None:
            raise UserError("--private: is for a repository that --push creates; leave it out")
        if self.push is not None:
            hub.require_upload(self.push)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("share"), argv)
    with out_of_memory_is_user_error("end other programs"):
        share(options)
    return 0


def share(options: Options) -> None:
    """Write the folder that `options` asks for, and upload it. Raises UserError for a wrong option or file."""
    options.check()

    from fastgan.runs.networks import open_networks

    trained = open_networks(options.run, options.ema)
    header = trained.header
    if header is None:
        raise UserError(
            f"{trained.path} is of another program, and does not say how it was trained; "
            f"{program('train')} --init-from {trained.path} goes on with it as a run"
        )
    ema = header.config.training.ema_halflives[0] if options.ema is None else options.ema
    report = _report(options, header, ema)
    out = Path(os.path.abspath(options.out))
    _require_new(out, options.out)
    temporary = out.with_name(f"{out.name}.share{TEMPORARY_SUFFIX}")
    try:
        remove(temporary)  # left by a killed process
        temporary.mkdir(parents=True)
        try:
            _write(temporary, out.name, header, ema, report, options)
            if out.exists():
                out.rmdir()  # empty
            os.rename(temporary, out)
            sync_directory(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {options.out}: {error.strerror or error}; make room or choose another place with --out"
        ) from error
    if report is None:
        print(f"the card has no metrics: {program('evaluate')} --json FILE takes them, for --metrics FILE")
    print(options.out)
    if options.push is not None:
        try:
            print(hub.upload(out, options.push, options.private))
        except UserError as error:
            raise UserError(
                f"{error}; the folder is written, hf upload {options.push} {options.out} sends it"
            ) from None
        print(f"fastgan generate --checkpoint {hub.PREFIX}{options.push}")


def _require_new(out: Path, given: str) -> None:
    """Raise UserError if there is something at `out`, an empty folder apart."""
    try:
        taken = os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"--out {given}: {error.strerror}; choose another folder") from None
    if taken:
        raise UserError(f"--out {given}: is there already; choose another folder, or remove it")


def _write(
    folder: Path, title: str, header: Header, ema: float, report: dict[str, Any] | None, options: Options
) -> None:
    """Write all files into `folder`."""
    from fastgan import sharing
    from fastgan.runs import checkpoint
    from fastgan.runs.config import to_dict

    path = folder / checkpoint.FILE_NAME
    write_atomically(path, sharing.network(header, options.ema))
    shared = checkpoint.read_header(path)
    config = json.dumps(to_dict(sharing.public(header.config)), indent=2)
    write_atomically(folder / CONFIG_FILE_NAME, config.encode())
    generator, _ = checkpoint.load_generator(path)  # what is drawn comes from the file that is shared
    names = header.dataset["class_names"] if header.model.num_classes else []
    fitting = max(1, WIDEST // max(SMALLEST_CELL, *header.model.feature_size(header.model.resolution)))
    labels: list[Label] = [(name, number) for number, name in enumerate(names[: min(fitting, MOST_CLASSES)])]
    seeds = min(fitting, MOST_SEEDS if labels else SEEDS_WITHOUT_CLASSES)
    grid = Grid(checkpoint=str(path), seeds=f"0-{seeds - 1}")
    grid.write(generator, labels or [("", None)], folder / PICTURE)
    files = {
        path.name: f"the generator; SHA-256 {file_digest(path)}",
        CONFIG_FILE_NAME: "all options of the training",
    }
    if report is not None:
        # Why a metric is missing may name places of files.
        report = report | {"checkpoint": path.name, "checkpoint_digest": shared.digest, "missing": {}}
        for name in ("data", "real"):
            if report[name] is not None:
                report[name] = sharing.name_of(report[name])
        write_atomically(folder / METRICS, (json.dumps(report, indent=2) + "\n").encode())
        files[METRICS] = "the metrics, with their conditions"
    text = sharing.card(
        title, header, ema=ema, about=options.about, license=options.license, repository=options.push, files=files,
        report=None if report is None else evaluate.table(report),
    )  # fmt: skip
    write_atomically(folder / CARD, text.encode())


def _report(options: Options, header: Header, ema: float) -> dict[str, Any] | None:
    """The report that `fastgan evaluate` wrote of this checkpoint, or None. Raises UserError for another's."""
    given = options.metrics is not None
    path = Path(options.metrics) if options.metrics is not None else header.path.parent / METRICS
    if not given and not path.is_file():
        return None
    try:
        report = json.loads(path.read_bytes())
        evaluate.table(report)
        report["data"], report["real"]
        digest, measured = report["checkpoint_digest"], float(report["ema"] or 0)
    except OSError as error:
        raise UserError(f"--metrics {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"--metrics {path}: is not what {program('evaluate')} --json writes") from None
    if digest != header.digest:
        if not given:
            print(f"{path} is of another checkpoint: left out")
            return None
        raise UserError(f"--metrics {path}: is of another checkpoint than {header.path}; measure this one")
    if measured != ema:
        raise UserError(f"--metrics {path}: is of the EMA of half-life {measured:g}, not {ema:g}; see --ema")
    return report
