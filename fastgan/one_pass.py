"""Logits, and the squared norm of their gradient with respect to the images, without double backward.

A piecewise linear critic is, around its images x, affine: `logit = <g, x> + constants`, where g is at once its gradient
and its adjoint, run backwards from 1. Let `a[l]` be the adjoint at the result of layer l, `h[l]` that layer's input.
For any loss of logits and squared norms `|g|^2`, with c = dL/dlogit and p = dL/d|g|^2 per sample:

- the weights' part of `c * logit` is the usual product of `c * h[l]` and `a[l]`;
- that of `p * |g|^2` is 2p times the derivative of `<g, v>`, v = g held fixed, which is the critic's derivative in the
  direction v: the product of `t[l]` and `a[l]`, where t are the tangents of v, run forwards;
- both are linear in the layers' inputs and share `a[l]`. So the masked linear critic is run once more, on
  `s = c * x + 2p * g`, with every constant (biases, label planes) scaled by c: its layers' inputs are
  `c * h[l] + t[l]`, and one weight gradient a layer against the kept `a[l]` is all. Activations are not needed, but for
  their signs.

Convolution passes over N images: forward, adjoint, replay and weight gradient, 4, where a plain step has 3 and double
backward 6. As c is the full derivative, losses that couple samples (relativistic ones) are exact as well.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from fastgan import piecewise_linear
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.noise_bias_act import linearized, sum_of_samples
from fastgan.piecewise_linear import Affine, NotPiecewiseLinear, Path, PiecewiseLinear


def logits_and_squares(
    critic: nn.Module, images: Tensor, labels: Tensor | None, squared_norm: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits [N] and `squared_norm(g)` [N] of their gradient g, as `fastgan.losses.critic_with_grad_norm` has them.

    `squared_norm` of [N, ...] is the sum of squares of each sample.

    Raises NotPiecewiseLinear if the critic, or this call of it, does not qualify. A critic's first batch is checked
    against the critic itself, so that what tracing cannot see is found out.
    """
    plan = piecewise_linear.plan(critic, labels is not None)
    expected = None if plan.agrees else _plain(critic, images, labels)
    record = _Record(images)
    try:
        record.finish(plan.run(critic, record, labels))
        if expected is not None:
            plan.agrees = _agree(expected, record)
    except NotPiecewiseLinear as reason:
        if expected is not None:
            piecewise_linear.rule_out(critic, labels is not None, str(reason))
        raise
    return _OnePass.apply(record, squared_norm(record.gradient), images, *record.inputs)


