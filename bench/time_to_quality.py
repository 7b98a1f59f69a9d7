"""Quality over time: fastgan and plain PyTorch train the same StyleGAN2 on glyphs, for the same minutes each.

    python -m bench.time_to_quality [--minutes 10] [--evaluations 10] [--json FILE] [--plot FILE.png]

Networks, data and hyper-parameters are those of `fastgan train`: 32x32, ten classes. Both start from the same
weights and see the same images in the same order. They run in turns of a few seconds, so that other work on the machine
hits both. A contestant's clock runs in its own turns only, and includes its first step and preparing its batches.

- fastgan: `fastgan.training.step.Step` as under `--amp`: bf16 where the machine has instructions for it.
- textbook: `textbook_training.Trainer` in fp32, in the fastest form of its modulated convolution and memory format on
  this machine.

At equal intervals (clock paused) the EMA draws fixed latents in fp32 and KID is measured, against glyphs in held-out
fonts (`fastgan.metrics`, which needs the extra "metrics"). Floor: KID of as many training images. Total time: twice
--minutes plus evaluations.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench import measure, textbook_models
from bench.textbook_training import Trainer
from fastgan import models
from fastgan.data import ImageDataset, ShuffledStream, open_dataset
from fastgan.errors import UserError
from fastgan.metrics.efficientnet import EfficientNet
from fastgan.metrics.reference import Reference, choose_subsets, random_labels
from fastgan.ops import image_batch
from fastgan.runs import precision
from fastgan.runs.checkpoint import State
from fastgan.runs.config import Config, MachineOptions
from fastgan.runs.drawing import to_uint8
from fastgan.training.averages import Averages
from fastgan.training.configure import resolve
from fastgan.training.state import new_state
from fastgan.training.step import Step

TURN = 3.0  # seconds
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
COLOURS = {"fastgan": "tab:blue", "textbook": "tab:orange"}


class Task:
    """The task of both contestants: options, networks, images.

    Args:
        seed: seed of weights, order of images and latents.
        config: unresolved configuration of `fastgan train`.
        dataset: the images; None for those named by the configuration.
    """

    def __init__(self, seed: int, config: Config | None = None, dataset: ImageDataset | None = None):
        self.seed, self.device = seed, measure.device()
        self.config = resolve(config or Config(machine=MachineOptions(seed=seed)))
        options = self.config.data
        self.dataset = dataset or open_dataset(
            options.source, options.resolution, options.channels, classes=options.classes
        )
        self.model = models.ModelConfig(
            **vars(self.config.network), resolution=options.resolution, channels=options.channels,
            num_classes=self.dataset.num_classes,
        )  # fmt: skip
        self.batch = self.config.training.batch
        self._order = ShuffledStream(len(self.dataset), seed)

    def fresh_state(self) -> State:
        """New networks and optimizers; the same every time."""
        torch.manual_seed(self.seed)
        return new_state(self.model, self.config, self.device)

    def images(self, position: int) -> tuple[Tensor, Tensor]:
        """Batch at a position in the order of images, channels_last, and its labels."""
        index = self._order.take(position, self.batch)
        real = image_batch(torch.from_numpy(self.dataset.images[index]).to(self.device))
        return real, torch.from_numpy(self.dataset.labels[index]).to(self.device)


class Ours:
    """fastgan's training; a call makes a step."""

    def __init__(self, task: Task, amp: bool = True):
        self.task, self.state, self.shown = task, task.fresh_state(), 0
        compute = precision.choose(amp, task.device)
        self.about = f"fastgan, {str(compute.dtype).removeprefix('torch.')}"
        self.step = Step(self.state, task.config, task.model.z_dim, compute.autocast, Averages())

    @property
    def average(self) -> nn.Module:
        return self.state.ema

    def __call__(self) -> None:
        self.step(*self.task.images(self.shown))
        self.shown += self.task.batch


