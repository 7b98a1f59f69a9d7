"""One-pass gradient penalty: logits and the squared norm of their gradient, without double backward.

A piecewise linear discriminator is affine around its images x: `logit = <g, x> + constants`. g is its gradient and also
its adjoint, run backwards from 1. Let `h[l]` be the input of layer l, `a[l]` the adjoint at its output. Given a loss
with `c = dL/dlogit` and `p = dL/d|g|^2`, [N] each:

- The weight gradient of `c * logit` is the usual product of `c * h[l]` and `a[l]`.
- The weight gradient of `p * |g|^2` is 2p times that of `<g, v>` with v = g held fixed. This is the derivative of the
  logit in the direction v, so its weight gradient is the product of `t[l]` and `a[l]`, where `t` are the tangents of v.
- Both are linear in the layer's input and share `a[l]`. So the discriminator, linearized, runs once more on
  `c * x + 2p * g` with every constant (biases, label maps) scaled by c. Its layer inputs are `c * h[l] + t[l]`, and one
  weight gradient a layer against the saved `a[l]` is the whole result. Of the activations only the signs are needed.

Convolution passes over N images: 4 (forward, adjoint, replay, weight gradient), where a plain step has 3 and double
backward 6. c is the full derivative, so losses that couple samples, such as relativistic ones, are exact too.

`fastgan.penalties.recording` decides whether a forward pass qualifies. docs/penalties.md has costs and limits.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Container, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fastgan.ops import squared_norm
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.linearization import linearized, weighted_channel_sums
from fastgan.penalties.recording import ActivationStep, AffineStep, Recording, Step, TensorIndex


def logits_and_squares(recording: Recording, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N] and the squared norms [N] of their gradients, differentiable once.

    Args:
        recording: the recorded call that computed `logits`.
        logits: the discriminator's result, [N] or [N, 1].

    Raises NotPiecewiseLinear if the call does not qualify; the graph of `logits` is untouched then.
    """
    recording.finish(logits)
    return OnePass.apply(recording, squared_norm(recording.gradient), recording.images, *recording.tensors)


class OnePass(torch.autograd.Function):
    """(images, *effective weights, biases, constants) to (logits, squares), both of which the recording already has."""

    @staticmethod
    def forward(ctx, recording: Recording, squares: Tensor, images: Tensor, *tensors: Tensor):
        ctx.set_materialize_grads(False)
        # save_for_backward, not attributes of ctx: autograd frees saved tensors after the backward pass.
        ctx.needs_replay = any(ctx.needs_input_grad[3:])
        ctx.before_bend = _values_before_bend(recording.steps)
        saved = [recording.gradient]
        if ctx.needs_replay:
            ctx.steps = recording.steps
            ctx.layout = len(tensors), tuple(recording.outputs), tuple(recording.adjoints)
            ctx.context = contextvars.copy_context()  # choice of backends: backward may run in another thread
            saved += [images, *tensors, *recording.outputs.values(), *recording.adjoints.values()]
        ctx.save_for_backward(*saved)
        return recording.logits, squares

    @staticmethod
    def backward(ctx, c: Tensor | None, p: Tensor | None):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "logits_and_squared_grad: the one-pass form can be differentiated once. For create_graph=True wrap "
                "the discriminator in a function, `lambda x, label: discriminator(x, label)`: functions take double "
                "backward"
            )
        gradient, *saved = ctx.saved_tensors
        grad_images, grad_tensors = None, [None] * (len(ctx.needs_input_grad) - 3)
        if ctx.needs_input_grad[2]:
            if c is not None:
                grad_images = _per_sample(c, gradient) * gradient
            elif p is not None and 0 in ctx.before_bend:
                grad_images = torch.zeros_like(gradient)
        if ctx.needs_replay and not (c is None and p is None):
            images, *saved = saved
            num_tensors, outputs, adjoints = ctx.layout
            rest = iter(saved)
            replay = Replay(
                [next(rest) for _ in range(num_tensors)],
                dict(zip(outputs, rest, strict=False)),
                dict(zip(adjoints, rest, strict=True)),
                ctx.needs_input_grad[3:],
                ctx.before_bend,
            )
            grad_tensors = ctx.context.copy().run(replay.run, ctx.steps, images, gradient, c, p)
        return None, None, grad_images, *grad_tensors


