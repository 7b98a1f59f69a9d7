"""Autograd, torch.compile and backend support shared by all fused operations.

An operation is a subclass of `FusedOperation`. It declares its reference (the specification, in plain PyTorch), the
reference of its backward pass (differentiable itself), and how to launch the kernels for both.
`FusedOperation.apply` turns that into

- an autograd Function. Its backward is a Function too, and the backward of that is a fused kernel where the operation
  has one, else autograd of the reference backward. So every operation is differentiable any number of times;
- the library operators `fastgan::NAME` and `fastgan::NAME_backward`. They are used only while torch.compile traces,
  because a call of them costs more than a call of the launcher.

Traps:
- A backward that launches a raw kernel returns tensors without a graph, and no error. `torch.is_grad_enabled()`, which
  says inside a backward whether a graph is being built, chooses between the launcher and the backward Function.
- Save only inputs and outputs. A saved intermediate has no history, and second derivatives through it are silently
  wrong. Statistics that the forward kernel computes for the backward kernel, such as those of a norm, are read by that
  kernel alone; the reference backward recomputes them from the inputs.
- A missing gradient (None) differs from a gradient of zeros: an optimizer with momentum updates a parameter for zeros
  and skips it for None. A double-backward kernel fills all its outputs at once, so the reference decides which of them
  exist (`_has_second_gradients`).
- The backward of CUDA tensors runs in another thread, where context variables are unset. So the backend is chosen in
  the forward pass and stored with the call.
- torch.func and forward-mode AD see through neither Functions nor kernels: under them both passes run the reference
  (`fastgan.ops.transforms`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, ClassVar, Generic, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import TypeVar

import fastgan_kernels
from fastgan.ops.engine import every_node_runs, used_inputs
from fastgan.ops.transforms import backward_must_use_reference, must_use_reference
from fastgan_kernels import Launchers

Tensors = Sequence[Tensor | None]
Result = TypeVar("Result", default=Tensor)


class FusedOperation(Generic[Result]):
    """Declaration of an operation. All methods are static: an operation has no state.

    `Result` is what a call returns: the output, or with `returns_statistics` a tuple of the output and the statistics.

    `needs_grad` holds one bool an input: whether its gradient is wanted. `saved` holds the tensors that
    `saved_tensors` returned, followed by the statistics.

    With several outputs, `output` and `grad` below are tuples, with None for outputs that a call does not have. A
    gradient may be missing too: the double backward of a later layer may need one output only. `launch_backward` must
    take that. With a graph the reference serves such a call.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # names of the tensor inputs; the first is required, the others may be None
    Options: ClassVar[type]  # a NamedTuple of str, float, int, bool, torch.dtype: the non-differentiable arguments
    num_outputs: ClassVar[int] = 1  # with a gradient
    num_statistics: ClassVar[int] = 0  # small tensors that the forward kernel computes for the backward kernel
    returns_statistics: ClassVar[bool] = False  # whether the caller gets them too, without gradients
    has_backward: ClassVar[bool] = True  # if False, the operation declares no method about gradients
    # Whether the last input is added to the output. Its gradient is that of the output: no method about gradients sees
    # this input, nor `reference` where it is differentiated.
    adds_last_input: ClassVar[bool] = False

    @staticmethod
    def reference(inputs: Tensors, options: NamedTuple) -> Result:
        """The specification, in differentiable PyTorch."""
        raise NotImplementedError

    @staticmethod
    def allocate_output(inputs: Tensors, options: NamedTuple) -> Tensor:
        """The output, uninitialised."""
        raise NotImplementedError

    @staticmethod
    def has_outputs(inputs: Tensors) -> Sequence[bool]:
        """Mask of the outputs of a call, for an operation with several; the others are None."""
        return (True,)

    @staticmethod
    def allocate_statistics(inputs: Tensors, options: NamedTuple) -> Sequence[Tensor]:
        """The `num_statistics` tensors, uninitialised."""
        return ()

    @staticmethod
    def launch_forward(
        launchers: Launchers, output: Tensor, inputs: Tensors, options: NamedTuple, *statistics: Tensor
    ) -> None:
        """Fills the output and the statistics by a kernel."""
        raise NotImplementedError

    @staticmethod
    def saved_tensors(inputs: Tensors, output: Tensor, options: NamedTuple, needs_grad: Sequence[bool]) -> Tensors:
        """The tensors saved for backward, as few as possible: inputs and the output only."""
        raise NotImplementedError

    @staticmethod
    def output_mask(needs_grad: Sequence[bool]) -> Sequence[bool]:
        """Mask of the gradients that `allocate_grads` returns; the others are None."""
        return (True, *needs_grad[1:])

    @staticmethod
    def reference_backward(grad: Tensor, saved: Tensors, options: NamedTuple, needs_grad: Sequence[bool]) -> Tensors:
        """The gradient of each input, None where not needed, in differentiable PyTorch.

        It must not read the statistics: they have no history, and second derivatives through them would be wrong.
        """
        raise NotImplementedError

    @staticmethod
    def allocate_grads(grad: Tensor, saved: Tensors, options: NamedTuple, needs_grad: Sequence[bool]) -> Tensors:
        """The gradient of each input, uninitialised, None where not needed."""
        raise NotImplementedError

    @staticmethod
    def launch_backward(
        launchers: Launchers, grads: Tensors, grad: Tensor, saved: Tensors, options: NamedTuple
    ) -> None:
        """Fills the gradients by a kernel."""
        raise NotImplementedError

    @staticmethod
    def double_backward(
        launchers: Launchers,
        grad: Tensor,
        saved: Tensors,
        grad_grads: Tensors,
        options: NamedTuple,
        needs_grad: Sequence[bool],
    ) -> Tensors | None:
        """The gradients of `(grad, *saved)`, by a kernel; None if no kernel serves.

        `grad_grads` holds the gradient of each input's gradient, `needs_grad` one bool for each of `(grad, *saved)`.
        """
        return None

    @classmethod
    def apply(cls, backend: str, inputs: Tensors, options: NamedTuple) -> Result:
        """Runs the operation on a backend. `inputs` are validated already."""
        if backend == "torch" or must_use_reference(inputs):
            return cls.reference(inputs, options)
        if torch.is_grad_enabled() and any([x is not None and x.requires_grad for x in inputs]):
            return _Forward.apply(cls, backend, options, *inputs)
        results = _run_forward(cls, backend, options, inputs)
        single = cls.num_outputs == 1 and not cls.returns_statistics
        return cast(Result, results[0] if single else tuple(results))


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, backend, options, *inputs):
        needs_grad, ctx.passes_grad = ctx.needs_input_grad[3:], ()
        if operation.adds_last_input:
            needs_grad, ctx.passes_grad = needs_grad[:-1], needs_grad[-1:]
        results = _run_forward(operation, backend, options, inputs)
        outputs, statistics = results[: operation.num_outputs], results[operation.num_outputs :]
        output = _one_or_all(outputs)
        inputs = inputs[: len(needs_grad)]
        saved = operation.saved_tensors(inputs, output, options, needs_grad)
        shapes = zeros = None
        if not is_compiling():
            shapes = tuple([None if x is None else x.shape for x in inputs])
            zeros = _OwedZeros.of(saved, output)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, *statistics)
        ctx.call = operation, backend, options, needs_grad, shapes, zeros
        ctx.has_outputs = [y is not None for y in outputs]
        if not operation.returns_statistics:
            return output
        ctx.mark_non_differentiable(*statistics)
        return *outputs, *statistics

    @staticmethod
    def backward(ctx, *output_grads):
        passed = [output_grads[0] if passes else None for passes in ctx.passes_grad]
        return None, None, None, *_Forward._grads(ctx, output_grads[: len(ctx.has_outputs)]), *passed

    @staticmethod
    def _grads(ctx, output_grads: Tensors) -> Tensors:
        """The gradients of the inputs that the operation differentiates."""
        operation, backend, options, needs_grad, shapes, zeros = ctx.call
        owed = zeros is not None and zeros.settle()
        given = [g is not None for g in output_grads]
        if not (any(given) or owed) or not any(needs_grad):
            return [None] * len(needs_grad)
        saved = ctx.saved_tensors
        if not any(given):
            output_grads = (torch.zeros_like(saved[zeros.place]),)
        grad = _one_or_all(output_grads)
        missing = operation.num_outputs > 1 and given != ctx.has_outputs
        with_graph = torch.is_grad_enabled() or is_compiling()
        if (missing and with_graph) or backward_must_use_reference(output_grads, saved):
            return operation.reference_backward(grad, saved, options, needs_grad)
        used = needs_grad
        if shapes is not None and any(needs_grad[1:]):
            used = used_inputs(ctx, needs_grad, [shape is not None for shape in shapes])
        if torch.is_grad_enabled():
            return _Backward.apply(operation, backend, options, used, ctx.call, *output_grads, *saved)
        return _run_backward(operation, backend, options, used, grad, saved)