class Textbook:
    """The textbook's training, from fastgan's initial weights; a call makes a step."""

    def __init__(self, task: Task, modulation: str, layout: str):
        self.task, self.layout, self.shown = task, LAYOUTS[layout], 0
        self.about = f"textbook, float32 ({modulation}, {layout})"
        state, options, terms = task.fresh_state(), task.config.training, task.config.regularization
        networks = textbook_models.build(task.model, modulation)
        for network, ours in zip(networks, (state.generator, state.discriminator), strict=True):
            network.load_state_dict(ours.state_dict())
            network.to(task.device, memory_format=self.layout)
        self.trainer = Trainer(
            networks, loss=options.loss, gamma=terms.r1_gamma, r1_interval=terms.r1_interval,
            path_weight=terms.path_length, path_interval=terms.path_interval, style_mixing=options.style_mixing,
            ema_halflife=options.ema_halflife * 1000, ema_rampup=options.ema_rampup,
        )  # fmt: skip
        of_both = (self.trainer.optimizer_g, state.optimizer_g), (self.trainer.optimizer_d, state.optimizer_d)
        for own, ours in of_both:  # lazy regularisation scales them
            own.param_groups[0] |= {name: ours.param_groups[0][name] for name in ("lr", "betas", "eps")}

    @property
    def average(self) -> nn.Module:
        return self.trainer.average

    def __call__(self) -> None:
        real, label = self.task.images(self.shown)
        self.trainer(real.contiguous(memory_format=self.layout), label)
        self.shown += self.task.batch


Contestant = Ours | Textbook


def fastest_textbook(task: Task) -> Textbook:
    """A new one, in the form and memory format with the fastest plain step here."""
    forms = list(product(textbook_models.MODULATIONS, LAYOUTS))
    steps = {str(form): _plain_steps(Textbook(task, *form)) for form in forms}
    timings = measure.alternate(steps, measure.WallClock(task.device), 0.0, rounds=(5, 5))
    return Textbook(task, *min(forms, key=lambda form: timings[str(form)].seconds))


def _plain_steps(contestant: Textbook) -> Callable[[], None]:
    contestant()  # the first step has a penalty

    def step() -> None:
        contestant.trainer.step = 1
        contestant()

    return step


