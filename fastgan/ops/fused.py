"""How a fused operation becomes differentiable, compilable and choosable: written once, for all of them.

An operation is a subclass of `FusedOperation`: its plain-PyTorch definition (the specification), the plain backward
(differentiable itself), and how to launch the kernels for both. `FusedOperation.apply` makes of that

- an autograd Function, whose backward is a Function as well, whose backward is a fused kernel where the operation has
  one and autograd of the plain backward where not: so every operation can be differentiated any number of times;
- a library operator `fastgan::NAME` (and `NAME_backward`), used only while torch.compile traces: it costs more a call
  than the bare launcher, and eager code has no use for it.

Traps that shaped this file:
- A backward that launches a raw kernel returns tensors without a graph, silently. So whether a graph is being made
  (`torch.is_grad_enabled()` inside a backward) decides between the launcher and the backward Function.
- Only inputs and outputs may be saved: a saved intermediate has no history, and second derivatives through it are
  silently wrong. What a forward kernel leaves for the backward kernel (`spares`, such as the statistics of a norm) is
  read by that kernel alone; the plain backward, which second derivatives come from, makes it anew from the inputs.
- No gradient (None) is not a gradient of zeros: an optimizer makes a step of momentum for zeros, and none for None. A
  kernel fills all second derivatives at once; which of them there are is read off the plain definition (`_connected`).
- The backward of CUDA tensors runs in another thread, where context variables are not set: the backend is chosen in
  the forward pass and handed on.
- torch.func and forward-mode AD see through neither Functions nor kernels: what they call takes the plain form, forward
  and backward (`fastgan.ops.transforms`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.compiler import is_compiling

import fastgan_kernels
from fastgan.ops.transforms import backward_takes_plain_form, takes_plain_form

Tensors = Sequence[Tensor | None]


class FusedOperation:
    """What an operation declares. All methods are static: an operation has no state."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # names of the tensor inputs; the first is always given, others may be None
    Options: ClassVar[type]  # a NamedTuple of str, float, int, bool, torch.dtype: what is not differentiable
    spares: ClassVar[int] = 0  # small results of the forward kernel that spare the backward kernel work
    reports: ClassVar[bool] = False  # whether these are results for the caller too, without a gradient
    has_backward: ClassVar[bool] = True  # of its own; else nothing below that is about gradients is declared

    @staticmethod
    def plain(inputs: Tensors, options: NamedTuple) -> Tensor:
        """The specification, in differentiable PyTorch; the output and the spares where it `reports` them."""
        raise NotImplementedError

    @staticmethod
    def allocate(inputs: Tensors, options: NamedTuple) -> Tensor:
        """The output, uninitialised."""
        raise NotImplementedError

    @staticmethod
    def allocate_spares(inputs: Tensors, options: NamedTuple) -> Sequence[Tensor]:
        """The `spares`, uninitialised."""
        return ()

    @staticmethod
    def launch(launchers, output: Tensor, inputs: Tensors, options: NamedTuple, *spares: Tensor) -> None:
        """Fills the output, and the spares if there are any, by a kernel."""
        raise NotImplementedError

    @staticmethod
    def keep(inputs: Tensors, output: Tensor, options: NamedTuple, needs: Sequence[bool]) -> Tensors:
        """What the backward pass needs, as few tensors as can be: inputs and the output, nothing between.

        The spares follow after these in what the backward pass is given as `kept`.
        """
        raise NotImplementedError

    @staticmethod
    def makes(needs: Sequence[bool]) -> Sequence[bool]:
        """Which gradients `allocate_grads` makes, where inputs need those that `needs` names."""
        return (True, *needs[1:])

    @staticmethod
    def plain_backward(grad: Tensor, kept: Tensors, options: NamedTuple, needs: Sequence[bool]) -> Tensors:
        """The gradient of each input that `needs` names (None for the others), in differentiable PyTorch.

        It must not read the spares: they have no history, and second derivatives through them would be wrong.
        """
        raise NotImplementedError

    @staticmethod
    def allocate_grads(grad: Tensor, kept: Tensors, options: NamedTuple, needs: Sequence[bool]) -> Tensors:
        """The gradients that `needs` names, uninitialised."""
        raise NotImplementedError

    @staticmethod
    def launch_backward(launchers, grads: Tensors, grad: Tensor, kept: Tensors, options: NamedTuple) -> None:
        """Fills the gradients by a kernel."""
        raise NotImplementedError

    @staticmethod
    def double_backward(
        launchers, grad: Tensor, kept: Tensors, cotangents: Tensors, options: NamedTuple, needs: Sequence[bool]
    ) -> Tensors | None:
        """The gradients of `(grad, *kept)` for cotangents of the backward's results; None if no kernel serves."""
        return None

    @classmethod
    def apply(cls, backend: str, inputs: Tensors, options: NamedTuple) -> Tensor | tuple[Tensor, ...]:
        """Runs the operation on a backend; `inputs` are validated. The output, and the spares if it `reports` them."""
        if backend == "torch" or takes_plain_form(inputs):
            return cls.plain(inputs, options)
        if torch.is_grad_enabled() and any([x is not None and x.requires_grad for x in inputs]):
            return _apply(_Forward, (cls, backend, options), inputs)
        results = _run_forward(cls, backend, options, inputs)
        return tuple(results) if cls.reports else results[0]