class Replay:
    """Runs the linearized discriminator, and computes the gradient of each weight on the way.

    Args:
        tensors, outputs, adjoints: see `Recording`.
        needs_grad: which of `tensors` need a gradient.
        before_bend: see `_values_before_bend`.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        outputs: dict[int, Tensor],
        adjoints: dict[int, Tensor],
        needs_grad: Sequence[bool],
        before_bend: Container[int] = (),
    ):
        self.tensors, self.outputs, self.adjoints = tensors, outputs, adjoints
        self.needs_grad, self.before_bend = needs_grad, before_bend
        self.grads: list[Tensor | None] = [None] * len(tensors)

    def run(
        self, steps: list[Step], images: Tensor, gradient: Tensor, c: Tensor | None, p: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of `tensors`, None where not needed."""
        scale = self._fp16_scale(c, p)
        if scale is not None:
            c, p = (None if each is None else each / scale for each in (c, p))
        last = max((i for i, step in enumerate(steps) if any(self.needs_grad[k] for k in step.tensors)), default=-1)
        self.through(steps[: last + 1], _replay_input(images, gradient, c, p), c)
        if scale is not None:
            self.grads = [None if grad is None else grad * scale.to(grad.dtype) for grad in self.grads]
        if c is None:
            self._clear_offset_grads(steps)
        return self.grads

    def _clear_offset_grads(self, steps: list[Step]) -> None:
        """Gives constants and biases, of which |g|^2 is independent, zeros or None as double backward does."""
        for step in steps:
            at = step.output if isinstance(step, AffineStep) else step.inputs[0]
            for k in step.offsets:
                zeros = self.needs_grad[k] and at in self.before_bend
                self.grads[k] = torch.zeros_like(self.tensors[k]) if zeros else None

    def through(self, steps: list[Step], start: Tensor, c: Tensor | None) -> Tensor:
        """Output of the last step, with `start` in place of the images and constants times c. Fills in `grads`."""
        last_reads = {number: i for i, step in enumerate(steps) for number in step.inputs}
        values, output = {0: start}, start
        for autocast, group in itertools.groupby(enumerate(steps), lambda pair: pair[1].autocast):
            with autocast():
                for i, step in group:
                    if isinstance(step, AffineStep):
                        output = self._affine(step, values, c)
                    else:
                        output = self._activation(step, values, c)
                    values[step.output] = output
                    for number in {step.output, *step.inputs}:
                        if last_reads.get(number, i) <= i:
                            del values[number]
        return output

    def _fp16_scale(self, c: Tensor | None, p: Tensor | None) -> Tensor | None:
        """The largest of |c| and |p|, by which both are divided if a value is fp16; None if none is.

        c and p may be tiny, or huge where the loss is scaled: the replay would leave the range of fp16.
        """
        if all(x.dtype != torch.float16 for x in (*self.outputs.values(), *self.adjoints.values())):
            return None
        scale = torch.stack([each.abs().amax() if each.numel() else each.sum() for each in (c, p) if each is not None])
        return scale.amax().clamp_min(torch.finfo(scale.dtype).tiny)

    def _affine(self, step: AffineStep, values: dict[int, Tensor], c: Tensor | None) -> Tensor:
        leaves: dict[TensorIndex, Tensor] = {}
        adjoint = self.adjoints.get(step.output)

        def leaf(k: TensorIndex) -> Tensor:
            x = self.tensors[k]
            if not self.needs_grad[k] or adjoint is None:
                return x
            leaves[k] = x.detach().requires_grad_()
            return leaves[k]

        inputs = [values[number] for number in step.inputs]
        with torch.enable_grad():  # records a graph only if there are leaves
            weights = [leaf(k) for k in step.weights]
            constants = [
                _scale_constant(leaf(k) if isinstance(k, TensorIndex) else k, c, step.rank, inputs[0])
                for k in step.constants
            ]
            y = step.function(*inputs, *weights, *constants)
            if step.bias is not None:
                bias = leaf(step.bias)
                y = y + _scale_constant(bias.view(-1, *[1] * (step.rank - 2)), c, step.rank, y)
            y = y.to(step.dtype)  # an in-place product keeps its own dtype
        if leaves:
            grads = torch.autograd.grad(y, list(leaves.values()), adjoint, allow_unused=True)
            for k, grad in zip(leaves, grads, strict=True):
                self.grads[k] = grad
        return y.detach()

    def _activation(self, step: ActivationStep, values: dict[int, Tensor], c: Tensor | None) -> Tensor:
        (number,), y = step.inputs, self.outputs.get(step.output)
        at_step = partial(linearized, y=y, slope=step.slope, gain=step.gain, clamp=step.clamp)
        if step.bias is None:
            return at_step(values[number], factor=c, bias=None)
        bias, adjoint = self.tensors[step.bias], self.adjoints.get(step.adjoint)
        if c is not None and adjoint is not None and self.needs_grad[step.bias]:
            if step.adjoint == step.output:
                adjoint = at_step(adjoint, factor=None, bias=None)
            self.grads[step.bias] = weighted_channel_sums(adjoint, c).to(bias.dtype)
        return at_step(values[number], factor=c, bias=bias)


