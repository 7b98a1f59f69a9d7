"""Quality over time: races complete trainings by the clock, from the command to the pictures.

    python -m bench.time_to_quality OUT [--data NAME] [--minutes N] [--contestant CONTESTANT ...]

A contestant is

- a model family, such as `r3gan`: `fastgan train --amp --arch r3gan`, with its recipe for this data;
- `NAME=OPTIONS`, such as `"small=--batch 16 --lr-g 0.003"`: `fastgan train --amp` with these options;
- `textbook`: the default StyleGAN2 in plain PyTorch (`bench.textbook_run`), in fp32;
- `NAME=COMMAND`, such as `"ada=python ../stylegan2-ada/train.py --outdir {out} --data {data} --snap 1"`: another
  program, whose checkpoints `fastgan evaluate` reads.

Without any, every family and the textbook run. One trains at a time, alone on the machine, until its recipe ends or for
--minutes, and keeps checkpoints in OUT/NAME. A time is handed on to `fastgan train`, whose schedules then end with it;
other programs, networks that grow, and contestants with a length of their own are interrupted after it. Afterwards the
checkpoints nearest to equal parts of the time are evaluated by `fastgan evaluate` (KID, Fréchet distance, precision,
recall against held-out images where there are any) and, on glyphs, by the classifier of `bench.glyph_quality`. Minutes
count from the start of the command to the checkpoint, and include imports and preparation. A contestant that is
finished in OUT is not trained again.

If a contestant has learnt from a pretrained network (`--discriminator projected`), all are also measured on features
of another network, and the curves show those.

Writes OUT/race.json, the curves, OUT/race.png, and the last grid of samples of each training, OUT/NAME.png.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import glyph_quality, measure
from fastgan import models
from fastgan.cli import evaluate
from fastgan.data import open_dataset
from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.metrics import registry
from fastgan.runs.networks import open_networks
from fastgan.training import configure

ENDINGS = (".safetensors", ".pkl", ".pt")  # of checkpoints
STARTED, FINISHED = "started.json", "finished.json"  # files of a contestant's folder, beside the checkpoints
PATIENCE = 60.0  # seconds in which an interrupted training saves its checkpoint


@dataclass(frozen=True)
class Contestant:
    """A training by its command, in which {out} is the folder for its checkpoints and {data} the data.

    options: of `fastgan train`, if the command is that; None for another program.
    """

    name: str
    command: tuple[str, ...]
    options: tuple[str, ...] | None = None

    def start(self, folder: Path, data: str, *more: str) -> subprocess.Popen:
        parts = [part.replace("{out}", str(folder)).replace("{data}", data) for part in (*self.command, *more)]
        # Idle threads wait as in the command by itself, not as in the other benchmarks (`bench/__init__.py`).
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        with (folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                parts, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )

    def takes_minutes(self, data: str) -> bool:
        """Whether the command takes --minutes. Raises UserError for options that `fastgan train` refuses."""
        if self.options is None:
            return False
        given = configure.parse([part.replace("{data}", data) for part in self.options])
        has_length = given.training.images != "auto" or given.training.minutes > 0
        return not has_length and not configure.resolve(given).growth.grow_from


def contestant(text: str, options: list[str]) -> Contestant:
    """The contestant of a --contestant. options: of `fastgan train`, for all of them."""
    name, equals, given = text.partition("=")
    own = ("--amp", "--data", "{data}", *options)
    saving = ("--out", "{out}/run", "--checkpoint-interval", "2000", "--keep-checkpoints", "100000")
    if text == "textbook":
        return Contestant(text, (sys.executable, "-m", "bench.textbook_run", "{out}/run", "--data", "{data}", *options))
    if not equals and text in models.ARCHITECTURES:
        name, given = text, f"--arch {text}"
    if name and given.startswith("--"):
        own += tuple(shlex.split(given))
        return Contestant(name, (sys.executable, "-m", "fastgan.train", *own, *saving), own)
    if equals and name and "{out}" in given:
        return Contestant(name, tuple(shlex.split(given)))
    families = ", ".join(models.ARCHITECTURES)
    raise UserError(
        f"--contestant {text}: must be one of {families}, textbook, NAME=OPTIONS of fastgan train, or NAME=COMMAND "
        "with {out} in it"
    )


def train(entrant: Contestant, folder: Path, data: str, minutes: float | None) -> None:
    """Run the training in `folder`, unless it has finished there before.

    minutes: after so many it ends, or else is asked to save and end; None: no limit. Raises UserError if it fails.
    """
    if (folder / FINISHED).exists():
        return
    if folder.exists():
        raise UserError(f"{folder} has an unfinished training; remove it, or name another OUT")
    ends_itself = minutes is None or entrant.takes_minutes(data)
    more = ("--minutes", f"{minutes:g}") if ends_itself and minutes else ()
    folder.mkdir(parents=True)
    start = time.time()
    (folder / STARTED).write_text(json.dumps({"command": [*entrant.command, *more], "at": start}))
    process = entrant.start(folder, data, *more)
    try:
        code = process.wait(None if ends_itself else 60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)
    except BaseException:
        process.kill()
        raise
    if code not in (0, 130, -signal.SIGINT) or not checkpoints(folder):
        lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-5:]
        raise UserError(f"{entrant.name} ended with status {code}; its last lines: {' | '.join(lines)}")
    (folder / FINISHED).write_text(json.dumps({"seconds": time.time() - start}))


def checkpoints(folder: Path) -> list[tuple[float, Path]]:
    """(minutes since the start, file) of a contestant's checkpoints, in order of time."""
    start = json.loads((folder / STARTED).read_text())["at"]
    newest = "checkpoint.safetensors"  # is kept under a name with its images as well
    files = (path for path in folder.rglob("*") if path.suffix in ENDINGS and path.name != newest)
    return sorted(((path.stat().st_mtime - start) / 60, path) for path in files)