try:
    from torch._C._functorch import unwrap_if_dead as _unwrapped

    super(torch.autograd.Function, torch.autograd.Function).apply  # noqa: B018
except (ImportError, AttributeError):  # a release of torch that goes another way
    _unwrapped = None


def _apply(function: type[torch.autograd.Function], constants: Sequence, tensors: Tensors):
    """`function.apply(*constants, *tensors)`, by what that comes to in an eager call outside of torch.func.

    Between two kernels that have streamed large tensors through the caches nothing of Python is in them, and every line
    that runs costs ten times what it does otherwise.
    """
    if is_compiling() or _unwrapped is None:
        return function.apply(*constants, *tensors)
    tensors = [x if x is None else _unwrapped(x) for x in tensors]  # what has outlived a transform
    return super(torch.autograd.Function, function).apply(*constants, *tensors)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, backend, options, *inputs):
        if is_compiling():
            output, *spares = _call_operator(operation, backend, options, inputs)
            shapes = None
        else:
            output, *spares = _launch_forward(operation, backend, options, inputs)
            shapes = tuple([None if x is None else x.shape for x in inputs])
        needs = ctx.needs_input_grad[3:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operation.keep(inputs, output, options, needs), *spares)
        ctx.call = operation, backend, options, needs, shapes
        if not operation.reports:
            return output
        ctx.mark_non_differentiable(*spares)
        return output, *spares

    @staticmethod
    def backward(ctx, grad, *_):
        operation, backend, options, needs, shapes = ctx.call
        if grad is None:
            return None, None, None, *[None] * len(needs)
        kept = ctx.saved_tensors
        if backward_takes_plain_form((grad,), kept):
            grads = operation.plain_backward(grad, kept, options, needs)
        elif torch.is_grad_enabled():
            grads = _apply(_Backward, (operation, backend, options, needs, shapes), (grad, *kept))
        else:
            grads = _run_backward(operation, backend, options, needs, grad, kept)
        return None, None, None, *grads


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, backend, options, needs, shapes, grad, *kept):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, *kept)
        ctx.call = operation, backend, options, needs, shapes
        return tuple(_run_backward(operation, backend, options, needs, grad, kept))

    @staticmethod
    def backward(ctx, *cotangents):
        operation, backend, options, needs, shapes = ctx.call
        wanted = ctx.needs_input_grad[5:]
        grad, *kept = ctx.saved_tensors
        if backward_takes_plain_form(cotangents, (grad, *kept)):
            return *[None] * 5, *_through_autograd(operation, options, needs, grad, kept, cotangents)
        grads = None
        if not torch.is_grad_enabled():
            launchers = fastgan_kernels.BACKENDS[backend].launchers(operation.name)
            grads = operation.double_backward(launchers, grad, kept, cotangents, options, wanted)
        if grads is None:
            grads = _through_autograd(operation, options, needs, grad, kept, cotangents)
        given = tuple([g is not None for g in cotangents])
        connected = _connected(operation, options, needs, shapes, given)
        found = zip(wanted, connected, grads, (grad, *kept), strict=True)
        grads = [_or_zeros(g, x) if want and there else None for want, there, g, x in found]
        return None, None, None, None, None, *grads


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


