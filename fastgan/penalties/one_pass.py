"""Logits, and the squared norm of their gradient with respect to the images, without double backward.

A piecewise linear discriminator is, around its images x, affine: `logit = <g, x> + constants`, where g is at once its
gradient and its adjoint, run backwards from 1. Let `a[l]` be the adjoint at the result of layer l, `h[l]` that layer's
input. For any loss of logits and squared norms `|g|^2`, with c = dL/dlogit and p = dL/d|g|^2 per sample:

- the weights' part of `c * logit` is the usual product of `c * h[l]` and `a[l]`;
- that of `p * |g|^2` is 2p times the derivative of `<g, v>`, v = g held fixed, which is the discriminator's derivative
  in the direction v: the product of `t[l]` and `a[l]`, where t are the tangents of v, run forwards;
- both are linear in the layers' inputs and share `a[l]`. So the masked linear discriminator is run once more, on
  `s = c * x + 2p * g`, with every constant (biases, label planes) scaled by c: its layers' inputs are
  `c * h[l] + t[l]`, and one weight gradient a layer against the kept `a[l]` is all. Activations are not needed, but for
  their signs.

Convolution passes over N images: forward, adjoint, replay and weight gradient, 4, where a plain step has 3 and double
backward 6. As c is the full derivative, losses that couple samples (relativistic ones) are exact as well.

Nothing is known of a discriminator beforehand, and nothing is kept of it. Its own forward pass runs, once, and
`Recording` notes each call that is given a value made of the images (`fastgan.penalties.rules` knows what
the call computes). So whatever a forward pass reads, draws or decides by is followed as it happened. The graph of
autograd bears witness that nothing was overlooked: a tensor is identified by its place in that graph, and whatever else
a noted call is given must not lead to the images there. A forward pass that cannot be followed to the end is
differentiated twice, from the same graph. The recorder is seen by the thread that it runs in, and by no other.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor, nn

from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.noise_bias_act import linearized, sum_of_samples
from fastgan.penalties.recording import ActivationStep, AffineStep, Recording, Slot, Step

# Autograd ---------------------------------------------------------------------------------------------------------


def logits_and_squares(
    recording: Recording, logits: Tensor, squared_norm: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits [N] and `squared_norm(g)` [N] of their gradient g, as `fastgan.penalties.logits_and_squared_grad` has
    them.

    `logits` are the result of the discriminator's call that was recorded. `squared_norm` of [N, ...] is the sum of
    squares of each sample.

    Raises NotPiecewiseLinear if the call does not qualify; the graph of `logits` is untouched then.
    """
    recording.finish(logits)
    return _OnePass.apply(recording, squared_norm(recording.gradient), recording.images, *recording.inputs)


class _OnePass(torch.autograd.Function):
    """(images, *effective weights, biases, constants) to (logits, squares), which the recording holds already."""

    @staticmethod
    def forward(ctx, recording: Recording, squares: Tensor, images: Tensor, *inputs: Tensor):
        ctx.set_materialize_grads(False)
        # Tensors are saved where autograd frees them after the backward pass.
        ctx.wants_weights = any(ctx.needs_input_grad[3:])
        ctx.bent = _bent(recording.steps)
        saved = [recording.gradient]
        if ctx.wants_weights:
            ctx.steps = recording.steps
            ctx.layout = len(inputs), tuple(recording.outputs), tuple(recording.adjoints)
            ctx.context = contextvars.copy_context()  # the choice of backends: backward may run in another thread
            saved += [images, *inputs, *recording.outputs.values(), *recording.adjoints.values()]
        ctx.save_for_backward(*saved)
        return recording.logits, squares

    @staticmethod
    def backward(ctx, c: Tensor | None, p: Tensor | None):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "logits_and_squared_grad: its result can be differentiated once; with create_graph=True, hide "
                "the discriminator in a function (lambda x, label: discriminator(x, label)), which takes the form that "
                "is differentiable twice"
            )
        gradient, *saved = ctx.saved_tensors
        of_images, of_inputs = None, [None] * (len(ctx.needs_input_grad) - 3)
        if ctx.needs_input_grad[2]:
            if c is not None:
                of_images = _per_sample(c, gradient) * gradient
            elif p is not None and 0 in ctx.bent:
                of_images = torch.zeros_like(gradient)
        if ctx.wants_weights and not (c is None and p is None):
            images, *saved = saved
            inputs, outputs, adjoints = ctx.layout
            found = iter(saved)
            replay = _Replay(
                [next(found) for _ in range(inputs)],
                dict(zip(outputs, found, strict=False)),
                dict(zip(adjoints, found, strict=True)),
                ctx.needs_input_grad[3:],
                ctx.bent,
            )
            of_inputs = ctx.context.copy().run(replay.run, ctx.steps, images, gradient, c, p)
        return None, None, of_images, *of_inputs