def spread(found: list[tuple[float, Path]], count: int) -> list[tuple[float, Path]]:
    """The checkpoints nearest to the ends of `count` equal parts of the time until the last one, each once."""
    end = found[-1][0]
    ends = [end * part / count for part in range(1, count + 1)]
    nearest = [min(found, key=lambda each: abs(each[0] - at)) for at in ends]
    return list(dict.fromkeys(nearest))


class Judge:
    """Measures checkpoints.

    Args:
        data: value of --data.
        samples: images drawn for the metrics; the classifier reads 1,000.
        metrics, heldout: as for `fastgan evaluate`.
    """

    def __init__(self, data: str, samples: int, metrics: str, heldout: str | None):
        self.data, self.samples, self.metrics, self.heldout = data, samples, metrics, heldout
        self.classifier: glyph_quality.Judge | None = None

    def row(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of a checkpoint, and `fastgan evaluate`'s whole report."""
        trained = open_networks(path)
        given = None if trained.header else self.data
        report = evaluate.measure(
            evaluate.Options(
                checkpoint=str(path), data=given, samples=self.samples, metrics=self.metrics, heldout=self.heldout
            )
        )
        assert report is not None, "this is the only process"
        row = report["samples"] | {"images": report["images_shown"]}
        if self.data == "glyphs":
            model = trained.model
            if self.classifier is None:
                classes = len(open_dataset("glyphs", model.resolution, model.channels).class_names)
                self.classifier = glyph_quality.Judge(model.resolution, model.channels, classes)
            figures = self.classifier.figures(trained.load(torch.device("cpu")), model.num_classes > 0)
            if figures["conditional"]:
                row["as_asked"] = figures["samples_as_asked"]
            else:
                row["rarest"] = min(figures["share_by_class"])
            row |= {"variety": glyph_quality.variety(figures), "novelty": glyph_quality.novelty(figures)}
        return row, report


PANELS = (
    ("kid", "KID x 1000", 1000.0),
    ("fd", "Fréchet distance", 1.0),
    ("precision", "precision", 1.0),
    ("recall", "recall", 1.0),
)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the metrics against minutes: a curve a contestant, and the floor; the format follows from the name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(11, 8), layout="constrained")
    is_judged = any("kid_lite2" in row for each in found["contestants"].values() for row in each["rows"])
    panels = [(f"{value}_lite2" if is_judged else value, *others) for value, *others in PANELS]
    if any("as_asked" in row for each in found["contestants"].values() for row in each["rows"]):
        figure.set_size_inches(15, 8)
        panels += [("as_asked", "classified as asked", 1.0), ("variety", "distance within a class, of real", 1.0)]
    grid = figure.subplots(2, len(panels) // 2).flat
    for axes, (value, title, scale) in zip(grid, panels, strict=True):
        lowest = math.inf
        for number, (name, each) in enumerate(found["contestants"].items()):
            rows = [row for row in each["rows"] if value in row]
            heights = [scale * row[value] for row in rows]
            lowest = min([lowest, *heights])
            style = "o-" if number < 10 else "s:"  # there are ten colours
            axes.plot([row["minutes"] for row in rows], heights, style, label=name, markersize=3)
        floor = (found["floor"] or {}).get(value)
        if floor is not None:
            axes.axhline(scale * floor, color="grey", linestyle="--", label="training images")
        if value.startswith(("kid", "fd")) and lowest > 0:  # an unbiased estimate can be negative
            axes.set_yscale("log")
            if floor is not None and scale * floor < lowest / 10:  # would squeeze the curves
                axes.set_ylim(bottom=lowest / 2)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left=0)
        axes.set_xlabel("minutes")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    figure.suptitle(
        f"{found['data']}: distance to {found['real']}, by {registry.LITE2 if is_judged else found['features']}\n"
        f"{found['device']} ({found['instructions']}), {threads}"
    )
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the trainings and the results")
    parser.add_argument("--data", default="glyphs", help="as for fastgan train")
    parser.add_argument("--resolution", help="as for fastgan train")
    parser.add_argument("--heldout", help="as for fastgan evaluate")
    parser.add_argument("--minutes", type=float, help="end each training after so many; default: when its recipe ends")
    parser.add_argument("--contestant", action="append", help="see above; once for each")
    parser.add_argument("--evaluations", type=int, default=8, help="checkpoints of each training that are evaluated")
    parser.add_argument("--samples", type=int, default=5000, help="samples per evaluation; at most as many real images")
    parser.add_argument("--metrics", default="kid,fd,pr", help="as for fastgan evaluate")
    given = parser.parse_args()
    if (given.minutes is not None and given.minutes <= 0) or given.evaluations < 1:
        parser.error("--minutes must be above 0, --evaluations 1 or more")
    options = [] if given.resolution is None else ["--resolution", given.resolution]
    try:
        entrants = [contestant(text, options) for text in given.contestant or [*models.ARCHITECTURES, "textbook"]]
        if len({each.name for each in entrants}) < len(entrants):
            raise UserError("two contestants have the same name")
        for each in entrants:
            print(f"training {each.name}", flush=True)
            train(each, given.out / each.name, given.data, given.minutes)
            if grids := sorted((given.out / each.name).rglob("grid-*.png")):
                shutil.copy(grids[-1], given.out / f"{each.name}.png")
        found = judge(entrants, given)
    except UserError as error:
        parser.error(str(error))
    write_atomically(given.out / "race.json", (json.dumps(found, indent=1) + "\n").encode(), "OUT")
    plot(found, given.out / "race.png")
    return 0