def _plain(critic: nn.Module, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        logits = critic(x) if labels is None else critic(x, labels)
        (gradient,) = torch.autograd.grad(logits.sum(), x)
    return logits.detach(), gradient


def _agree(expected: tuple[Tensor, Tensor], record: _Record) -> bool:
    """Whether the traced critic is the critic; False if that cannot be told yet, for infinite or no numbers.

    Raises NotPiecewiseLinear if it is another one. What tracing overlooks (a branch, a factor) moves all numbers; what
    they may differ by is rounding, and the signs that rounding turns.
    """
    logits, gradient = map(to_arithmetic, expected)
    if logits.numel() == 0 or not (logits.isfinite().all() and gradient.isfinite().all()):
        return False
    images = record.images.detach()
    rounded = any(t.element_size() == 2 for t in (images, *record.outputs.values(), *record.inputs))
    for what, plain, traced, size, tolerance in (
        # Logits of an untrained critic may be all but zero where their terms are not.
        ("logits", logits.flatten(), record.logits, logits.norm() + (gradient * images).norm(), 1e-3),
        ("gradients", gradient, record.gradient, gradient.norm(), 0.02),
    ):
        if (plain - traced).norm() > (0.2 if rounded else tolerance) * size:
            raise NotPiecewiseLinear(f"traced, it has other {what}: its forward does what tracing does not see")
    return True


# The program of a batch -------------------------------------------------------------------------------------------


class _Slot(int):
    """The number of an effective weight, bias or constant among the inputs of the Function."""


class _AffineStep(NamedTuple):
    function: Callable[..., Tensor]
    paths: tuple[Path, ...]
    result: Path
    weights: tuple[_Slot, ...]
    constants: tuple[_Slot | float, ...]  # a _Slot or a number as it stands
    rank: int  # dimensions of the result


class _ActivationStep(NamedTuple):
    path: Path
    result: Path
    bias: _Slot | None
    slope: float
    gain: float
    clamp: float | None


_Step = _AffineStep | _ActivationStep


class _Record:
    """Runs a critic on its images while noting what backward needs; see `Plan.run`, which drives it.

    Attributes:
        values: what depends on the images, as far as it is still to be read; a graph of autograd leads to the images.
        inputs: effective weights, biases and constants, whose own graphs lead to the parameters.
        steps: what has been run.
        outputs: of activations, by step: their signs tell which way each went.
        logits, gradient, adjoints: once finished; `adjoints` at the values whose weights or biases want a gradient.
    """

    def __init__(self, images: Tensor):
        with torch.enable_grad():
            self.images = images.detach().requires_grad_()
        self.values: dict[Path, Tensor] = {Path(0): self.images}
        self.inputs: list[Tensor] = []
        self.steps: list[_Step] = []
        self.outputs: dict[Path, Tensor] = {}
        self.adjoints: dict[Path, Tensor] = {}
        self._edges: dict[Path, object] = {}
        self._count = 1

    def affine(self, step: Affine) -> Path:
        weights, constants = step.weights, step.constants
        with torch.enable_grad():
            y = step.function(
                *(self.values[path] for path in step.paths),
                *(weight.detach() for weight in weights),
                *(k.detach() if isinstance(k, Tensor) else k for k in constants),
            )
        result = self._add(y)
        slots = tuple(self._input(k) if isinstance(k, Tensor) else k for k in (*weights, *constants))
        at = len(weights)
        self.steps.append(_AffineStep(step.function, step.paths, result, slots[:at], slots[at:], y.dim()))
        if any(isinstance(k, Tensor) and k.requires_grad for k in (*weights, *constants)):
            self._edges[result] = get_gradient_edge(y)
        return result

    def layer(self, path: Path, layer: PiecewiseLinear) -> Path:
        linear, bias = layer.linear or _alias, layer.bias
        if layer.activates:
            # Also a bias needs a value of its own, read by nothing else: its gradient is the sum of the adjoint there.
            between = layer.linear is not None or bias is not None
            u = self.affine(Affine(linear, (path,), layer.weights)) if between else path
            result = self._activation(u, layer)
            if between:
                self.forget(u)
            return result
        if bias is None:
            return self.affine(Affine(linear, (path,), layer.weights))
        bias = bias.view(-1, *[1] * (self.values[path].dim() - 2))
        return self.affine(
            Affine(lambda x, *given: linear(x, *given[:-1]) + given[-1], (path,), layer.weights, (bias,))
        )

    def _activation(self, path: Path, layer: PiecewiseLinear) -> Path:
        u, bias = self.values[path], layer.bias
        if u.dim() < 2:
            raise NotPiecewiseLinear("an activation of [N] is not known")
        with torch.enable_grad():
            y = noise_bias_act(
                u,
                bias=None if bias is None else bias.detach(),
                act="lrelu",
                slope=layer.slope,
                gain=layer.gain,
                clamp=layer.clamp,
            )
        result = self._add(y)
        slot = None if bias is None else self._input(bias)
        self.steps.append(_ActivationStep(path, result, slot, layer.slope, layer.gain, layer.clamp))
        if layer.slope != 1 or layer.clamp is not None:
            self.outputs[result] = y.detach()
        if bias is not None and bias.requires_grad and path not in self._edges:
            self._edges[path] = get_gradient_edge(u)
        return result

    def forget(self, path: Path) -> None:
        """The value will not be read again."""
        del self.values[path]

    def finish(self, result: Path) -> None:
        """Takes the critic's result, and runs the adjoint."""
        n = self.images.shape[0]
        result = self.values[result]
        if result.shape not in ((n,), (n, 1)):
            raise NotPiecewiseLinear(f"its result has shape {list(result.shape)}, must be [{n}] or [{n}, 1]")
        self.values.clear()
        with torch.enable_grad():
            logits = to_arithmetic(result.reshape(n))
            total = logits.sum()
        self.logits = logits.detach()
        edges = self._edges
        self._edges = {}
        del result, logits
        self.gradient, *adjoints = torch.autograd.grad(total, [self.images, *edges.values()], allow_unused=True)
        if self.gradient is None:
            raise NotPiecewiseLinear("its result does not depend on the images")
        self.adjoints = {path: a for path, a in zip(edges, adjoints, strict=True) if a is not None}

    def _add(self, y: Tensor) -> Path:
        if y.dim() == 0 or y.shape[0] != self.images.shape[0]:
            raise NotPiecewiseLinear(
                f"a value of shape {list(y.shape)} does not count the {self.images.shape[0]} samples in dimension 0"
            )
        if not y.requires_grad:
            raise NotPiecewiseLinear("a step has no gradient")
        path = Path(self._count)
        self._count += 1
        self.values[path] = y
        return path

    def _input(self, tensor: Tensor) -> _Slot:
        self.inputs.append(tensor)
        return _Slot(len(self.inputs) - 1)


def _alias(x: Tensor) -> Tensor:
    return x.view_as(x)


# Autograd ---------------------------------------------------------------------------------------------------------


class _OnePass(torch.autograd.Function):
    """(images, *effective weights, biases, constants) to (logits, squares), both already there in the record."""

    @staticmethod
    def forward(ctx, record: _Record, squares: Tensor, images: Tensor, *inputs: Tensor):
        ctx.set_materialize_grads(False)
        # As in the record, but for tensors: those are saved where autograd frees them after the backward pass.
        ctx.wants_weights = any(ctx.needs_input_grad[3:])
        saved = [record.gradient]
        if ctx.wants_weights:
            ctx.steps = record.steps
            ctx.layout = len(inputs), tuple(record.outputs), tuple(record.adjoints)
            ctx.autocast = _autocast_of(images.device.type)
            ctx.context = contextvars.copy_context()  # the choice of backends: backward may run in another thread
            saved += [images, *inputs, *record.outputs.values(), *record.adjoints.values()]
        ctx.save_for_backward(*saved)
        return record.logits, squares

    @staticmethod
    def backward(ctx, c: Tensor | None, p: Tensor | None):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "critic_with_grad_norm: its result can be differentiated once; with create_graph=True, hide the critic "
                "in a function (lambda x, label: critic(x, label)), which takes the form that is differentiable twice"
            )
        gradient, *saved = ctx.saved_tensors
        of_images, of_inputs = None, [None] * (len(ctx.needs_input_grad) - 3)
        if c is not None and ctx.needs_input_grad[2]:
            of_images = _per_sample(c, gradient) * gradient
        if ctx.wants_weights and not (c is None and p is None):
            images, *saved = saved
            inputs, outputs, adjoints = ctx.layout
            found = iter(saved)
            replay = _Replay(
                [next(found) for _ in range(inputs)],
                dict(zip(outputs, found, strict=False)),
                dict(zip(adjoints, found, strict=True)),
                ctx.needs_input_grad[3:],
            )
            with ctx.autocast():
                of_inputs = ctx.context.copy().run(replay.run, ctx.steps, images, gradient, c, p)
        return None, None, of_images, *of_inputs