class _Replay:
    """Runs the masked linear discriminator, and takes the gradient of each weight on the way."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        outputs: dict[int, Tensor],
        adjoints: dict[int, Tensor],
        needed: Sequence[bool],
        bent: Container[int] = (),
    ):
        self.inputs, self.outputs, self.adjoints, self.needed, self.bent = inputs, outputs, adjoints, needed, bent
        self.grads: list[Tensor | None] = [None] * len(inputs)

    def run(
        self, steps: list[Step], images: Tensor, gradient: Tensor, c: Tensor | None, p: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of the inputs, None where not needed."""
        size = self._size_of(c, p)
        if size is not None:
            c, p = (None if each is None else each / size for each in (c, p))
        last = max((i for i, step in enumerate(steps) if any(self.needed[slot] for slot in step.slots)), default=-1)
        self.through(steps[: last + 1], _mixed(images, gradient, c, p), c)
        if size is not None:
            self.grads = [None if grad is None else grad * size.to(grad.dtype) for grad in self.grads]
        if c is None:
            self._leave_offsets(steps)
        return self.grads

    def _leave_offsets(self, steps: list[Step]) -> None:
        """Constants and biases have no part in |g|^2."""
        for step in steps:
            at = step.result if isinstance(step, AffineStep) else step.paths[0]
            for slot in step.offsets:
                there = self.needed[slot] and at in self.bent
                self.grads[slot] = torch.zeros_like(self.inputs[slot]) if there else None

    def through(self, steps: list[Step], start: Tensor, c: Tensor | None) -> Tensor:
        """The last step's result, for `start` instead of the images and constants times c; notes gradients."""
        ends = {number: i for i, step in enumerate(steps) for number in step.paths}  # when each value is read last
        values, result = {0: start}, start
        for autocast, group in itertools.groupby(enumerate(steps), lambda pair: pair[1].autocast):
            with autocast():
                for i, step in group:
                    run = self._affine if isinstance(step, AffineStep) else self._activation
                    values[step.result] = result = run(step, values, c)
                    for number in {step.result, *step.paths}:
                        if ends.get(number, i) <= i:
                            del values[number]
        return result

    def _size_of(self, c: Tensor | None, p: Tensor | None) -> Tensor | None:
        """The largest of c and p, which may be tiny, or large where the loss is scaled: too much so for fp16 values.

        None where there are no such values.
        """
        if all(x.dtype != torch.float16 for x in (*self.outputs.values(), *self.adjoints.values())):
            return None
        size = torch.stack([each.abs().amax() if each.numel() else each.sum() for each in (c, p) if each is not None])
        return size.amax().clamp_min(torch.finfo(size.dtype).tiny)

    def _affine(self, step: AffineStep, values: dict[int, Tensor], c: Tensor | None) -> Tensor:
        leaves: dict[Slot, Tensor] = {}
        adjoint = self.adjoints.get(step.result)

        def given(slot):
            x = self.inputs[slot]
            if not self.needed[slot] or adjoint is None:
                return x
            leaves[slot] = x.detach().requires_grad_()
            return leaves[slot]

        paths = [values[number] for number in step.paths]
        with torch.enable_grad():  # a graph is made only where there are leaves
            weights = [given(slot) for slot in step.weights]
            constants = [
                _scaled(given(k) if isinstance(k, Slot) else k, c, step.rank, paths[0]) for k in step.constants
            ]
            y = step.function(*paths, *weights, *constants)
            if step.bias is not None:
                bias = given(step.bias)
                y = y + _scaled(bias.view(-1, *[1] * (step.rank - 2)), c, step.rank, y)
            y = y.to(step.dtype)  # in place, a product keeps its dtype
        if leaves:
            grads = torch.autograd.grad(y, list(leaves.values()), adjoint, allow_unused=True)
            for slot, grad in zip(leaves, grads, strict=True):
                self.grads[slot] = grad
        return y.detach()

    def _activation(self, step: ActivationStep, values: dict[int, Tensor], c: Tensor | None) -> Tensor:
        bias = None if step.bias is None else self.inputs[step.bias]
        (argument,), output = step.paths, self.outputs.get(step.result)
        form = {"slope": step.slope, "gain": step.gain, "clamp": step.clamp}
        adjoint = self.adjoints.get(step.adjoint)
        if step.bias is not None and c is not None and adjoint is not None and self.needed[step.bias]:
            if step.adjoint == step.result:
                adjoint = linearized(adjoint, output, factor=None, bias=None, **form)
            self.grads[step.bias] = sum_of_samples(adjoint, c).to(bias.dtype)
        return linearized(values[argument], output, factor=c, bias=bias, **form)