def common_metrics(entrants: list[Contestant], metrics: str) -> str:
    """Metrics for all contestants: also on features of a network from which none has learnt."""
    taught = any("projected" in each.command for each in entrants)
    return ",".join(registry.judged(registry.parse(metrics), "projected" if taught else "own"))


def judge(entrants: list[Contestant], given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the trainings in given.out, printing each row; returns the content of race.json."""
    examiner = Judge(given.data, given.samples, common_metrics(entrants, given.metrics), given.heldout)
    found = {**measure.machine(), "data": given.data, "samples": given.samples, "contestants": {}}
    for each in entrants:
        folder = given.out / each.name
        rows = []
        for minutes, path in spread(checkpoints(folder), given.evaluations):
            row, report = examiner.row(path)
            rows.append({"minutes": minutes} | row)
            shown = "  ".join(f"{value} {row[value]:.4f}" for value in row if isinstance(row[value], float))
            print(f"{each.name:16} {minutes:6.2f} min  {row['images'] or '?':>8} images  {shown}", flush=True)
        words = json.loads((folder / STARTED).read_text())["command"]
        command = " ".join("python" if word == sys.executable else word for word in words)
        found["contestants"][each.name] = {"command": command, "rows": rows}
        found |= {"real": report["real"], "floor": report["floor"], "features": ", ".join(report["features"])}
    return found


if __name__ == "__main__":
    sys.exit(main())