def _values_before_bend(steps: list[Step]) -> set[int]:
    """The values that pass through an activation with a bend (a slope other than 1) on the way to the logits.

    If a loss uses only |g|^2, the gradient of what is added to these is zeros, as in double backward, which
    differentiates the slope. The gradient of what is added to others is None.
    """
    found: set[int] = set()
    for step in reversed(steps):
        if step.output in found or (isinstance(step, ActivationStep) and step.slope != 1):
            found.update(step.inputs)
    return found


def _per_sample(c: Tensor, like: Tensor) -> Tensor:
    """c [N] as [N, 1, ...], with the dtype and rank of `like`."""
    return c.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _replay_input(images: Tensor, gradient: Tensor, c: Tensor | None, p: Tensor | None) -> Tensor:
    """c * x + 2p * g."""
    terms = [_per_sample(c, images) * images] if c is not None else []
    terms += [_per_sample(2 * p, gradient) * gradient] if p is not None else []
    return sum(terms[1:], terms[0])


def _scale_constant(constant: Tensor | float, c: Tensor | None, rank: int, like: Tensor) -> Tensor | float:
    """A constant times c [N], in a dtype that promotes with `like` as the constant does."""
    if c is None:
        return constant * 0
    dtype = like.dtype
    if isinstance(constant, Tensor) and constant.is_floating_point() and constant.dim() > 0:
        dtype = constant.dtype
    return (constant * c.view(-1, *[1] * (rank - 1))).to(dtype)


# Debugging --------------------------------------------------------------------------------------------------------


def check(discriminator: nn.Module, images: Tensor, labels: Tensor | None = None, tolerance: float = 1e-3) -> None:
    """Checks new rules on a batch: are the recorded steps the discriminator, and their linear parts its derivative?

    Replayed on the images the steps must give the logits; replayed on the gradient g without constants, |g|^2.

    Raises:
        NotPiecewiseLinear: the discriminator does not qualify.
        AssertionError: a sample differs by more than `tolerance`, relative.
    """
    recording = Recording(images.detach().requires_grad_(), discriminator)
    with torch.enable_grad():
        with recording:
            logits = discriminator(recording.images) if labels is None else discriminator(recording.images, labels)
        recording.finish(logits)
    n, images, gradient = len(images), recording.images.detach(), recording.gradient
    replay = Replay(recording.tensors, recording.outputs, {}, [False] * len(recording.tensors))
    dot = lambda a, b: (to_arithmetic(a) * to_arithmetic(b)).flatten(1).sum(1)
    one = torch.ones_like(recording.logits)
    cases = {
        "the replay makes a logit": (one, None, recording.logits, dot(gradient, images)),
        "the linear parts make a squared gradient": (None, one / 2, dot(gradient, gradient), one * 0),
    }
    for what, (c, p, expected, size) in cases.items():
        with torch.no_grad():
            got = to_arithmetic(replay.through(recording.steps, _replay_input(images, gradient, c, p), c).reshape(n))
        wrong = (got - expected).abs() > tolerance * torch.maximum(expected.abs(), size.abs())
        if wrong.any():
            worst = int((got - expected).abs().argmax())
            raise AssertionError(f"sample {worst}: {what} of {got[worst]:.6g}, it is {expected[worst]:.6g}")
