"""Tiny trainings on random images: networks, optimizers and the step, without data, files or a command line."""

from contextlib import nullcontext

import pytest
import torch

from fastgan import models
from fastgan.runs import config as configuration
from fastgan.training import configure
from fastgan.training.averages import Averages
from fastgan.training.growth import stage_at
from fastgan.training.state import new_state
from fastgan.training.step import Step


class TinyTraining:
    """A tiny training on random images, which grows if it is given a schedule."""

    def __init__(
        self, arch="dcgan", regularization=None, labels=False, schedule=None, recorder=None, device="cpu",
        capture_steps="off", compile=False, autocast=nullcontext, scaled=False, discriminator="own", resolution=8,
        network=None, **options,
    ):  # fmt: skip
        config = configure.resolve(
            configuration.Config(
                network=configuration.NetworkOptions(
                    arch=arch,
                    channel_base=64,
                    channel_max=8,
                    z_dim=8,
                    discriminator=discriminator,
                    projected_size=64 if discriminator == "projected" else 0,
                    **(network or {}),
                ),
                data=configuration.DataOptions(resolution=resolution, labels=labels),
                training=configuration.TrainingOptions(**{"batch": 8, "ema_halflife": 0.01, **options}),
                regularization=configuration.RegularizationOptions(**(regularization or {})),
                machine=configuration.MachineOptions(capture_steps=capture_steps, compile=compile),
            )
        )
        model = models.ModelConfig(**vars(config.network), resolution=resolution, num_classes=4 if labels else 0)
        torch.manual_seed(0)
        self.device, self.schedule, self.averages, self.labels = torch.device(device), schedule, Averages(), labels
        self.state = new_state(model, config, self.device)
        if recorder is not None:
            recorder.training = self
        self.step = Step(self.state, config, 8, autocast, self.averages, recorder, scaled=scaled)
        self.images, self.resolution = torch.Generator().manual_seed(1), resolution

    def run(self, steps):
        for _ in range(steps):
            side, factor = self.resolution, 1.0
            if self.schedule:
                stage = stage_at(self.state.images, self.schedule)
                side, factor = stage.resolution, stage.lr_factor
                for network in self.state.networks:
                    network.grow_to(side, stage.alpha)
                if self.state.stage is not None and self.state.stage[0] != side:
                    self.state.optimizer_g.state.clear()
                    self.state.optimizer_d.state.clear()
                self.state.stage = side, stage.alpha
            real = torch.rand(8, 1, side, side, generator=self.images) * 2 - 1
            label = torch.randint(4, (8,), generator=self.images) if self.labels else None
            self.step(real.to(self.device), None if label is None else label.to(self.device), factor)
        return self

    def tensors(self):
        """Everything that a step changes on the device, except averages."""
        found = {}
        for name, module in self.state.modules().items():
            found |= {f"{name}.{key}": value for key, value in module.state_dict(keep_vars=True).items()}
        for name, (optimizer, module) in self.state.optimizers().items():
            for key, parameter in module.named_parameters():
                moments = optimizer.state.get(parameter, {})
                found |= {f"{name}.{key}.{moment}": value for moment, value in moments.items()}
        return {name: value.detach() for name, value in found.items()}


def assert_same(one, other, rtol=2e-4):
    """Weights, EMA and moments are equal up to rounding."""
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        named = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=rtol / 20, msg=named)
    means, expected = one.averages.read(), other.averages.read()
    assert means == {name: pytest.approx(value, rel=10 * rtol, abs=rtol) for name, value in expected.items()}