class _Replay:
    """Runs the masked linear critic, and takes the gradient of each weight on the way."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        outputs: dict[Path, Tensor],
        adjoints: dict[Path, Tensor],
        needed: Sequence[bool],
    ):
        self.inputs, self.outputs, self.adjoints, self.needed = inputs, outputs, adjoints, needed
        self.grads: list[Tensor | None] = [None] * len(inputs)

    def run(
        self, steps: list[_Step], images: Tensor, gradient: Tensor, c: Tensor | None, p: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of the inputs, None where not needed."""
        size = self._size_of(c, p)
        if size is not None:
            c, p = (None if each is None else each / size for each in (c, p))
        last = max((i for i, step in enumerate(steps) if self._wants(step)), default=-1)
        steps = steps[: last + 1]
        ends = {path: i for i, step in enumerate(steps) for path in _read(step)}  # when each value is read last
        values = {Path(0): _mixed(images, gradient, c, p)}
        for i, step in enumerate(steps):
            run = self._affine if isinstance(step, _AffineStep) else self._activation
            values[step.result] = run(step, values, c)
            for path in {step.result, *_read(step)}:
                if ends.get(path, i) <= i:
                    del values[path]
        if size is None:
            return self.grads
        return [None if grad is None else grad * size.to(grad.dtype) for grad in self.grads]

    def _size_of(self, c: Tensor | None, p: Tensor | None) -> Tensor | None:
        """The largest of c and p, which may be tiny, or large where the loss is scaled: too much so for fp16 values.

        None where there are no such values.
        """
        if all(x.dtype != torch.float16 for x in (*self.outputs.values(), *self.adjoints.values())):
            return None
        size = torch.stack([each.abs().amax() if each.numel() else each.sum() for each in (c, p) if each is not None])
        return size.amax().clamp_min(torch.finfo(size.dtype).tiny)

    def _wants(self, step: _Step) -> bool:
        slots = (*step.weights, *step.constants) if isinstance(step, _AffineStep) else (step.bias,)
        return any(isinstance(slot, _Slot) and self.needed[slot] for slot in slots)

    def _affine(self, step: _AffineStep, values: dict[Path, Tensor], c: Tensor | None) -> Tensor:
        leaves: dict[_Slot, Tensor] = {}
        adjoint = self.adjoints.get(step.result)

        def given(slot):
            x = self.inputs[slot]
            if not self.needed[slot] or adjoint is None:
                return x
            leaves[slot] = x.detach().requires_grad_()
            return leaves[slot]

        paths = [values[path] for path in step.paths]
        with torch.enable_grad():  # a graph is made only where there are leaves
            weights = [given(slot) for slot in step.weights]
            constants = [
                _scaled(given(k) if isinstance(k, _Slot) else k, c, step.rank, paths[0]) for k in step.constants
            ]
            y = step.function(*paths, *weights, *constants)
        if leaves:
            grads = torch.autograd.grad(y, list(leaves.values()), adjoint.to(y.dtype), allow_unused=True)
            for slot, grad in zip(leaves, grads, strict=True):
                self.grads[slot] = grad
        return y.detach()

    def _activation(self, step: _ActivationStep, values: dict[Path, Tensor], c: Tensor | None) -> Tensor:
        bias = None if step.bias is None else self.inputs[step.bias]
        adjoint = self.adjoints.get(step.path)
        if bias is not None and c is not None and adjoint is not None and self.needed[step.bias]:
            self.grads[step.bias] = sum_of_samples(adjoint, c).to(bias.dtype)
        return linearized(
            values[step.path],
            self.outputs.get(step.result),
            factor=c,
            bias=bias,
            slope=step.slope,
            gain=step.gain,
            clamp=step.clamp,
        )


