"""Times one fused operation against plain PyTorch, forward and backward through autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from bench import bare_loop, measure
from fastgan import ops
from fastgan.ops import backends

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = {"cpu": 2.0, "cuda": 0.4}  # per case

Shape = tuple[int, int, int, int]
Normal = Callable[..., Tensor]  # (*sizes) -> fp32 tensor from N(0, 1)


Results = Tensor | tuple[Tensor | None, ...]


def present(results: Results) -> list[Tensor]:
    """The results of an operation that are not None, in a list."""
    return [y for y in (results if isinstance(results, tuple) else (results,)) if y is not None]


@dataclass(frozen=True, eq=False)
class Form:
    """One way in which models call an operation.

    Attributes:
        operation: name for the backends; None if it has no kernels of its own.
        label: Markdown for the published tables.
        fused: the operation, called with x and `tensors` by name; returns a tensor, or several in a tuple.
        textbook: the same in plain PyTorch.
        tensors: makes the other arguments, in fp32; one of the shape of x becomes an activation like x.
        shapes: shapes of x, by device type.
        fixed: tensors without a gradient.
        saved: tensor that backward reads beside the gradient: "x", "y" or "" for none. None if the operation is bound
            by arithmetic, so that bytes do not count.
        bare_loop: whether a bare loop makes the same reads and writes.
        faster: target on a CPU, times as fast as eager.
        compile: whether to time torch.compile.
    """

    operation: str | None
    name: str
    label: str
    fused: Callable[..., Results]
    textbook: Callable[..., Results]
    tensors: Callable[[Shape, Normal], dict[str, Tensor]]
    shapes: dict[str, tuple[Shape, ...]]
    fixed: tuple[str, ...] = ()
    saved: str | None = "x"
    bare_loop: bool = False
    faster: float = 4.0
    compile: bool = True

    @property
    def backend_names(self) -> tuple[str, ...]:
        """Backends to time on this device."""
        device = measure.device().type
        if self.operation is None:
            return ("torch",)
        return ("cuda", "triton") if device == "cuda" else (backends.choose(self.operation, device),)


@dataclass(frozen=True)
class Case:
    """A form at one shape of x [N, C, H, W], channels_last, in a dtype of `DTYPES`, on a device type."""

    form: Form
    device: str
    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{self.form.name}-{'x'.join(map(str, self.shape))}-{self.dtype}"


def cases(forms: tuple[Form, ...]) -> list[tuple[Case, str]]:
    """All cases of the forms for this device, each with every backend to time."""
    device = measure.device().type
    dtypes = ("bf16",) if device == "cuda" else tuple(DTYPES)
    return [
        (Case(form, device, shape, dtype), backend)
        for form in forms
        for shape in form.shapes[device]
        for dtype in dtypes
        for backend in form.backend_names
    ]


class Inputs:
    """Tensors of a case, shared by all contestants."""

    def __init__(self, case: Case):
        make = torch.Generator(case.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=case.device, generator=make)

        def activation(t: Tensor) -> Tensor:
            return t.to(DTYPES[case.dtype], memory_format=torch.channels_last)

        form = case.form
        self.x = activation(normal(*case.shape)).requires_grad_()
        self.others = form.tensors(case.shape, normal)
        for name, tensor in self.others.items():
            if tensor.shape == case.shape:
                tensor = self.others[name] = activation(tensor)
            tensor.requires_grad_(name not in form.fixed)
        with torch.no_grad():
            results = present(form.fused(self.x, **self.others))
        self.grads = [normal(*y.shape).to(y.dtype) for y in results]
        self.grads = [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in self.grads]
        self.leaves = [t for t in (self.x, *self.others.values()) if t.requires_grad]

    def forward(self, function: Callable[..., Results], backend: str | None = None) -> Results:
        """Forward without a graph, as in generation. Returns the results."""
        with torch.no_grad():
            return self._call(function, backend)

    def train(self, function: Callable[..., Results], backend: str | None = None) -> Results:
        """Forward, then backward into fresh gradients, as in training. Returns the results."""
        for leaf in self.leaves:
            leaf.grad = None
        results = self._call(function, backend)
        torch.autograd.backward(present(results), self.grads)
        return results

    def _call(self, function, backend):
        if backend is None:
            return function(self.x, **self.others)
        with ops.use_backend(backend):
            return function(self.x, **self.others)

    def bytes_moved(self, saved: str) -> tuple[int, int]:
        """Bytes that forward and backward must read or write, each tensor once per pass."""
        x, y = self.x.nbytes, sum(g.nbytes for g in self.grads)
        small = sum(t.nbytes for t in self.others.values())
        gradients = sum(t.nbytes for t in self.others.values() if t.requires_grad)
        read_again = {"x": x, "y": y, "": 0}[saved]
        return x + small + y, y + read_again + (small if saved == "x" else 0) + x + gradients


@lru_cache(maxsize=1)  # callers ask for the backends of a case one by one, and they are timed together
def run(case: Case) -> tuple[dict[str, dict], dict[str, Callable[[], object]]]:
    """Times all contestants of a case. Returns, by backend, the report's row and the timed call.

    A backend that cannot run here is in neither.
    """
    torch.compiler.reset()
    form, inputs, notes = case.form, Inputs(case), []
    ours = [name for name in form.backend_names if _why_not(form, name, case.device) is None]
    contestants = {name: partial(inputs.train, form.fused, name if form.operation else None) for name in ours}
    timed = dict(contestants)
    contestants["eager"] = partial(inputs.train, form.textbook)
    if form.compile and measure.COMPILE:
        contestants["compile"] = partial(inputs.train, torch.compile(form.textbook, dynamic=False))
        if problem := measure.problem(contestants["compile"]):
            notes.append(f"torch.compile: {problem}")
            del contestants["compile"]
    _require_agreement(inputs, contestants)
    if case.device == "cpu" and form.bare_loop:
        loops, problem = bare_loop.build()
        if loops:
            from_output = form.saved == "y"
            contestants["bare loop"] = partial(
                bare_loop.forward_backward, loops, inputs.x.detach(), inputs.grads[0], from_output
            )
            contestants["in autograd"] = partial(inputs.train, bare_loop.in_autograd(loops, from_output))
            contestants["copies in autograd"] = partial(inputs.train, bare_loop.copies_in_autograd(loops))
        else:
            notes.append(f"bare loop: {problem}")
    forward = {name: partial(inputs.forward, form.fused, name if form.operation else None) for name in ours}
    forward["eager"] = partial(inputs.forward, form.textbook)

    clock = measure.GpuClock() if case.device == "cuda" else measure.WallClock(measure.device())
    both = measure.alternate(contestants, clock, SECONDS[case.device])
    alone = measure.alternate(forward, clock, SECONDS[case.device] / 4)
    return {name: _row(case, name, inputs, both, alone, notes) for name in ours}, timed


def _why_not(form: Form, backend: str, device: str) -> str | None:
    return backends.why_not(backend, form.operation, device) if form.operation else None


def _require_agreement(inputs: Inputs, contestants: dict[str, Callable[[], Results]]) -> None:
    """Raises AssertionError if a contestant computes something else."""
    expected = None
    for name, call in contestants.items():
        results = [*(y.detach().float() for y in present(call())), inputs.x.grad.float()]
        expected = expected or results
        for ours, theirs in zip(results, expected, strict=True):
            error = (ours - theirs).norm() / theirs.norm()
            if not error < 0.05:  # bf16 textbooks round after each operation, at times across the kink
                raise AssertionError(f"{name} differs from {next(iter(contestants))} by {error:.3f}")


def _row(case: Case, backend: str, inputs: Inputs, both: dict, alone: dict, notes: list[str]) -> dict:
    form, ours = case.form, both[backend]
    row = {
        "operation": form.operation or form.name,
        "form": form.name,
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "layout": "channels_last",
        "backend": backend,
        "fastgan_ms": ours.seconds * 1e3,
    }
    for name, key in (("eager", "eager"), ("compile", "compile"), ("bare loop", "bare_loop")):
        other = both.get(name)
        row[f"{key}_ms"] = other.seconds * 1e3 if other else None
        row[f"vs_{key}"] = ours.times_faster_than(other) if other else None
    if "in autograd" in both:
        row["bare_loop_in_autograd"] = both["in autograd"].times_faster_than(both["bare loop"])
        row["copies_in_autograd"] = both["copies in autograd"].times_faster_than(both["bare loop"])
    row["forward_ms"] = alone[backend].seconds * 1e3
    row["forward_vs_eager"] = alone[backend].times_faster_than(alone["eager"])
    if form.saved is not None:
        copy = measure.copy_bandwidth()
        forward, backward = inputs.bytes_moved(form.saved)
        rate = (forward + backward) / ours.seconds
        row |= {"bytes_moved": forward + backward, "gb_per_s": rate / 1e9, "copy_gb_per_s": copy / 1e9}
        row["share_of_copy"] = rate / copy
    return row | {
        "rounds": len(ours.rounds),
        "targets": _targets(case, row),
        "notes": "; ".join(notes),
        **measure.machine(),
    }


def _targets(case: Case, row: dict) -> str:
    """The targets that a row misses: of eager or the bare loop (CPU), of copy bandwidth (GPU), of torch.compile."""
    missed = []
    if case.device == "cuda" and "share_of_copy" in row:
        missed += [] if row["share_of_copy"] >= 0.9 else ["90 % of copy"]
    elif row["vs_eager"] < case.form.faster and (row["vs_bare_loop"] or 0) < 0.85:
        missed += [f"{case.form.faster:g}x eager" + (" or 85 % of bare loop" if case.form.bare_loop else "")]
    if row["vs_compile"] is not None and row["vs_compile"] < 1:
        missed.append("torch.compile")
    return "missed: " + ", ".join(missed) if missed else "met"
