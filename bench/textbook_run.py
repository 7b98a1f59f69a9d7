"""A whole training in plain PyTorch: `python -m bench.textbook_run OUT [--images N] [--data NAME] [--resolution R]`.

Networks, images, their order, hyper-parameters and initial weights are those of `fastgan train` with the same options
and seed; the code is the textbook's (`textbook_training.Trainer`) in fp32, in the form of its modulated convolution and
the memory format that are fastest on this machine. OUT gets checkpoints of the EMA generator that fastgan reads.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from bench import measure, textbook_models
from bench.textbook_training import Trainer
from fastgan import models
from fastgan.data import ImageDataset, ShuffledStream, open_dataset
from fastgan.errors import UserError
from fastgan.ops import image_batch
from fastgan.runs import checkpoint
from fastgan.runs.checkpoint import State
from fastgan.runs.config import Config, DataOptions, MachineOptions
from fastgan.training.configure import resolve
from fastgan.training.state import new_state

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Task:
    """What is trained: options, networks, images.

    Args:
        config: unresolved configuration of `fastgan train`.
        dataset: the images; None for those named by the configuration.
    """

    def __init__(self, config: Config, dataset: ImageDataset | None = None):
        self.config, self.device = resolve(config), measure.device()
        options = self.config.data
        self.dataset = dataset or open_dataset(
            options.source, options.resolution, options.channels, classes=options.classes
        )
        self.model = models.ModelConfig(
            **vars(self.config.network), resolution=options.resolution, channels=options.channels,
            num_classes=self.dataset.num_classes,
        )  # fmt: skip
        self.batch = self.config.training.batch
        self._order = ShuffledStream(len(self.dataset), self.config.machine.seed)

    def fresh_state(self) -> State:
        """New networks and optimizers; the same every time."""
        torch.manual_seed(self.config.machine.seed)
        return new_state(self.model, self.config, self.device)

    def images(self, position: int) -> tuple[Tensor, Tensor]:
        """Batch at a position in the order of images, channels_last, and its labels."""
        index = self._order.take(position, self.batch)
        real = image_batch(torch.from_numpy(self.dataset.images[index]).to(self.device))
        return real, torch.from_numpy(self.dataset.labels[index]).to(self.device)


class Textbook:
    """The textbook's training, from fastgan's initial weights; a call makes a step."""

    def __init__(self, task: Task, modulation: str, layout: str):
        self.task, self.layout, self.shown = task, LAYOUTS[layout], 0
        self.about = f"textbook, float32 ({modulation}, {layout})"
        self.state = task.fresh_state()
        options, terms = task.config.training, task.config.regularization
        networks = textbook_models.build(task.model, modulation)
        for network, ours in zip(networks, (self.state.generator, self.state.discriminator), strict=True):
            network.load_state_dict(ours.state_dict())
            network.to(task.device, memory_format=self.layout)
        self.trainer = Trainer(
            networks, loss=options.loss, gamma=terms.r1_gamma, r1_interval=terms.r1_interval,
            path_weight=terms.path_length, path_interval=terms.path_interval, style_mixing=options.style_mixing,
            ema_halflife=options.ema_halflives[0] * 1000, ema_rampup=options.ema_rampup,
        )  # fmt: skip
        of_both = (self.trainer.optimizer_g, self.state.optimizer_g), (self.trainer.optimizer_d, self.state.optimizer_d)
        for own, ours in of_both:  # lazy regularisation scales them
            own.param_groups[0] |= {name: ours.param_groups[0][name] for name in ("lr", "betas", "eps")}

    def __call__(self) -> None:
        real, label = self.task.images(self.shown)
        self.trainer(real.contiguous(memory_format=self.layout), label)
        self.shown += self.task.batch

    def save(self, folder: Path) -> None:
        """Write the networks as a checkpoint of fastgan that is named by the images shown."""
        state = self.state
        for own, theirs in (
            (state.generator, self.trainer.generator),
            (state.discriminator, self.trainer.discriminator),
            (state.ema, self.trainer.average),
        ):
            own.load_state_dict(theirs.state_dict())
        state.step, state.images = self.trainer.step, self.shown
        path = folder / f"checkpoint-{self.shown:09d}.safetensors"
        dataset = self.task.dataset
        summary = {"images": len(dataset), "class_names": dataset.class_names, "digests": dataset.digests}
        checkpoint.save(path, state, self.task.config, self.task.model, summary)


def fastest(task: Task) -> Textbook:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for the checkpoints")
    parser.add_argument("--data", default="glyphs", help="as for fastgan train; with classes")
    parser.add_argument("--resolution", default="auto", help="as for fastgan train")
    parser.add_argument("--images", type=int, help="length of the training; default: that of fastgan train")
    parser.add_argument("--interval", type=int, default=2000, help="images between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        task = Task(
            Config(
                data=DataOptions(source=given.data, resolution=given.resolution),
                machine=MachineOptions(seed=given.seed),
            )
        )
        given.out.mkdir(parents=True)
        textbook = fastest(task)
        print(textbook.about, flush=True)
        saved = 0
        while textbook.shown < (given.images or task.config.training.images):
            textbook()
            if textbook.shown - saved >= given.interval:
                textbook.save(given.out)
                saved = textbook.shown
        if saved != textbook.shown:
            textbook.save(given.out)
    except UserError as error:
        parser.error(str(error))
    except FileExistsError:
        parser.error(f"{given.out} exists; name a new folder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