def _one_or_all(tensors: Tensors) -> Any:
    """The output, or its gradient; of an operation with several outputs, a tuple of all."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _is_empty(outputs: Tensors) -> bool:
    return not any([y is not None and y.numel() for y in outputs])


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, backend, options, used, call, *tensors):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.call = used, call
        output_grads, saved = tensors[: operation.num_outputs], tensors[operation.num_outputs :]
        return tuple(_run_backward(operation, backend, options, used, _one_or_all(output_grads), saved))

    @staticmethod
    def backward(ctx, *grad_grads):
        used, (operation, backend, options, needs_grad, shapes, zeros) = ctx.call
        tensors = ctx.saved_tensors
        output_grads, saved = tensors[: operation.num_outputs], tensors[operation.num_outputs :]
        grad = _one_or_all(output_grads)
        if backward_must_use_reference(grad_grads, tensors):
            return *[None] * 5, *_autograd_double_backward(operation, options, used, tensors, grad_grads)
        needed = used_inputs(ctx, ctx.needs_input_grad[5:], [x is not None for x in tensors])
        grads = None
        if _is_empty(output_grads):
            grads = [None] * len(needed)
        elif not torch.is_grad_enabled():
            launchers = fastgan_kernels.BACKENDS[backend].launchers(operation.name)
            grads = operation.double_backward(launchers, grad, saved, grad_grads, options, needed)
        if grads is None:
            grads = _autograd_double_backward(operation, options, used, tensors, grad_grads)
        given = tuple([g is not None for g in grad_grads])
        exists = _has_second_gradients(operation, options, needs_grad, shapes, given)
        results = [g if need and there else None for g, need, there in zip(grads, needed, exists, strict=True)]
        for i, x in enumerate(tensors):
            if needed[i] and exists[i] and grads[i] is None:
                if zeros is not None and i == operation.num_outputs + zeros.place and every_node_runs(x.grad_fn):
                    zeros.owe()
                else:
                    results[i] = torch.zeros_like(x)
        return None, None, None, None, None, *results


class _OwedZeros:
    """Zeros as the second gradient of an operation's output, written only if the output gets no other gradient.

    `_Backward` owes them, and `_Forward.backward`, which runs later in the same pass, settles the debt. Usually the
    output has another gradient by then, that of the loss, and zeros would be written and added for nothing.

    Attributes:
        place: index of the output among the saved tensors.
    """

    __slots__ = ("_owed", "place")

    def __init__(self, place: int):
        self.place, self._owed = place, False

    @staticmethod
    def of(saved: Tensors, output: Tensor) -> "_OwedZeros | None":
        """None if the output is not among the saved tensors."""
        places = [i for i, x in enumerate(saved) if x is output]
        return _OwedZeros(places[0]) if places else None

    def owe(self) -> None:
        self._owed = True

    def settle(self) -> bool:
        """Whether zeros were owed; they are not any more."""
        owed, self._owed = self._owed, False
        return owed


@lru_cache(maxsize=4096)
def _has_second_gradients(operation, options, needs_grad, shapes, given: tuple[bool, ...]) -> tuple[bool, ...]:
    """Whether each gradient of an output and each of `saved` has a second gradient.

    `given` says for which of the first gradients there are grad_grads.

    The answer is that of the reference, also where the gradient is zero, as that of a leaky ReLU's slope is in PyTorch.
    The reference runs on tensors without data. Hooks on saved tensors and the NaN check of `detect_anomaly` cannot
    read those, so both are switched off. So are modes such as FlopCounterMode, which would count what runs here.
    """
    with (
        torch.enable_grad(),
        saved_tensors_hooks(_identity, _identity),
        _without_anomaly_detection(),
        _disable_current_modes(),
    ):
        inputs = [
            None if shape is None else torch.empty(shape, device="meta", requires_grad=need)
            for shape, need in zip(shapes, needs_grad, strict=True)
        ]
        results = operation.reference(inputs, options)
        outputs = results[: operation.num_outputs] if isinstance(results, tuple) else (results,)
        grads = [None if y is None else torch.empty_like(y, requires_grad=True) for y in outputs]
        present, seeds = [y for y in outputs if y is not None], [g for g in grads if g is not None]
        variables = [x for x, need in zip(inputs, needs_grad, strict=True) if x is not None and need]
        first = torch.autograd.grad(present, variables, seeds, create_graph=True)
        seeded = [there for there, need in zip(given, needs_grad, strict=True) if need]
        products = [g for g, there in zip(first, seeded, strict=True) if there and g.requires_grad]
        sought = [*seeds, *variables]
        second: Tensors = [None] * len(sought)
        if products:
            second = torch.autograd.grad(products, sought, products, allow_unused=True)
    found = dict(zip(map(id, sought), [g is not None for g in second], strict=True))
    output = _one_or_all(outputs)
    found[id(output)] = any(found[id(x)] for x in variables)
    saved = operation.saved_tensors(inputs, output, options, needs_grad)
    return tuple([found.get(id(x), False) for x in (*grads, *saved)] + [False] * operation.num_statistics)


def _identity(x: Tensor) -> Tensor:
    return x


def _without_anomaly_detection():
    """A context without `detect_anomaly`. All threads share that switch, so it is not touched where it is off."""
    return torch.autograd.set_detect_anomaly(False) if torch.is_anomaly_enabled() else nullcontext()


def _autograd_double_backward(operation, options, needs_grad, tensors, grad_grads) -> Tensors:
    """Second and higher derivatives by autograd of the reference backward.

    `tensors` holds the gradients of the outputs, followed by `saved`.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: a saved tensor computed from another saved tensor must not be differentiated through twice.
        aliases = [None if x is None else _alias(x) for x in tensors]
        output_grads, saved = aliases[: operation.num_outputs], aliases[operation.num_outputs :]
        results = operation.reference_backward(_one_or_all(output_grads), saved, options, needs_grad)
        pairs = [
            (result, grad_grad.to(result.dtype))
            for result, grad_grad in zip(results, grad_grads, strict=True)
            if result is not None and grad_grad is not None and result.requires_grad
        ]
        variables = [x for x in aliases if x is not None and x.requires_grad]
        if not pairs or not variables:
            return [None] * len(aliases)
        outputs, seeds = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, variables, seeds, create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return [next(found) if x is not None and x.requires_grad else None for x in aliases]


