"""Times whole training steps against plain PyTorch and against their own convolutions.

Contestants train the same networks (see textbook_models.py) on random images. The learning rate is tiny, so networks
hardly change. Lazy penalties count with their share: the time of a step is the mean over all kinds of steps.

- fastgan: `fastgan.training.step.Step` in fp32 and under `--amp`, channels_last, captured and replayed.
- eager launches: the same, not captured.
- with compile: the same with `--compile`.
- textbook: `textbook_training.Trainer` in fp32, for StyleGAN2 in both forms of its modulated convolution; NCHW or
  channels_last, whichever is faster on this machine.
- compile: the textbook under `torch.compile`, in both precisions. Phases with a penalty stay eager, since
  `torch.compile` has no double backward.
- bare: the dense convolutions of fastgan's steps at the same shapes, dtype and layout.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench import measure, report, textbook_models
from bench.convolutions import Bare
from bench.textbook_training import Trainer
from fastgan import models
from fastgan.ops import backends
from fastgan.runs import precision
from fastgan.runs.config import (
    Config,
    DataOptions,
    MachineOptions,
    NetworkOptions,
    RegularizationOptions,
    TrainingOptions,
)
from fastgan.runs.graphs import WARM_UPS
from fastgan.training.averages import Averages
from fastgan.training.configure import resolve
from fastgan.training.state import new_state
from fastgan.training.step import Step

LR = 1e-12
SECONDS = {"cpu": 60.0, "cuda": 10.0}
ROUNDS = (5, 50)


@dataclass(frozen=True)
class Case:
    """A family at its measured size, with its targets for 2 CPU cores with bf16.

    Attributes:
        network: options of `NetworkOptions`.
        resolution, channels, batch: sizes of the images.
        loss: value of `--loss`.
        r1_gamma, path_length: weights of the lazy penalties, due every 16th and every 4th step.
        style_mixing: probability of style mixing.
        shares_fakes: whether both phases of the textbook use the same generated images.
        modulations: forms of the textbook's modulated convolution.
        targets: least speed-up over the fastest textbook form in fp32, by our precision.
        of_bare: largest multiple of the bare convolutions' time, by precision.
        vs_grouped: least speed-up over the textbook's "grouped" form in fp32, by our precision.
    """

    network: dict
    resolution: int
    channels: int
    batch: int
    loss: str = "nonsaturating"
    r1_gamma: float = 0.0
    path_length: float = 0.0
    style_mixing: float = 0.0
    shares_fakes: bool = False
    modulations: tuple[str, ...] = ("scaled",)
    targets: dict[str, float] = field(default_factory=dict)
    of_bare: dict[str, float] = field(default_factory=dict)
    vs_grouped: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.channels}x{self.resolution}x{self.resolution}"

    def config(self, **machine) -> Config:
        """Configuration as from the command line. `machine`: options of `MachineOptions`."""
        labels = {"labels": False}
        return resolve(
            Config(
                network=NetworkOptions(**self.network),
                data=DataOptions(resolution=self.resolution, channels=self.channels, **labels),
                training=TrainingOptions(
                    loss=self.loss, batch=self.batch, discriminator_steps=1, lr_g=LR, lr_d=LR, betas=(0.0, 0.99),
                    style_mixing=self.style_mixing,
                ),
                regularization=RegularizationOptions(
                    r1_gamma=self.r1_gamma, r1_interval=16, path_length=self.path_length, path_interval=4,
                ),
                machine=MachineOptions(**machine),
            )
        )  # fmt: skip

    @property
    def model(self) -> models.ModelConfig:
        config = self.config()
        return models.ModelConfig(**vars(config.network), resolution=self.resolution, channels=self.channels)

    @property
    def kinds(self) -> dict[int, float]:
        """Number of one step of each kind, and the share of that kind among all steps."""
        if not self.path_length:
            return {1: 15 / 16, 16: 1 / 16} if self.r1_gamma else {1: 1.0}
        return {1: 12 / 16, 4: 3 / 16, 16: 1 / 16}  # plain; path length; path length and R1


STYLEGAN2 = {
    "arch": "stylegan2", "channel_base": 8192, "channel_max": 512, "z_dim": 512, "mapping_layers": 8, "noise": True,
    "pixel_shuffle": False,
}  # fmt: skip
CASES = {
    "stylegan2": Case(
        STYLEGAN2, 64, 3, 16, r1_gamma=1.0, path_length=2.0, style_mixing=0.9, modulations=textbook_models.MODULATIONS,
        targets={"fp32": 1.12, "bf16": 2.0}, of_bare={"fp32": 1.2, "bf16": 1.35}, vs_grouped={"bf16": 3.0},
    ),
    "pggan": Case(
        {"arch": "pggan", "channel_base": 8192, "channel_max": 512, "z_dim": 512}, 64, 3, 16, loss="wgan-gp",
        targets={"bf16": 2.5},
    ),
    "dcgan": Case(
        {"arch": "dcgan", "variant": "upsample", "channel_max": 128, "z_dim": 100}, 32, 1, 64, shares_fakes=True,
        targets={"fp32": 1.8, "bf16": 3.0},
    ),
    "default": Case(  # without labels
        {"arch": "stylegan2", "channel_base": 512, "channel_max": 128, "z_dim": 128, "mapping_layers": 2}, 32, 1, 32,
        r1_gamma=1.0, style_mixing=0.9,
    ),
}  # fmt: skip


def quick_cases() -> list[str]:
    """Families in the default benchmarks. On a CPU the steps of the others take seconds each."""
    return [*CASES] if measure.device().type == "cuda" else ["dcgan"]


def _data(case: Case) -> Tensor:
    shape = case.batch, case.channels, case.resolution, case.resolution
    return torch.randn(shape, device=measure.device())


class Ours:
    """fastgan's training; called with a number, makes the step of that number.

    `machine`: options of `MachineOptions`.
    """

    def __init__(self, case: Case, amp: bool, **machine):
        device, config = measure.device(), case.config(**machine)
        torch.manual_seed(0)
        self.state = new_state(case.model, config, device)
        if hasattr(self.state.generator, "grow_to"):
            for network in self.state.networks:
                network.grow_to(case.resolution)
        self.averages = Averages()
        autocast = precision.choose(amp, device).autocast
        self.step = Step(self.state, config, case.model.z_dim, autocast, self.averages)
        self.real = _data(case).to(memory_format=torch.channels_last)
        if self.step.why_not_captured is None:
            for number in [*case.kinds] * (WARM_UPS + 1):
                self(number)

    def __call__(self, number: int) -> None:
        self.state.step = number
        self.step(self.real, None)

    @property
    def failure(self) -> str | None:
        """Why capturing failed, or None."""
        return self.step.failure


class Textbook:
    """The textbook's training; called with a number, makes the step of that number."""

    def __init__(
        self, case: Case, modulation: str, layout: torch.memory_format, *, amp: bool = False, compiled: bool = False
    ):
        device = measure.device()
        torch.manual_seed(0)
        networks = textbook_models.build(case.model, modulation)
        networks = tuple(network.to(device, memory_format=layout) for network in networks)
        self.trainer = Trainer(
            networks, lr=LR, loss=case.loss, gamma=case.r1_gamma, path_weight=case.path_length,
            style_mixing=case.style_mixing, shares_fakes=case.shares_fakes,
            compile=partial(torch.compile, dynamic=False) if compiled else None,
            autocast=precision.choose(amp, device).autocast,
        )  # fmt: skip
        self.real = _data(case).to(memory_format=layout)

    def __call__(self, number: int) -> None:
        self.trainer.step = number
        self.trainer(self.real)