@lru_cache(maxsize=4096)
def _connected(operation, options, needs, shapes, given: tuple[bool, ...]) -> tuple[bool, ...]:
    """For which of the output's gradient and what is kept of the inputs and the output there are second derivatives.

    As the plain definition has them where there are cotangents for the first derivatives that are `given`: also zeros,
    such as PyTorch's derivative of the slope of a leaky ReLU. It is run on tensors without data, which hooks on saved
    tensors and the search for NaNs of `detect_anomaly` could not look into.
    """
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is), _without_anomaly_detection():
        inputs = [
            None if shape is None else torch.empty(shape, device="meta", requires_grad=need)
            for shape, need in zip(shapes, needs, strict=True)
        ]
        output = operation.plain(inputs, options)
        output = output[0] if operation.reports else output
        grad = torch.empty_like(output, requires_grad=True)
        variables = [x for x, need in zip(inputs, needs, strict=True) if need]
        first = torch.autograd.grad(output, variables, grad, create_graph=True)
        seeded = [there for there, need in zip(given, needs, strict=True) if need]
        products = [g for g, there in zip(first, seeded, strict=True) if there and g.requires_grad]
        second = [None] * (1 + len(variables))
        if products:
            second = torch.autograd.grad(products, [grad, *variables], products, allow_unused=True)
    found = dict(zip(map(id, variables), [g is not None for g in second[1:]], strict=True))
    found[id(output)] = any(found.values())
    kept = operation.keep(inputs, output, options, needs)
    return second[0] is not None, *(found.get(id(x), False) for x in kept), *[False] * operation.spares


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _without_anomaly_detection():
    """A context; the switch is one for all threads, and so is left alone where it is off."""
    return torch.autograd.set_detect_anomaly(False) if torch.is_anomaly_enabled() else nullcontext()