def _alias(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach()


def _run_forward(operation, backend, options, inputs) -> Tensors:
    """The outputs and the statistics."""
    run = _call_operator if is_compiling() else _launch_forward
    return run(operation, backend, options, inputs)


def _call_operator(operation, backend, options, inputs) -> Tensors:
    results = _operator(operation.name)(*inputs, *options, backend)
    if operation.num_outputs == 1:
        return results if operation.num_statistics else (results,)
    found = iter(results)
    return tuple([next(found) if there else None for there in operation.has_outputs(inputs)])


def _launch_forward(operation, backend, options, inputs) -> Tensors:
    output = operation.allocate_output(inputs, options)
    outputs = (output,) if operation.num_outputs == 1 else output
    statistics = operation.allocate_statistics(inputs, options) if operation.num_statistics else ()
    if not _is_empty(outputs):
        launchers = fastgan_kernels.BACKENDS[backend].launchers(operation.name)
        operation.launch_forward(launchers, output, inputs, options, *statistics)
    return *outputs, *statistics


def _run_backward(operation, backend, options, needs_grad, grad, saved) -> Tensors:
    if is_compiling():
        given = grad if operation.num_outputs == 1 else list(grad)
        found = iter(_operator(f"{operation.name}_backward")(given, saved, needs_grad, *options, backend))
        return [next(found) if there else None for there in operation.output_mask(needs_grad)]
    return _launch_backward(operation, backend, options, needs_grad, grad, saved)


def _launch_backward(operation, backend, options, needs_grad, grad, saved) -> Tensors:
    grads = operation.allocate_grads(grad, saved, options, needs_grad)
    if not _is_empty((grad,) if operation.num_outputs == 1 else grad):
        launchers = fastgan_kernels.BACKENDS[backend].launchers(operation.name)
        operation.launch_backward(launchers, grads, grad, saved, options)
    else:  # sums over no elements
        for each in grads:
            if each is not None:
                each.zero_()
    return grads


class LinearOperation(FusedOperation[Tensor]):
    """An operation that is linear in its first input, and whose adjoint is the operation itself with other options.

    Derivatives of any order are calls of its one kernel. The other inputs are constants: none may need a gradient.
    """

    has_backward = False

    @staticmethod
    def adjoint(inputs: Tensors, options: NamedTuple) -> NamedTuple:
        """The options of the adjoint, which maps the gradient of the output to the gradient of the first input."""
        raise NotImplementedError

    @staticmethod
    def prepare_gradient(grad: Tensor, options: NamedTuple) -> Tensor:
        """The gradient of the output in the memory format that the kernel takes; differentiable."""
        raise NotImplementedError

    @classmethod
    def apply(cls, backend: str, inputs: Tensors, options: NamedTuple) -> Tensor:
        if backend == "torch" or must_use_reference(inputs):
            return cls.reference(inputs, options)
        x = inputs[0]
        if torch.is_grad_enabled() and x is not None and x.requires_grad:
            return _Linear.apply(cls, backend, options, cls.adjoint(inputs, options), *inputs)
        return cast(Tensor, _run_forward(cls, backend, options, inputs)[0])


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
        elif backward_must_use_reference((grad,)):
            dx = operation.reference((grad, *constants), adjoint)
        else:
            dx = operation.apply(backend, (operation.prepare_gradient(grad, options), *constants), adjoint)
        return None, None, None, None, dx, *[None] * len(constants)


# Registration, and library operators for torch.compile ---------------------------------------------------------------

OPERATIONS: dict[str, type[FusedOperation[Any]]] = {}
"""Every fused operation by its name, filled by `register`."""

_library = torch.library.Library("fastgan", "DEF")
_SCHEMA = {str: "str", float: "float", int: "int", bool: "bool", torch.dtype: "ScalarType"}


Operation = TypeVar("Operation", bound=type[FusedOperation[Any]])


def register(operation: Operation) -> Operation:
    """Class decorator: enters the operation in `OPERATIONS` and defines its library operators and their fakes.

    The operators are `fastgan::NAME` and, with `has_backward`, `fastgan::NAME_backward`.
    """
    OPERATIONS[operation.name] = operation
    first, *others = operation.inputs
    tensors = ", ".join([f"Tensor {first}", *(f"Tensor? {name}" for name in others)])
    options = schema_of(operation.Options)
    results = f"({', '.join(['Tensor'] * (1 + operation.num_statistics))})" if operation.num_statistics else "Tensor"
    results = results if operation.num_outputs == 1 else "Tensor[]"
    count = len(operation.inputs)

    def as_returned(made):
        if operation.num_outputs > 1:
            return [y for y in made if y is not None]
        return made if operation.num_statistics else made[0]

    def run_forward(*args):
        return as_returned(_launch_forward(operation, args[-1], operation.Options(*args[count:-1]), args[:count]))

    def fake_forward(*args):
        call = args[:count], operation.Options(*args[count:-1])
        output = operation.allocate_output(*call)
        outputs = (output,) if operation.num_outputs == 1 else output
        return as_returned((*outputs, *(operation.allocate_statistics(*call) if operation.num_statistics else ())))

    define(f"{operation.name}({tensors}{options}, str backend) -> {results}", run_forward, fake_forward)
    if not operation.has_backward:
        return operation

    def run_backward(grad, saved, needs_grad, *rest):
        grads = _launch_backward(operation, rest[-1], operation.Options(*rest[:-1]), needs_grad, grad, saved)
        return [g for g in grads if g is not None]

    def fake_backward(grad, saved, needs_grad, *rest):
        grads = operation.allocate_grads(grad, saved, operation.Options(*rest[:-1]), needs_grad)
        return [g for g in grads if g is not None]

    gradient = "Tensor" if operation.num_outputs == 1 else "Tensor?[]"
    arguments = f"{gradient} grad, Tensor?[] saved, bool[] needs_grad{options}, str backend"
    define(f"{operation.name}_backward({arguments}) -> Tensor[]", run_backward, fake_backward)
    return operation


def schema_of(options: type) -> str:
    """The fields of an operation's options as further arguments of a library operator's schema."""
    return "".join(f", {_SCHEMA[kind]} {name}" for name, kind in options.__annotations__.items())


def define(schema: str, run: Callable, fake: Callable) -> None:
    """Defines a library operator, `fastgan::NAME`, and its fake."""
    name = _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_library)


def _operator(name: str):
    return getattr(torch.ops.fastgan, name)