class Alone:
    """Bare convolutions of our steps; called with a number, does those of the step of that number."""

    def __init__(self, ours: Ours, kinds: dict[int, float]):
        self.steps = {number: Bare(lambda number=number: ours(number)) for number in kinds}

    def __call__(self, number: int) -> None:
        self.steps[number]()


def _faster_layout(case: Case) -> torch.memory_format:
    """The faster memory format for the textbook's plain step."""
    layouts = torch.contiguous_format, torch.channels_last
    steps = {str(layout): partial(Textbook(case, case.modulations[-1], layout), 1) for layout in layouts}
    timings = measure.alternate(steps, measure.WallClock(measure.device()), 0.0, rounds=(3, 3))
    return min(layouts, key=lambda layout: timings[str(layout)].seconds)


def _contestants(case: Case, notes: list[str]) -> dict[str, Callable[[int], None]]:
    amp = {"fp32": False, "bf16": True} if measure.has_bf16() else {"fp32": False}
    if "bf16" not in amp:
        notes.append("no bf16 instructions here: --amp computes in fp32")
    ours = {name: Ours(case, on) for name, on in amp.items()}
    contestants: dict[str, Callable[[int], None]] = {f"fastgan {name}": step for name, step in ours.items()}
    notes += [f"{name}: {why}" for name, step in ours.items() if (why := step.failure)]
    launched = {name: Ours(case, on, capture_steps="off") for name, on in amp.items()}
    contestants |= {f"launched {name}": step for name, step in launched.items()}
    layout = _faster_layout(case)
    contestants |= {f"bare {name}": Alone(step, case.kinds) for name, step in launched.items()}
    contestants |= {f"textbook {form}": Textbook(case, form, layout) for form in case.modulations}
    if measure.COMPILE:
        for name, on in amp.items():
            contestant_of = {
                "compile": lambda on=on: Textbook(case, case.modulations[-1], layout, amp=on, compiled=True),
                "with compile": lambda on=on: Ours(case, on, compile=True),
            }
            for form, make in contestant_of.items():
                made: list[Callable[[int], None]] = []
                if problem := measure.problem(lambda make=make, made=made: (made.append(make()), made[0](1))):
                    notes.append(f"torch.compile, {form} {name}: {problem}")
                else:
                    contestants[f"{form} {name}"] = made[0]
    return contestants