def _bent(steps: list[Step]) -> set[int]:
    """The values that a leaky ReLU is behind. Of what is added to these, and by itself has no part in |g|^2, double
    backward finds zeros, as PyTorch's derivative of that slope; of what is added to others, None."""
    bent: set[int] = set()
    for step in reversed(steps):
        if step.result in bent or (isinstance(step, ActivationStep) and step.slope != 1):
            bent.update(step.paths)
    return bent


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


# Debugging --------------------------------------------------------------------------------------------------------


def check(discriminator: nn.Module, images: Tensor, labels: Tensor | None = None, tolerance: float = 1e-3) -> None:
    """Verifies on a batch that the steps recorded are the discriminator, and that their linear parts are its
    derivative.

    For debugging: whoever gives a rule to `piecewise_linear` can see here whether it is true. Replayed on the images,
    the steps must make the logits; replayed on the gradient g, without constants, they must make |g|^2.

    Raises NotPiecewiseLinear if the discriminator does not qualify, AssertionError if either differs for a sample by
    more than `tolerance`.
    """
    recording = Recording(images.detach().requires_grad_(), discriminator)
    with torch.enable_grad():
        with recording:
            logits = discriminator(recording.images) if labels is None else discriminator(recording.images, labels)
        recording.finish(logits)
    n, images, gradient = len(images), recording.images.detach(), recording.gradient
    replay = _Replay(recording.inputs, recording.outputs, {}, [False] * len(recording.inputs))
    dot = lambda a, b: (to_arithmetic(a) * to_arithmetic(b)).flatten(1).sum(1)
    one = torch.ones_like(recording.logits)
    cases = {
        "the replay makes a logit": (one, None, recording.logits, dot(gradient, images)),
        "the linear parts make a squared gradient": (None, one / 2, dot(gradient, gradient), one * 0),
    }
    for what, (c, p, expected, size) in cases.items():
        with torch.no_grad():
            got = to_arithmetic(replay.through(recording.steps, _mixed(images, gradient, c, p), c).reshape(n))
        wrong = (got - expected).abs() > tolerance * torch.maximum(expected.abs(), size.abs())
        if wrong.any():
            worst = int((got - expected).abs().argmax())
            raise AssertionError(f"sample {worst}: {what} of {got[worst]:.6g}, it is {expected[worst]:.6g}")