def _through_autograd(operation, options, needs, grad, kept, cotangents) -> Tensors:
    """Second derivatives (and any higher ones) as autograd of the plain backward."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that a saved tensor computed from another one is not differentiated through twice.
        aliases = [None if x is None else _alias(x) for x in (grad, *kept)]
        results = operation.plain_backward(aliases[0], aliases[1:], options, needs)
        pairs = [
            (result, cotangent.to(result.dtype))
            for result, cotangent in zip(results, cotangents, strict=True)
            if result is not None and cotangent is not None and result.requires_grad
        ]
        wanted = [x for x in aliases if x is not None and x.requires_grad]
        if not pairs or not wanted:
            return [None] * len(aliases)
        outputs, seeds = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, wanted, seeds, create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return [next(found) if x is not None and x.requires_grad else None for x in aliases]


def _alias(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach()


def _run_forward(operation, backend, options, inputs) -> Sequence[Tensor]:
    """The output, and the spares."""
    run = _call_operator if is_compiling() else _launch_forward
    return run(operation, backend, options, inputs)


def _call_operator(operation, backend, options, inputs) -> Sequence[Tensor]:
    results = _operator(operation.name)(*inputs, *options, backend)
    return results if operation.spares else (results,)


def _launch_forward(operation, backend, options, inputs) -> Sequence[Tensor]:
    output = operation.allocate(inputs, options)
    spares = operation.allocate_spares(inputs, options) if operation.spares else ()
    operation.launch(fastgan_kernels.BACKENDS[backend].launchers(operation.name), output, inputs, options, *spares)
    return output, *spares


def _run_backward(operation, backend, options, needs, grad, kept) -> Tensors:
    if is_compiling():
        found = iter(_operator(f"{operation.name}_backward")(grad, kept, needs, *options, backend))
        return [next(found) if made else None for made in operation.makes(needs)]
    return _launch_backward(operation, backend, options, needs, grad, kept)


def _launch_backward(operation, backend, options, needs, grad, kept) -> Tensors:
    grads = operation.allocate_grads(grad, kept, options, needs)
    launchers = fastgan_kernels.BACKENDS[backend].launchers(operation.name)
    operation.launch_backward(launchers, grads, grad, kept, options)
    return grads


class LinearOperation(FusedOperation):
    """An operation that is linear in its first input, and whose adjoint is the operation itself with other options.

    Derivatives of any order are then calls of its one kernel. The other inputs are constants: none may need a gradient.
    """

    has_backward = False

    @staticmethod
    def adjoint(inputs: Tensors, options: NamedTuple) -> NamedTuple:
        """The options of the adjoint, which takes the gradient of the output to that of the first input."""
        raise NotImplementedError

    @staticmethod
    def prepare_gradient(grad: Tensor, options: NamedTuple) -> Tensor:
        """The gradient of the output, in the layout that the kernel wants; differentiable."""
        raise NotImplementedError

    @classmethod
    def apply(cls, backend: str, inputs: Tensors, options: NamedTuple) -> Tensor:
        if backend == "torch" or takes_plain_form(inputs):
            return cls.plain(inputs, options)
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            return _apply(_Linear, (cls, backend, options, cls.adjoint(inputs, options)), inputs)
        return _run_forward(cls, backend, options, inputs)[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, backend, options, adjoint, *inputs):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])
        ctx.call = operation, backend, options, adjoint
        return _run_forward(operation, backend, options, inputs)[0]

    @staticmethod
    def backward(ctx, grad):
        operation, backend, options, adjoint = ctx.call
        constants = ctx.saved_tensors
        if grad is None:
            dx = None
        elif backward_takes_plain_form((grad,)):
            dx = operation.plain((grad, *constants), adjoint)
        else:
            dx = operation.apply(backend, (operation.prepare_gradient(grad, options), *constants), adjoint)
        return None, None, None, None, dx, *[None] * len(constants)


# Library operators, for torch.compile -----------------------------------------------------------------------------

_library = torch.library.Library("fastgan", "DEF")
_SCHEMA = {str: "str", float: "float", int: "int", bool: "bool", torch.dtype: "ScalarType"}


def register(operation: type[FusedOperation]) -> type[FusedOperation]:
    """Class decorator: defines `fastgan::NAME` and `fastgan::NAME_backward`, and their shapes for tracing.

    An operation without a backward of its own has the first of the two only.
    """
    first, *others = operation.inputs
    tensors = ", ".join([f"Tensor {first}", *(f"Tensor? {name}" for name in others)])
    types = operation.Options.__annotations__
    options = "".join(f", {_SCHEMA[kind]} {name}" for name, kind in types.items())
    results = f"({', '.join(['Tensor'] * (1 + operation.spares))})" if operation.spares else "Tensor"
    count = len(operation.inputs)

    def run_forward(*args):
        made = _launch_forward(operation, args[-1], operation.Options(*args[count:-1]), args[:count])
        return made if operation.spares else made[0]

    def shape_forward(*args):
        call = args[:count], operation.Options(*args[count:-1])
        output = operation.allocate(*call)
        return (output, *operation.allocate_spares(*call)) if operation.spares else output

    _define(f"{operation.name}({tensors}{options}, str backend) -> {results}", run_forward, shape_forward)
    if not operation.has_backward:
        return operation

    def run_backward(grad, kept, needs, *rest):
        grads = _launch_backward(operation, rest[-1], operation.Options(*rest[:-1]), needs, grad, kept)
        return [g for g in grads if g is not None]

    def shape_backward(grad, kept, needs, *rest):
        grads = operation.allocate_grads(grad, kept, operation.Options(*rest[:-1]), needs)
        return [g for g in grads if g is not None]

    arguments = f"Tensor grad, Tensor?[] kept, bool[] needs{options}, str backend"
    _define(f"{operation.name}_backward({arguments}) -> Tensor[]", run_backward, shape_backward)
    return operation


def _define(schema: str, run: Callable, shape: Callable) -> None:
    name = _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgan::{name}", shape, lib=_library)


def _operator(name: str):
    return getattr(torch.ops.fastgan, name)