def run(arch: str) -> list[tuple[dict, Callable[[], object]]]:
    """Times all contestants. Returns, for each of fastgan's precisions, the report's row and the timed plain step."""
    torch.compiler.reset()
    case, notes = CASES[arch], []
    contestants = _contestants(case, notes)
    calls = {f"{name} {number}": partial(step, number) for name, step in contestants.items() for number in case.kinds}
    timings = measure.alternate(
        calls, measure.WallClock(measure.device()), SECONDS[measure.device().type], rounds=ROUNDS
    )
    steps = {name: _mean_step(timings, name, case.kinds) for name in contestants}
    return [
        (_row(arch, case, dtype, steps, notes), partial(contestants[f"fastgan {dtype}"], 1))
        for dtype in ("fp32", "bf16")
        if f"fastgan {dtype}" in steps
    ]


def _mean_step(timings: dict[str, measure.Timing], name: str, kinds: dict[int, float]) -> measure.Timing:
    rounds = zip(*(timings[f"{name} {number}"].rounds for number in kinds), strict=True)
    return measure.Timing(tuple(sum(s * t for s, t in zip(kinds.values(), each, strict=True)) for each in rounds))


def _row(arch: str, case: Case, dtype: str, steps: dict[str, measure.Timing], notes: list[str]) -> dict:
    ours = steps[f"fastgan {dtype}"]
    books = {form: steps[f"textbook {form}"] for form in case.modulations}
    fastest = min(books.values(), key=lambda timing: timing.seconds)
    grouped, compiled, bare = books.get("grouped"), steps.get(f"compile {dtype}"), steps.get(f"bare {dtype}")
    row = {
        "operation": report.TRAINING_STEP,
        "arch": arch,
        "loss": case.loss,
        "shape": case.shape,
        "dtype": dtype,
        "layout": "channels_last",
        "backend": backends.choose("noise_bias_act", measure.device()),
        "fastgan_ms": ours.seconds * 1e3,
        "images_per_s": case.batch / ours.seconds,
    }
    own = {form: steps.get(f"{form} {dtype}") for form in ("launched", "with compile")}
    others = {"textbook": fastest, "grouped": grouped, "compile": compiled}
    others |= {name.replace(" ", "_"): timing for name, timing in own.items()}
    for name, other in others.items():
        row[f"{name}_ms"] = other.seconds * 1e3 if other else None
        row[f"vs_{name}"] = ours.times_faster_than(other) if other else None
    row["bare_ms"] = bare.seconds * 1e3 if bare else None
    row["of_bare"] = bare.times_faster_than(ours) if bare else None
    asked = [
        (row["vs_textbook"], case.targets.get(dtype), 1), (row["vs_grouped"], case.vs_grouped.get(dtype), 1),
        (row["of_bare"], case.of_bare.get(dtype), -1), (row["vs_compile"], 1.0, 1),
    ]  # fmt: skip
    asked = [sign * (value - limit) >= 0 for value, limit, sign in asked if value is not None and limit is not None]
    row["targets"] = ("met" if all(asked) else "missed") if asked else None
    return row | {"rounds": len(ours.rounds), "notes": "; ".join(notes), **measure.machine()}
