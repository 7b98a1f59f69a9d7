"""Follows a discriminator's forward pass, call by call."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.recording import recorded_by
from fastgan.ops.transforms import transforms_active
from fastgan.penalties import rules
from fastgan.penalties.rules import Activation, Affine, NotPiecewiseLinear, Path

# The recording of a forward pass ----------------------------------------------------------------------------------


class Slot(int):
    """The number of an effective weight, bias or constant among the inputs of the Function."""


class _Autocast(NamedTuple):
    """The autocast that a step ran under."""

    device_type: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def current(device_type: str) -> _Autocast:
        return _Autocast(device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type))

    def __call__(self) -> torch.autocast:
        # Without its cache, which would keep the leaves of the replay.
        return torch.autocast(self.device_type, self.dtype, self.enabled, cache_enabled=False)


class AffineStep(NamedTuple):
    function: Callable[..., Tensor]
    paths: tuple[int, ...]
    result: int
    weights: tuple[Slot, ...]
    constants: tuple[Slot | float, ...]  # a Slot or a number as it stands
    bias: Slot | None
    rank: int  # dimensions of the result
    dtype: torch.dtype  # of the result
    autocast: _Autocast

    @property
    def adjoint(self) -> int:
        return self.result

    @property
    def slots(self) -> list[Slot]:
        return [*self.weights, *self.offsets]

    @property
    def offsets(self) -> list[Slot]:
        return [slot for slot in (*self.constants, self.bias) if isinstance(slot, Slot)]


class ActivationStep(NamedTuple):
    paths: tuple[int]
    result: int
    bias: Slot | None
    slope: float
    gain: float
    clamp: float | None
    autocast: _Autocast
    adjoint: int  # the value whose adjoint the bias takes its gradient from: the argument, or else the result

    @property
    def slots(self) -> list[Slot]:
        return [] if self.bias is None else [self.bias]

    offsets = slots


Step = AffineStep | ActivationStep


class Recording(TorchFunctionMode):
    """Notes what a discriminator makes of its images, as a context manager around its call.

    Args:
        images: [N, ...], which require a gradient.
        explained: the discriminator, if reasons are to name its modules. To find these, frames are looked into, which
            keeps tensors longer.

    Attributes:
        steps: the calls that the logits come from, in order.
        inputs: effective weights, biases and constants, whose own graphs lead to the parameters.
        outputs: results of activations, by number of the value: their signs tell which way each went.
        logits, gradient, adjoints: once finished; an adjoint is the gradient of the logits at a value, of values whose
            weights or biases want one.
    """

    def __init__(self, images: Tensor, explained: nn.Module | None = None):
        super().__init__()
        self.images = images
        self.steps: list[Step] = []
        self.inputs: list[Tensor] = []
        self.outputs: dict[int, Tensor] = {}
        self._names = {} if explained is None else {module: name for name, module in explained.named_modules()}
        self._versions: list[tuple[Tensor, int]] = [(images, images._version)]
        self._storages: set[int | None] = {_storage(images)}
        # Every value made of the images, by its place in the graph of autograd (node, which of its results), and the
        # version of the tensor. Nodes that made these, nodes of calls that are not known (and why), and nodes that do
        # not lead to the images.
        edge = get_gradient_edge(images)
        self._edges = [edge]  # of each value, by its number
        self._paths = {(edge.node, edge.output_nr): (Path(0, images.shape), images._version)}
        self._dependent: set[Any] = {edge.node}
        self._unknown: dict[Any, str] = {}
        self._independent: set[Any] = set()
        self._reason: str | None = None

    def __enter__(self):
        self._in_force = recorded_by(self._operation)
        self._in_force.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._in_force.__exit__(*error)
        del self._in_force  # which holds this

    # Calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self._call(function, function, args, kwargs or {})

    def _operation(self, name: Callable, function: Callable, args: tuple, kwargs: dict) -> Any:
        """A call of a fused operation, which `fastgan.penalties.rules` knows by `name`."""
        with recorded_by(None), torch._C.DisableTorchFunction():
            return self._call(name, function, args, kwargs)

    def _call(self, name: Callable, function: Callable, args: tuple, kwargs: dict) -> Any:
        # torch.compile looks into modes too, and must not find this. Tensors of torch.func have graphs of their own.
        if self._reason is not None or is_compiling() or transforms_active():
            return function(*args, **kwargs)
        found: list[Path] = []
        step = refusal = None
        overwritten = {_storage(tensor) for tensor in _overwritten(name, args)}
        try:
            marked = _marked((args, kwargs), lambda tensor: self._path_of(tensor, found))
            if found:
                step = _as_it_is(rules.step(name, *marked))
        except NotPiecewiseLinear as error:
            refusal = str(error)  # the error itself would keep this frame, and all tensors in it
        read = [] if step is None else [(tensor, tensor._version) for tensor in _tensors(step)]
        result = function(*args, **kwargs)
        if overwritten - {None} and overwritten & (self._storages | {_storage(tensor) for tensor, _ in read}):
            self._refuse(self._explain(name, "overwrites what was read before"))
        elif found and name in _MEDDLING:
            self._refuse(self._explain(name, "asks for what is behind a value, and could change it"))
        elif found:
            for i, y in enumerate(result if isinstance(result, list | tuple) else (result,)):
                # Whatever has no gradient is a constant to all that follows, as it is to double backward. A value that
                # is there already was handed through.
                if isinstance(y, Tensor) and y.grad_fn is not None and (y.grad_fn, y.output_nr) not in self._paths:
                    try:
                        if refusal is not None:
                            raise NotPiecewiseLinear(self._explain(name, refusal))
                        self._add(name, step if y is result else _part(step, i), y)
                        self._versions += read
                    except NotPiecewiseLinear as error:
                        self._unknown[y.grad_fn] = str(error)  # the logits may not come from it
        return result

    def _explain(self, function: Callable, reason: str) -> str:
        """ "Tanh 'layers.1': tanh() is not known", without the module if it is the discriminator itself."""
        module = _running() if self._names else None
        where = f"{type(module).__name__} '{self._names[module]}': " if self._names.get(module) else ""
        return f"{where}{_name(function)}() {reason}"

    def _path_of(self, tensor: Tensor, found: list[Path]) -> Path | Tensor:
        if not tensor.requires_grad:
            return tensor
        node = self._edges[0].node if tensor is self.images else tensor.grad_fn
        path, version = self._paths.get((node, tensor.output_nr), (None, None))
        if path is None:
            return tensor
        found.append(path)
        if tensor._version != version:
            raise NotPiecewiseLinear("is given a value that was overwritten without a graph")
        return path

    def _add(self, name: Callable, step: Affine | Activation, y: Tensor) -> None:
        n = self.images.shape[0]
        if y.dim() == 0 or y.shape[0] != n:
            reason = f"makes {list(y.shape)} of {n} samples, which must be counted by dimension 0"
            raise NotPiecewiseLinear(self._explain(name, reason))
        if type(y) is not Tensor or not y.is_floating_point() or y.device != self.images.device:
            reason = f"makes a {type(y).__name__} of dtype {y.dtype} on {y.device}, which is not known"
            raise NotPiecewiseLinear(self._explain(name, reason))
        if step.bias is not None and step.bias.shape != y.shape[1:2]:
            reason = f"has a bias {list(step.bias.shape)} for a result {list(y.shape)}, which is not known"
            raise NotPiecewiseLinear(self._explain(name, reason))
        for tensor in _tensors(step):
            self._require_independent(tensor)
        number = len(self._edges)
        autocast = _Autocast.current(y.device.type)
        if isinstance(step, Affine):
            noted = AffineStep(
                step.function,
                tuple(path.number for path in step.paths),
                number,
                tuple(map(self._input, step.weights)),
                tuple(self._input(k) if isinstance(k, Tensor) else k for k in step.constants),
                None if step.bias is None else self._input(step.bias),
                y.dim(),
                y.dtype,
                autocast,
            )
        else:
            bias = None if step.bias is None else self._input(step.bias)
            form = step.slope, step.gain, step.clamp
            noted = ActivationStep((step.path.number,), number, bias, *form, autocast, number)
            if step.slope != 1 or step.clamp is not None:
                self.outputs[number] = output = y.detach()
                self._storages.add(_storage(output))
                self._versions.append((output, output._version))
        self.steps.append(noted)
        self._edges.append(GradientEdge(y.grad_fn, y.output_nr))
        self._paths[y.grad_fn, y.output_nr] = Path(number, y.shape), y._version
        self._dependent.add(y.grad_fn)

    def _input(self, tensor: Tensor) -> Slot:
        self.inputs.append(tensor)
        self._storages.add(_storage(tensor))
        return Slot(len(self.inputs) - 1)

    def _require_independent(self, tensor: Tensor) -> None:
        """Raises if the graph of autograd leads from a tensor, which is not known for a value, to the images."""
        nodes = [self._edges[0].node if tensor is self.images else tensor.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._independent:
                continue
            if node in self._unknown:
                raise NotPiecewiseLinear(self._unknown[node])
            parents = [parent for parent, _ in node.next_functions]
            if node in self._dependent or any(parent in self._dependent for parent in parents):
                raise NotPiecewiseLinear(f"a result of {node.name()} is made of the images, and cannot be followed")
            self._independent.add(node)
            nodes.extend(parents)

    def _refuse(self, reason: str) -> None:
        """Lets go of all that was noted: the forward pass is not followed any further."""
        self._reason = reason
        self.steps, self.inputs, self.outputs, self._versions, self._unknown = [], [], {}, [], {}
        self._paths, self._dependent, self._independent, self._storages = {}, set(), set(), set()
        del self._edges[1:]

    # The end

    def why_not(self, logits: Tensor) -> str | None:
        """Why the forward pass that made `logits` does not qualify, or None."""
        try:
            self._followed(logits)
        except NotPiecewiseLinear as reason:
            return str(reason)
        return None

    def _followed(self, logits: Tensor) -> Path:
        if self._reason is not None:
            raise NotPiecewiseLinear(self._reason)
        found: list[Path] = []
        if isinstance(logits, Tensor):
            self._path_of(logits, found)
            if not found:
                self._require_independent(logits)
        if not found:
            raise NotPiecewiseLinear("its result does not depend on the images")
        if any(tensor._version != version for tensor, version in self._versions):
            raise NotPiecewiseLinear("it overwrites what it has read")
        return found[0]

    def finish(self, logits: Tensor) -> None:
        """Takes the discriminator's result, [N] or [N, 1], and runs the adjoint.

        Raises NotPiecewiseLinear if the forward pass does not qualify; its graph is untouched then.
        """
        end = self._followed(logits).number
        self.steps = _leading_to(end, self.steps)
        readers = Counter(itertools.chain([end], *(step.paths for step in self.steps)))
        self.steps = _with_biases_in_activations(self.steps, readers)
        wanting = [step for step in self.steps if any(self.inputs[slot].requires_grad for slot in step.slots)]
        places = list(dict.fromkeys(step.adjoint for step in wanting))
        total = to_arithmetic(logits.reshape(self.images.shape[0])).sum()
        self.logits = logits.detach().reshape(self.images.shape[0])
        edges = [self._edges[place] for place in places]
        self._paths, self._dependent, self._independent, self._unknown = {}, set(), set(), {}
        self._edges, self._versions = [], []
        del logits
        with torch.autocast(self.images.device.type, enabled=False):  # the forward pass has recorded the dtypes
            gradient, *adjoints = torch.autograd.grad(total, [self.images, *edges], allow_unused=True)
        self.gradient = torch.zeros_like(self.images) if gradient is None else gradient
        self.logits = to_arithmetic(self.logits)
        self.adjoints = {place: a for place, a in zip(places, adjoints, strict=True) if a is not None}
        kept = {step.result for step in self.steps}
        self.outputs = {number: y for number, y in self.outputs.items() if number in kept}


def _marked(value: Any, mark: Callable[[Tensor], Any]) -> Any:
    """Arguments with another object in place of each tensor."""
    if isinstance(value, Tensor):
        return mark(value)
    if type(value) in (list, tuple):
        return type(value)(_marked(each, mark) for each in value)
    return {name: _marked(each, mark) for name, each in value.items()} if type(value) is dict else value


def _tensors(step: Affine | Activation) -> list[Tensor]:
    """The tensors that a step reads besides values."""
    given = (*step.weights, *step.constants, step.bias) if isinstance(step, Affine) else (step.bias,)
    return [x for x in given if isinstance(x, Tensor)]


def _as_it_is(step: Affine | Activation) -> Affine | Activation:
    """The step with copies of constants that have no gradient: running averages change before the backward pass.

    Double backward does not read what was added. What was multiplied is saved by autograd, and must not change.
    """
    if not isinstance(step, Affine):
        return step
    return step._replace(
        constants=tuple(k.clone() if isinstance(k, Tensor) and not k.requires_grad else k for k in step.constants)
    )


def _part(step: Affine, i: int) -> Affine:
    """The step that makes one of several results."""
    return step._replace(function=lambda *given: step.function(*given)[i])


def _running() -> nn.Module | None:
    """The module whose forward pass is running."""
    frame = sys._getframe(1)  # the locals of this one would be a cycle
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module
        frame = frame.f_back
    return None


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without numbers, or around another one
        return None


def _overwritten(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """The tensor that a call changes in place, as far as its name tells. What autograd knows of has a version, too."""
    name = getattr(function, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or function in _ASSIGNING
    return args[:1] if in_place and isinstance(args[0], Tensor) else ()


_ASSIGNING = (Tensor.__setitem__, Tensor.data.__set__)
_MEDDLING = (Tensor.register_hook, Tensor.grad_fn.__get__, Tensor.data.__get__, Tensor.data.__set__)


def _name(function: Callable) -> str:
    owner = getattr(function, "__self__", None)  # of the getter of an attribute
    return getattr(owner if hasattr(owner, "__objclass__") else function, "__name__", str(function))


def _leading_to(end: int, steps: list[Step]) -> list[Step]:
    """The steps that a value comes from."""
    needed, found = {end}, []
    for step in reversed(steps):
        if step.result in needed:
            needed.update(step.paths)
            found.append(step)
    return found[::-1]


def _with_biases_in_activations(steps: list[Step], readers: Counter) -> list[Step]:
    """The same steps, where an activation that is the only reader of its argument takes over what belongs there.

    That is the bias of the layer before it, which costs nothing there. Its gradient is made of the adjoint of the
    argument: if others read that too, it is not the activation's alone.
    """
    steps = list(steps)
    makers = {step.result: i for i, step in enumerate(steps)}
    for i, step in enumerate(steps):
        if isinstance(step, ActivationStep) and readers[step.paths[0]] == 1:
            steps[i] = step._replace(adjoint=step.paths[0])
            at = makers.get(step.paths[0])
            if at is not None and isinstance(steps[at], AffineStep) and step.bias is None:
                steps[i] = steps[i]._replace(bias=steps[at].bias)
                steps[at] = steps[at]._replace(bias=None)
    return steps
