"""noise_bias_act, forward and backward through autograd, in the two forms that StyleGAN2 calls it in."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from bench import bare_loop, measure, textbook
from fastgan import ops
from fastgan.ops import backends

OPERATION = "noise_bias_act"
# critic: bias, leaky ReLU, gain. The backward pass reads y.
# generator: demodulation, noise, bias, leaky ReLU, gain, next style. The backward pass reads x.
FORMS = ("critic", "generator")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {
    "cpu": ((16, 128, 32, 32), (8, 128, 64, 64), (4, 64, 256, 256)),
    "cuda": ((32, 512, 32, 32), (32, 256, 128, 128), (16, 128, 256, 256)),
}
SECONDS = {"cpu": 2.0, "cuda": 1.0}  # of measuring a case


@dataclass(frozen=True)
class Case:
    """What is timed: a form at a shape [N, C, H, W] in channels_last, in a dtype of `DTYPES`, on a device type."""

    device: str
    form: str
    shape: tuple[int, int, int, int]
    dtype: str

    def __str__(self) -> str:
        return f"{self.form}-{'x'.join(map(str, self.shape))}-{self.dtype}"

    def bytes_moved(self) -> int:
        """Each tensor that the forward pass, then the backward pass, must read or write, counted once a pass."""
        n, c, h, w = self.shape
        activation = n * c * h * w * DTYPES[self.dtype].itemsize
        noise, channels, samples, number = 4 * n * h * w, 4 * c, 4 * n * c, 4
        if self.form == "critic":
            forward = activation + channels + activation  # x, bias -> y
            backward = 2 * activation + activation + channels  # dy, y -> dx, dbias
        else:
            small = number + channels + 2 * samples  # strength, bias, scale and post, or their gradients
            forward = activation + noise + small + activation  # -> y
            backward = 2 * activation + noise + small + activation + small  # dy, x, ... -> dx, ...
        return forward + backward


def cases() -> list[tuple[Case, str]]:
    """Every case for the device at hand with each backend that is to be timed on it."""
    device = measure.device().type
    # On a GPU the two kernels are told apart; on a CPU there is but one, or none.
    names = ("cuda", "triton") if device == "cuda" else (backends.choose(OPERATION, device),)
    dtypes = ("bf16",) if device == "cuda" else tuple(DTYPES)
    return [
        (Case(device, form, shape, dtype), backend)
        for form in FORMS
        for shape in SHAPES[device]
        for dtype in dtypes
        for backend in names
    ]


class Inputs:
    """The tensors of a case; all contestants work on the same ones."""

    def __init__(self, case: Case):
        n, c, h, w = case.shape
        make = torch.Generator(case.device).manual_seed(0)

        def normal(*shape: int, grad: bool = True) -> Tensor:
            return torch.randn(shape, device=case.device, generator=make).requires_grad_(grad)

        def activation() -> Tensor:
            x = normal(n, c, h, w, grad=False)
            return x.to(DTYPES[case.dtype], memory_format=torch.channels_last)

        self.x, self.dy = activation().requires_grad_(), activation()
        self.others = {"bias": normal(c)}
        if case.form == "generator":
            self.others |= {
                "noise": normal(n, 1, h, w, grad=False),
                "strength": normal(),
                "scale": normal(n, c),
                "post": normal(n, c),
            }
        self.leaves = [t for t in (self.x, *self.others.values()) if t.requires_grad]

    def train(self, function: Callable[..., Tensor], backend: str | None = None) -> Tensor:
        """As a user's code does it: forward, then backward into fresh gradients. Returns y."""
        for leaf in self.leaves:
            leaf.grad = None
        if backend is None:
            y = function(self.x, **self.others, gain=math.sqrt(2))
        else:
            with ops.use_backend(backend):
                y = function(self.x, **self.others, gain=math.sqrt(2))
        y.backward(self.dy)
        return y


