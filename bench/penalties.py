"""Times a discriminator step with gradient penalties: without one, by double backward, and in one pass.

The discriminators treat samples independently: StyleGAN2's at 64x64 without minibatch stddev, and DCGAN's at 32x32
without batch norm. Generated images are given. Steps differ only in the penalty: each calls the discriminator on real
and on generated images, with a backward pass each. Both forms of the penalty use fastgan's layers.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import measure, report
from fastgan.layers import ConvDownsample2d, EqualizedConv2d, EqualizedLinear
from fastgan.losses import nonsaturating_fake, nonsaturating_real
from fastgan.models import ModelConfig
from fastgan.models.stylegan2 import ResidualBlock
from fastgan.ops import backends
from fastgan.ops.layout import channels_last
from fastgan.penalties import logits_and_squared_grad, wgan_gp, why_not_one_pass, zero_centered_penalty
from fastgan.runs import precision

GAMMA, LAMBDA = 10.0, 10.0
SECONDS = 30.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Convolution passes over a batch per step: (double backward, one pass). Without penalty: 6.
PASSES = {"R1": (9, 7), "R1+R2": (12, 8), "WGAN-GP": (12, 10)}
# Targets of the residual discriminator on 2 CPU cores: (at most × the plain step, at least × double backward's speed).
TARGETS = {"R1": (1.35, 1.15), "R1+R2": (1.5, 1.6), "WGAN-GP": (None, 1.15)}


class Residual(nn.Module):
    """image [N, 3, 64, 64] to logits [N]."""

    batch, resolution, targets = 8, 64, TARGETS
    channels = (64, 128, 128, 128, 128)  # at 64, 32, ... 4

    def __init__(self):
        super().__init__()
        last = self.channels[-1]
        self.from_rgb = EqualizedConv2d(3, self.channels[0], 1, act="lrelu", clamp=256.0)
        self.blocks = nn.ModuleList(ResidualBlock(ModelConfig(), i, o) for i, o in itertools.pairwise(self.channels))
        self.conv = EqualizedConv2d(last, last, 3, act="lrelu", clamp=256.0)
        self.dense = EqualizedLinear(last * 16, last, act="lrelu")
        self.out = EqualizedLinear(last, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.from_rgb(channels_last(image))
        for block in self.blocks:
            x = block(x)
        return self.out(self.dense(self.conv(x).flatten(1))).squeeze(1)


class Strided(nn.Module):
    """image [N, 3, 32, 32] to logits [N]: 4x4 convolutions of stride 2 (Radford et al. 2016, without batch norm)."""

    batch, resolution, targets = 64, 32, None
    channels = (3, 64, 128, 256)  # at 32, 16, 8, 4

    def __init__(self):
        super().__init__()
        pairs = itertools.pairwise(self.channels)
        self.convs = nn.Sequential(*(ConvDownsample2d(i, o, act="lrelu") for i, o in pairs))
        self.out = EqualizedLinear(self.channels[-1] * 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.convs(channels_last(image)).flatten(1)).squeeze(1)


DISCRIMINATORS = {"residual": Residual, "strided": Strided}


class Step:
    """Forward and backward of a discriminator step, without the optimizer, which costs all steps the same."""

    def __init__(self, discriminator: nn.Module, one_pass: bool, dtype: torch.dtype):
        device = measure.device()
        self.discriminator = discriminator
        # A function instead of a module: the one-pass form does not apply, so double backward runs.
        self.judge = discriminator if one_pass else lambda image: discriminator(image)
        self.autocast = lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        generator = torch.Generator().manual_seed(1)
        shape = discriminator.batch, 3, discriminator.resolution, discriminator.resolution
        self.real, self.fake = (channels_last(torch.randn(shape, generator=generator).to(device)) for _ in range(2))

    def __call__(self, penalty: str | None) -> None:
        self.discriminator.zero_grad(set_to_none=True)
        self._half(self.real, nonsaturating_real, penalty in ("R1", "R1+R2"))
        self._half(self.fake, nonsaturating_fake, penalty == "R1+R2")
        if penalty == "WGAN-GP":
            with self.autocast():
                loss = LAMBDA * wgan_gp(self.judge, self.real, self.fake)
            loss.backward()

    def _half(self, images: Tensor, objective: Callable[[Tensor], Tensor], penalized: bool) -> None:
        with self.autocast():
            if penalized:
                logits, squares = logits_and_squared_grad(self.judge, images)
                loss = objective(logits) + GAMMA * zero_centered_penalty(squares)
            else:
                loss = objective(self.judge(images))
        loss.backward()


def run(name: str, dtype: str) -> list[tuple[dict, Callable[[], object]]]:
    """Times the steps of a discriminator. Returns, for each penalty, the report's row and the timed one-pass call."""
    device = measure.device()
    torch.manual_seed(0)
    discriminator = DISCRIMINATORS[name]().to(device, memory_format=torch.channels_last)
    one_pass, double = (Step(discriminator, form, DTYPES[dtype]) for form in (True, False))
    reason = why_not_one_pass(discriminator, one_pass.real)
    assert reason is None, reason
    contestants = {"plain": lambda: double(None)}
    for penalty in PASSES:
        _require_agreement(one_pass, double, penalty, dtype)
        contestants[f"{penalty} double"] = lambda penalty=penalty: double(penalty)
        contestants[f"{penalty} one pass"] = lambda penalty=penalty: one_pass(penalty)
    timings = measure.alternate(contestants, measure.WallClock(device), SECONDS, rounds=(8, 50))
    notes = ""
    if dtype == "bf16" and device.type == "cpu" and not precision.cpu_bf16_features():
        notes = "this CPU has no bf16 instructions"
    rows = []
    for penalty, (passes_double, passes) in PASSES.items():
        ours, theirs, plain = timings[f"{penalty} one pass"], timings[f"{penalty} double"], timings["plain"]
        over_plain, over_double = plain.times_faster_than(ours), ours.times_faster_than(theirs)
        row = {
            "operation": report.PENALTIES,
            "form": penalty,
            "discriminator": name,
            "shape": f"2x{discriminator.batch}x3x{discriminator.resolution}x{discriminator.resolution}",
            "dtype": dtype,
            "layout": "channels_last",
            "backend": backends.choose("noise_bias_act", device.type),
            "fastgan_ms": ours.seconds * 1e3,
            "plain_ms": plain.seconds * 1e3,
            "double_backward_ms": theirs.seconds * 1e3,
            "of_plain": over_plain,
            "passes_of_plain": f"{passes}/6",
            "vs_double_backward": over_double,
            "double_backward_of_plain": plain.times_faster_than(theirs),
            "passes_vs_double_backward": f"{passes_double}/{passes}",
            "rounds": len(ours.rounds),
            "notes": notes,
            **measure.machine(),
        }
        if discriminator.targets:
            most, least = discriminator.targets[penalty]
            row["targets"] = "met" if (most is None or over_plain <= most) and over_double >= least else "missed"
        rows.append((row, contestants[f"{penalty} one pass"]))
    return rows


def _require_agreement(one_pass: Step, double: Step, penalty: str, dtype: str) -> None:
    grads = []
    for step in (one_pass, double):
        torch.manual_seed(2)  # the interpolation draws
        step(penalty)
        grads.append(torch.cat([p.grad.flatten() for p in step.discriminator.parameters()]))
    error = (grads[0] - grads[1]).norm() / grads[1].norm()
    assert error < {"fp32": 1e-4, "bf16": 5e-2}[dtype], f"{penalty}: gradients differ by {error:.2g}"