def race(
    contestants: dict[str, Contestant],
    minutes: float,
    evaluations: int,
    evaluate: Callable[[str, float], None],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Trains all contestants in turns, `minutes` each.

    Calls evaluate(name, minutes so far) at the start and after each of `evaluations` equal parts of the time, following
    the first step that ends there or later. `clock` returns seconds.
    """
    done = dict.fromkeys(contestants, 0.0)
    for part in range(evaluations + 1):
        end = 60 * minutes * part / evaluations
        while any(seconds < end for seconds in done.values()):
            for name, step in contestants.items():
                until = min(done[name] + TURN, end)
                start = clock()
                while (taken := clock() - start) < until - done[name]:
                    step()
                    _wait()
                done[name] += taken
        for name in contestants:
            evaluate(name, done[name] / 60)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def draw(generator: nn.Module, labels: np.ndarray, seed: int, batch: int = 100) -> np.ndarray:
    """Samples uint8 [N, H, W, C] for labels [N], with random noise. Deterministic; leaves RNG states unchanged."""
    device = next(generator.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latents = torch.randn(len(labels), generator.z_dim).to(device).split(batch)
        parts = zip(latents, torch.from_numpy(labels).to(device).split(batch), strict=True)
        return np.concatenate([to_uint8(generator(z, label)) for z, label in parts])


def run(minutes: float, evaluations: int, samples: int, seed: int) -> dict:
    """Trains and measures both, and prints progress. Returns the content of the JSON file."""
    task = Task(seed)
    options = task.config.data
    heldout = open_dataset(
        options.source, options.resolution, options.channels, classes=options.classes, split="heldout"
    )
    extractor = EfficientNet(task.device)
    real, floor = choose_subsets(task.dataset, heldout, samples, seed=seed)
    reference = Reference(real, extractor, real.features(extractor), seed=seed)
    labels = random_labels(task.dataset, samples, seed)
    contestants = {"fastgan": Ours(task), "textbook": fastest_textbook(task)}
    found = _description(task, contestants) | {"minutes": minutes, "seed": seed}
    found |= {"real": real.name, "real_images": len(real.index)}
    found["floor"] = {"of": floor.name} | _measured(reference, floor.features(extractor))
    print(f"floor: {floor.name} to {real.name}: KID {found['floor']['kid']:.5f}", flush=True)

    def evaluate(name: str, at: float) -> None:
        contestant = contestants[name]
        features = extractor(draw(contestant.average, labels, seed))
        row = {"minutes": at, "images": contestant.shown} | _measured(reference, features)
        found["contestants"][name]["evaluations"].append(row)
        print(f"{contestant.about:40} {at:6.2f} min {contestant.shown:8,} images  KID {row['kid']:8.5f}")
        sys.stdout.flush()

    race(contestants, minutes, evaluations, evaluate)
    found["minutes_to_textbooks_last"] = minutes_to_last(found["contestants"])
    return found


def _description(task: Task, contestants: dict[str, Contestant]) -> dict:
    return {
        **measure.machine(),
        "arch": task.model.arch,
        "data": task.dataset.describe(),
        "batch": task.batch,
        "contestants": {name: {"about": each.about, "evaluations": []} for name, each in contestants.items()},
    }


def _measured(reference: Reference, features: np.ndarray) -> dict[str, float]:
    return {"compared": len(features)} | reference.measure(("kid", "fd"), features)


def minutes_to_last(contestants: dict[str, dict]) -> float | None:
    """Minutes after which fastgan's KID first reached the textbook's last; None if it never did.

    The start does not count: early in training, images move away from real ones, so untrained ones may be nearer.
    """
    last = contestants["textbook"]["evaluations"][-1]["kid"]
    reached = (row["minutes"] for row in contestants["fastgan"]["evaluations"][1:] if row["kid"] <= last)
    return next(reached, None)


def plot(found: dict, path: Path) -> None:
    """Draws KID against minutes, for both contestants and the floor; the format follows from the name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lowest = found["floor"]["kid"]
    for name, contestant in found["contestants"].items():
        rows = contestant["evaluations"]
        kids = [row["kid"] for row in rows]
        label = f"{contestant['about']}: {rows[-1]['images']:,} images"
        axes.plot([row["minutes"] for row in rows], kids, "o-", color=COLOURS[name], label=label, markersize=4)
        lowest = min(lowest, *(row["kid"] for row in rows))
    floor = found["floor"]
    axes.axhline(floor["kid"], color="grey", linestyle="--", label=f"{floor['of']}, the floor")
    if lowest > 0:  # an unbiased estimate can be negative
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("KID, EfficientNet-Lite0")
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    machine = f"{found['device']} ({found['instructions']}), {threads}"
    axes.set_title(f"{found['arch']}, batch {found['batch']}: distance to {found['real']}\n{machine}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of training for each of the two")
    parser.add_argument("--evaluations", type=int, default=10, help="number of evaluations after the one at the start")
    parser.add_argument("--samples", type=int, default=2000, help="samples per evaluation; at most as many real images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot KID against minutes to FILE")
    parser.add_argument("--seed", type=int, default=0, help="seed for weights, order of images, latents")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.evaluations < 1 or arguments.samples < 4:
        parser.error("--minutes must be above 0, --evaluations 1 or more, --samples 4 or more")
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.parent.is_dir():
            parser.error(f"{path}: there is no folder {path.parent}")
    try:
        found = run(arguments.minutes, arguments.evaluations, arguments.samples, arguments.seed)
    except UserError as error:
        parser.error(str(error))
    reached = found["minutes_to_textbooks_last"]
    when = "did not reach" if reached is None else f"after {reached:.2f} minutes reached"
    print(f"fastgan {when} the textbook's last KID")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