def _read(step: _Step) -> tuple[Path, ...]:
    return step.paths if isinstance(step, _AffineStep) else (step.path,)


def _per_sample(c: Tensor, like: Tensor) -> Tensor:
    """[N] to [N, 1, ...], in the dtype of `like`."""
    return c.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _mixed(images: Tensor, gradient: Tensor, c: Tensor | None, p: Tensor | None) -> Tensor:
    """c * x + 2p * g."""
    s = 0 if c is None else _per_sample(c, images) * images
    return s if p is None else s + _per_sample(2 * p, gradient) * gradient


def _scaled(constant: Tensor | float, c: Tensor | None, rank: int, like: Tensor) -> Tensor | float:
    """A constant times c [N], in the dtype that leaves the result's dtype as it was."""
    if c is None:
        return constant * 0
    promotes = isinstance(constant, Tensor) and constant.is_floating_point() and constant.dim() > 0
    return (constant * c.view(-1, *[1] * (rank - 1))).to(constant.dtype if promotes else like.dtype)


def _autocast_of(device_type: str) -> Callable[[], torch.autocast]:
    """Makes contexts of the autocast in force. Without its cache, which would keep the leaves of the replay."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)


# Debugging --------------------------------------------------------------------------------------------------------


class _CheckedRecord(_Record):
    """Keeps all adjoints, and what each step adds to the linear part of the critic."""

    def __init__(self, images: Tensor):
        super().__init__(images)
        self._offsets: dict[Path, Tensor] = {}

    def affine(self, step: Affine) -> Path:
        zeros = [torch.zeros_like(self.values[path]) for path in step.paths]
        result = super().affine(step)
        if step.constants:
            self._at(result, step.function(*zeros, *step.weights, *step.constants))
        return result

    def _activation(self, path: Path, layer: PiecewiseLinear) -> Path:
        result = super()._activation(path, layer)
        if layer.bias is not None:
            u = self.values[path]
            self._at(path, layer.bias.to(u.dtype).view(-1, *[1] * (u.dim() - 2)).expand_as(u))
        if layer.clamp is not None:
            y = self.values[result]
            # The limit as y can hold it.
            limit = torch.tensor(layer.clamp, dtype=y.dtype, device=y.device)
            self._at(result, torch.where(y.abs() >= limit, y, 0))
        return result

    def _at(self, path: Path, offset: Tensor) -> None:
        self._offsets[path] = offset.detach()
        self._edges[path] = get_gradient_edge(self.values[path])

    def terms(self) -> Iterator[Tensor]:
        """What makes up the logits, each [N]."""
        products = [(self.gradient, self.images.detach())]
        products += [(self.adjoints[path], k) for path, k in self._offsets.items() if path in self.adjoints]
        for a, b in products:
            yield (to_arithmetic(a) * to_arithmetic(b)).flatten(1).sum(1)


def check(critic: nn.Module, images: Tensor, labels: Tensor | None = None, tolerance: float = 1e-3) -> None:
    """Verifies on a batch that `logit = <g, x> + sum of <adjoint, bias or constant>` over the layers, for each sample.

    For debugging: whoever teaches `piecewise_linear` a new layer can see here whether what was told of it is true.

    Raises NotPiecewiseLinear if the critic does not qualify, AssertionError if a logit differs from the sum by more
    than `tolerance` of the largest term.
    """
    plan = piecewise_linear.plan(critic, labels is not None)
    record = _CheckedRecord(images)
    with torch.no_grad():
        record.finish(plan.run(critic, record, labels))
        terms = torch.stack(list(record.terms()))
    error = (terms.sum(0) - record.logits).abs()
    if not (error <= tolerance * terms.abs().amax(0)).all():
        worst = int(error.argmax())
        raise AssertionError(
            f"sample {worst}: the critic says {record.logits[worst].item():.6g}, its linear parts sum up to "
            f"{terms[:, worst].sum().item():.6g}"
        )