@lru_cache(maxsize=1)  # the backends of a case are asked for one after another, and raced against each other
def run(case: Case) -> tuple[dict[str, dict], dict[str, Callable[[], object]]]:
    """Races all contestants in a case. Returns, by backend, a row for the report and the timed call.

    A backend that cannot serve is in neither.
    """
    torch.compiler.reset()
    inputs, notes = Inputs(case), []
    wanted = [backend for each, backend in cases() if each == case]
    contestants = {
        backend: partial(inputs.train, ops.noise_bias_act, backend)
        for backend in wanted
        if backends.why_not(backend, OPERATION, case.device) is None
    }
    timed = dict(contestants)
    contestants["eager"] = partial(inputs.train, textbook.noise_bias_act)
    contestants["compile"] = partial(inputs.train, torch.compile(textbook.noise_bias_act, dynamic=False))
    if problem := measure.problem(contestants["compile"]):
        notes.append(f"torch.compile: {problem}")
        del contestants["compile"]
    _require_agreement(inputs, contestants)
    if case.device == "cpu":
        loops, problem = bare_loop.build()
        if loops:
            contestants["bare loop"] = partial(
                bare_loop.forward_backward, loops, inputs.x.detach(), inputs.dy, from_output=case.form == "critic"
            )
        else:
            notes.append(f"bare loop: {problem}")

    clock = measure.GpuClock() if case.device == "cuda" else measure.WallClock(measure.device())
    timings = measure.alternate(contestants, clock, SECONDS[case.device])
    return {backend: _row(case, backend, timings, notes) for backend in timed}, timed


def _require_agreement(inputs: Inputs, contestants: dict[str, Callable[[], Tensor]]) -> None:
    """All must compute the same: a contestant that does not is no contestant."""
    expected = None
    for name, call in contestants.items():
        results = call().detach().float(), inputs.x.grad.float()
        expected = expected or results
        for ours, theirs in zip(results, expected, strict=True):
            error = (ours - theirs).norm() / theirs.norm()
            if not error < 0.05:  # in bf16 the textbook rounds after each operation, across the kink at times
                raise AssertionError(f"{name} differs from {next(iter(contestants))} by {error:.3f}")


def _row(case: Case, backend: str, timings: dict[str, measure.Timing], notes: list[str]) -> dict:
    ours, copy = timings[backend], measure.copy_bandwidth()
    rate = case.bytes_moved() / ours.seconds
    row = {
        "operation": OPERATION,
        "form": case.form,
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "layout": "channels_last",
        "backend": backend,
        "fastgan_ms": ours.seconds * 1e3,
    }
    for name, key in (("eager", "eager"), ("compile", "compile"), ("bare loop", "bare_loop")):
        other = timings.get(name)
        row[f"{key}_ms"] = other.seconds * 1e3 if other else None
        row[f"vs_{key}"] = ours.times_faster_than(other) if other else None
    return row | {
        "bytes_moved": case.bytes_moved(),
        "gb_per_s": rate / 1e9,
        "copy_gb_per_s": copy / 1e9,
        "share_of_copy": rate / copy,
        "rounds": len(ours.rounds),
        "targets": _targets(case.device, row, rate / copy),
        "notes": "; ".join(notes),
        **measure.machine(),
    }


def _targets(device: str, row: dict, share_of_copy: float) -> str:
    """Which targets are met. CPU: 4x eager or 85 % of the bare loop, and torch.compile; GPU: 90 % of a copy."""
    if device == "cuda":
        missed = [] if share_of_copy >= 0.9 else ["90 % of copy"]
    else:
        missed = [] if row["vs_eager"] >= 4 or (row["vs_bare_loop"] or 0) >= 0.85 else ["4x eager or 85 % of bare loop"]
    if row["vs_compile"] is not None and row["vs_compile"] < 1:
        missed.append("torch.compile")
    return "missed: " + ", ".join(missed) if missed else "met"
