"""A training step of a model family: the critic's, then the generator's, without penalty or average.

The networks are fastgan's for every contestant; in the eager and the compiled one `noise_bias_act` is the textbook's.
The critic's fakes are detached, not made without a graph as in training: that costs no one time, and spares
`torch.compile`, which takes minutes over these networks on a CPU, a quarter of its work.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from bench import measure, textbook
from fastgan import models
from fastgan.losses import OBJECTIVES
from fastgan.ops import backends
from fastgan.training import precision

FAMILIES = ("stylegan2", "dcgan")
BATCH, RESOLUTION, CLASSES = 32, 32, 10
SECONDS = 8.0


class Trainer:
    """Generator, critic and optimizers of one contestant; calling it makes a step."""

    def __init__(self, arch: str, textbook_operations: bool = False, compiled: bool = False):
        device = measure.device()
        torch.manual_seed(0)
        config = models.ModelConfig(arch, resolution=RESOLUTION, num_classes=CLASSES)
        networks = models.build(config)
        self.generator, self.critic = (each.to(device, memory_format=torch.channels_last) for each in networks)
        # A learning rate of zero costs the same work and keeps the networks from drifting as they are timed.
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(each.parameters(), lr=0.0, betas=(0.0, 0.99), fused=True) for each in networks
        )
        self.generate = torch.compile(self.generator, dynamic=False) if compiled else self.generator
        self.judge = torch.compile(self.critic, dynamic=False) if compiled else self.critic
        self.mixing = {"style_mixing": 0.9} if "style_mixing" in self.generator.supports else {}
        self.operations = textbook.in_models if textbook_operations else nullcontext
        self.autocast = precision.choose(True, device).autocast
        self.objective = OBJECTIVES["nonsaturating"]
        self.real = torch.randn(BATCH, config.channels, RESOLUTION, RESOLUTION, device=device)
        self.label = torch.arange(BATCH, device=device) % CLASSES

    def __call__(self) -> None:
        with self.operations():
            self._critic_step()
            self._generator_step()

    def _critic_step(self) -> None:
        self.optimizer_d.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.objective.critic_fake(self.judge(self._fakes().detach(), self.label))
        loss.backward()
        with self.autocast():
            loss = self.objective.critic_real(self.judge(self.real, self.label))
        loss.backward()
        self.optimizer_d.step()

    def _generator_step(self) -> None:
        self.optimizer_g.zero_grad(set_to_none=True)
        self.critic.requires_grad_(False)
        with self.autocast():
            loss = self.objective.generator(self.judge(self._fakes(), self.label))
        loss.backward()
        self.critic.requires_grad_(True)
        self.optimizer_g.step()

    def _fakes(self) -> Tensor:
        z = torch.randn(BATCH, self.generator.z_dim, device=self.label.device)
        return self.generate(z, self.label, **self.mixing)


def run(arch: str) -> tuple[dict, Callable[[], object]]:
    """Races the contestants. Returns a row for the report, and fastgan's step."""
    torch.compiler.reset()
    notes, device = [], measure.device()
    step = Trainer(arch)
    contestants = {
        "fastgan": step,
        "eager": Trainer(arch, textbook_operations=True),
    }
    if measure.COMPILE:
        compiled = Trainer(arch, textbook_operations=True, compiled=True)
        if problem := measure.problem(compiled):
            notes.append(f"torch.compile: {problem}")
        else:
            contestants["compile"] = compiled
    timings = measure.alternate(contestants, measure.WallClock(device), SECONDS, rounds=(8, 50))
    ours = timings["fastgan"]
    row = {
        "operation": "training_step",
        "arch": arch,
        "shape": f"{BATCH}x1x{RESOLUTION}x{RESOLUTION}",
        "dtype": {torch.float32: "fp32", torch.bfloat16: "bf16"}[precision.choose(True, device).dtype],
        "layout": "channels_last",
        "backend": backends.choose("noise_bias_act", device),
        "fastgan_ms": ours.seconds * 1e3,
        "images_per_s": BATCH / ours.seconds,
    }
    for name in ("eager", "compile"):
        other = timings.get(name)
        row[f"{name}_ms"] = other.seconds * 1e3 if other else None
        row[f"vs_{name}"] = ours.times_faster_than(other) if other else None
    return row | {"rounds": len(ours.rounds), "notes": "; ".join(notes), **measure.machine()}, step
