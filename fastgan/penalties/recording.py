"""Recording of a discriminator's forward pass: which calls compute the logits from the images.

The discriminator's own `forward` runs once, under a `TorchFunctionMode`. Each call that takes a tensor computed from
the images becomes a step, if `fastgan.penalties.rules` has a rule for it. Nothing is known about the discriminator in
advance and nothing is cached, so state, random numbers, hooks and branches are recorded as they happened.

A call that the mode does not see (someone else's kernel) cannot slip through. Tensors are identified by their place in
the autograd graph, and every other tensor that a recorded call reads must not lead to the images in that graph.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from inspect import getattr_static
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.recordable import recorded_by
from fastgan.ops.transforms import transforms_active
from fastgan.penalties import rules
from fastgan.penalties.rules import Activation, Affine, NotPiecewiseLinear, Proxy

VALUE_TYPES: tuple[type, ...] = (Tensor,)  # other subclasses may compute anything


class TensorIndex(int):
    """Index into `Recording.tensors`."""


class Autocast(NamedTuple):
    """Autocast settings under which a step ran."""

    device_type: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def current(device_type: str) -> Autocast:
        return Autocast(device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type))

    def __call__(self) -> torch.autocast:
        # Without the cache of casts, which would keep the leaves of the replay alive.
        return torch.autocast(self.device_type, self.dtype, self.enabled, cache_enabled=False)


class AffineStep(NamedTuple):
    """A recorded `rules.Affine`. Values computed from the images are numbered; 0 is the images."""

    function: Callable[..., Tensor]
    inputs: tuple[int, ...]  # values
    output: int  # value
    weights: tuple[TensorIndex, ...]
    constants: tuple[TensorIndex | float, ...]
    bias: TensorIndex | None
    rank: int  # rank of the output
    dtype: torch.dtype  # dtype of the output
    autocast: Autocast

    @property
    def adjoint(self) -> int:
        """Value whose adjoint the gradients of weights, constants and bias need."""
        return self.output

    @property
    def tensors(self) -> list[TensorIndex]:
        return [*self.weights, *self.offsets]

    @property
    def offsets(self) -> list[TensorIndex]:
        """Tensors that are added, so that |g|^2 does not depend on them."""
        return [k for k in (*self.constants, self.bias) if isinstance(k, TensorIndex)]


class ActivationStep(NamedTuple):
    """A recorded `rules.Activation`."""

    inputs: tuple[int, ...]  # a single value
    output: int
    bias: TensorIndex | None
    slope: float
    gain: float
    clamp: float | None
    autocast: Autocast
    adjoint: int  # value whose adjoint the bias gradient needs: the input if nothing else reads it, else the output

    @property
    def tensors(self) -> list[TensorIndex]:
        return [] if self.bias is None else [self.bias]

    @property
    def offsets(self) -> list[TensorIndex]:
        return self.tensors


Step = AffineStep | ActivationStep


class Recording(TorchFunctionMode):
    """Context manager that records what a discriminator computes from its images.

    Args:
        images: [N, ...], requiring grad.
        module_names: the discriminator, if reasons shall name its modules. Looking for these inspects frames, which
            keeps tensors alive longer.

    Attributes:
        steps: the calls that lead to the logits, in order.
        tensors: effective weights, biases and constants; their own graphs lead to the parameters.
        outputs: outputs of activations by number of the value. The signs tell on which side of zero each element was.
        logits, gradient: [N], and their gradient with respect to the images; set by `finish`.
        adjoints: gradients of the logits with respect to values, where a weight or bias needs one; set by `finish`.
    """

    def __init__(self, images: Tensor, module_names: nn.Module | None = None):
        super().__init__()
        self.images = images
        self.steps: list[Step] = []
        self.tensors: list[Tensor] = []
        self.outputs: dict[int, Tensor] = {}
        self._names = {} if module_names is None else {module: name for name, module in module_names.named_modules()}
        self._versions: list[tuple[Tensor, int]] = [(images, images._version)]
        self._storages: set[int | None] = {_storage(images)}
        edge = get_gradient_edge(images)
        self._edges = [edge]  # edge of each value, by its number
        # Values and their tensors' versions, by place in the autograd graph: node, and which of its outputs.
        self._proxies = {(edge.node, edge.output_nr): (Proxy(0, images.shape), images._version)}
        self._dependent: set[Node] = {edge.node}  # nodes that computed a value
        self._unknown: dict[Node, str] = {}  # nodes of calls without a rule, with the reason
        self._independent: set[Node] = set()  # nodes that do not lead to the images
        self._reason: str | None = None

    def __enter__(self):
        self._ops_context = recorded_by(self._operation)
        self._ops_context.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._ops_context.__exit__(*error)
        del self._ops_context  # a reference cycle

    # Calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self._call(function, function, args, kwargs or {})

    def _operation(self, name: Callable, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Records a call of a fused operation, whose rule is registered under `name`."""
        with recorded_by(None), torch._C.DisableTorchFunction():
            return self._call(name, function, args, kwargs)

    def _call(self, name: Callable, function: Callable, args: tuple, kwargs: dict) -> Any:
        # torch.compile traces through modes, and must not trace this one. Tensors of torch.func have their own graphs.
        if self._reason is not None or is_compiling() or transforms_active():
            return function(*args, **kwargs)
        found: list[Proxy] = []
        step, refusal = None, ""
        overwritten = {_storage(tensor) for tensor in _overwritten(name, args)}
        try:
            proxied = _map_tensors((args, kwargs), lambda tensor: self._proxy_of(tensor, found))
            if found:
                step = _copy_constants(rules.apply_rule(name, *proxied))
        except NotPiecewiseLinear as error:
            refusal = str(error)  # the exception would keep this frame and its tensors alive
        read = [] if step is None else [(tensor, tensor._version) for tensor in _tensors_of(step)]
        result = function(*args, **kwargs)
        if overwritten - {None} and overwritten & (self._storages | {_storage(tensor) for tensor, _ in read}):
            self._refuse(self._explain(name, "overwrites what was read before"))
        elif found and name in _EXPOSES_AUTOGRAD:
            self._refuse(self._explain(name, "exposes the graph or the data of a value, which could be changed"))
        elif found:
            for i, y in enumerate(result if isinstance(result, list | tuple) else (result,)):
                # A tensor without a graph is a constant, as it is for double backward. A known value was passed on.
                if isinstance(y, Tensor) and y.grad_fn is not None and (y.grad_fn, y.output_nr) not in self._proxies:
                    try:
                        if step is None:
                            raise NotPiecewiseLinear(self._explain(name, refusal))
                        self._add(name, step if y is result else _select(step, i), y, y.grad_fn)
                        self._versions += read
                    except NotPiecewiseLinear as error:
                        self._unknown[y.grad_fn] = str(error)  # fine unless the logits depend on it
        return result

    def _explain(self, function: Callable, reason: str) -> str:
        """A message such as "Tanh 'layers.1': tanh() is not known"; the discriminator itself is not named."""
        module = _current_module() if self._names else None
        where = f"{type(module).__name__} '{self._names[module]}': " if self._names.get(module) else ""
        return f"{where}{_name(function)}() {reason}"

    def _proxy_of(self, tensor: Tensor, found: list[Proxy]) -> Proxy | Tensor:
        """The proxy of a value, which is also appended to `found`; any other tensor as it is."""
        if not tensor.requires_grad:
            return tensor
        node = self._edges[0].node if tensor is self.images else tensor.grad_fn
        if node is None or (node, tensor.output_nr) not in self._proxies:
            return tensor
        proxy, version = self._proxies[node, tensor.output_nr]
        found.append(proxy)
        if tensor._version != version:
            raise NotPiecewiseLinear("is given a value that was overwritten without a graph")
        return proxy

    def _add(self, name: Callable, step: Affine | Activation, y: Tensor, node: Node) -> None:
        """Appends a step with output `y`, computed by `node` of the autograd graph.

        Raises NotPiecewiseLinear if it does not qualify.
        """
        n = self.images.shape[0]
        if y.dim() == 0 or y.shape[0] != n:
            reason = f"makes {list(y.shape)} of {n} samples, which must be counted by dimension 0"
            raise NotPiecewiseLinear(self._explain(name, reason))
        if type(y) not in VALUE_TYPES or not y.is_floating_point() or y.device != self.images.device:
            reason = f"makes a {type(y).__name__} of dtype {y.dtype} on {y.device}, which is not known"
            raise NotPiecewiseLinear(self._explain(name, reason))
        if step.bias is not None and step.bias.shape != y.shape[1:2]:
            reason = f"has a bias {list(step.bias.shape)} for a result {list(y.shape)}, which is not known"
            raise NotPiecewiseLinear(self._explain(name, reason))
        for tensor in _tensors_of(step):
            self._require_independent(tensor)
        number = len(self._edges)
        autocast = Autocast.current(y.device.type)
        recorded: Step
        if isinstance(step, Affine):
            recorded = AffineStep(
                function=step.function,
                inputs=tuple(proxy.number for proxy in step.inputs),
                output=number,
                weights=tuple(map(self._index, step.weights)),
                constants=tuple(self._index(k) if isinstance(k, Tensor) else k for k in step.constants),
                bias=None if step.bias is None else self._index(step.bias),
                rank=y.dim(),
                dtype=y.dtype,
                autocast=autocast,
            )
        else:
            bias = None if step.bias is None else self._index(step.bias)
            form = step.slope, step.gain, step.clamp
            recorded = ActivationStep((step.input.number,), number, bias, *form, autocast, number)
            if step.slope != 1 or step.clamp is not None:
                self.outputs[number] = output = y.detach()
                self._storages.add(_storage(output))
                self._versions.append((output, output._version))
        self.steps.append(recorded)
        self._edges.append(GradientEdge(node, y.output_nr))
        self._proxies[node, y.output_nr] = Proxy(number, y.shape), y._version
        self._dependent.add(node)

    def _index(self, tensor: Tensor) -> TensorIndex:
        self.tensors.append(tensor)
        self._storages.add(_storage(tensor))
        return TensorIndex(len(self.tensors) - 1)

    def _require_independent(self, tensor: Tensor) -> None:
        """Raises NotPiecewiseLinear if a tensor that is no recorded value leads to the images in the autograd graph."""
        nodes = [self._edges[0].node if tensor is self.images else tensor.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._independent:
                continue
            if node in self._unknown:
                raise NotPiecewiseLinear(self._unknown[node])
            parents = [parent for parent, _ in node.next_functions]
            if node in self._dependent or any(parent in self._dependent for parent in parents):
                raise NotPiecewiseLinear(f"a result of {node.name()} is computed from the images, but was not recorded")
            self._independent.add(node)
            nodes.extend(parents)

    def _refuse(self, reason: str) -> None:
        """Stops recording, and releases all tensors recorded so far."""
        self._reason = reason
        self.steps, self.tensors, self.outputs, self._versions, self._unknown = [], [], {}, [], {}
        self._proxies, self._dependent, self._independent, self._storages = {}, set(), set(), set()
        del self._edges[1:]

    # The end

    def why_not(self, logits: Tensor) -> str | None:
        """Why the forward pass that computed `logits` does not qualify, or None if it does."""
        try:
            self._require_recorded(logits)
        except NotPiecewiseLinear as reason:
            return str(reason)
        return None

    def _require_recorded(self, logits: Tensor) -> Proxy:
        """The proxy of `logits`. Raises NotPiecewiseLinear if it was not recorded from images to logits."""
        if self._reason is not None:
            raise NotPiecewiseLinear(self._reason)
        found: list[Proxy] = []
        if isinstance(logits, Tensor):
            self._proxy_of(logits, found)
            if not found:
                self._require_independent(logits)
        if not found:
            raise NotPiecewiseLinear("its result does not depend on the images")
        if found[0].rank == 2 and found[0].shape[1] != 1:
            raise NotPiecewiseLinear("it has several logits for each image")
        if any(tensor._version != version for tensor, version in self._versions):
            raise NotPiecewiseLinear("it overwrites what it has read")
        return found[0]

    def finish(self, logits: Tensor) -> None:
        """Runs the adjoint from the discriminator's result, [N] or [N, 1]; sets `logits`, `gradient` and `adjoints`.

        Raises NotPiecewiseLinear if the forward pass does not qualify; the graph of `logits` is untouched then.
        """
        end = self._require_recorded(logits).number
        self.steps = _steps_leading_to(end, self.steps)
        readers = Counter(itertools.chain([end], *(step.inputs for step in self.steps)))
        self.steps = _move_biases_into_activations(self.steps, readers)
        trained = [step for step in self.steps if any(self.tensors[i].requires_grad for i in step.tensors)]
        numbers = list(dict.fromkeys(step.adjoint for step in trained))
        total = to_arithmetic(logits.reshape(self.images.shape[0])).sum()
        self.logits = logits.detach().reshape(self.images.shape[0])
        images, edges = self._edges[0], [self._edges[number] for number in numbers]
        # The last references to the graph go, so that autograd frees it while it runs backwards.
        self._proxies, self._dependent, self._independent, self._unknown = {}, set(), set(), {}
        self._edges, self._versions = [], []
        del logits
        with torch.autocast(self.images.device.type, enabled=False):  # the graph has recorded the dtypes
            gradient, *adjoints = torch.autograd.grad(total, [images, *edges], allow_unused=True)
        self.gradient = torch.zeros_like(self.images) if gradient is None else gradient
        self.logits = to_arithmetic(self.logits)
        self.adjoints = {number: a for number, a in zip(numbers, adjoints, strict=True) if a is not None}
        needed = {step.output for step in self.steps}
        self.outputs = {number: y for number, y in self.outputs.items() if number in needed}


# Arguments and results of calls -----------------------------------------------------------------------------------


def _map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Arguments with `function(tensor)` in place of each tensor, also within lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(each, function) for each in value)
    return {name: _map_tensors(each, function) for name, each in value.items()} if type(value) is dict else value


def _tensors_of(step: Affine | Activation) -> list[Tensor]:
    """The weights, constants and bias of a step, as far as they are tensors."""
    given = (*step.weights, *step.constants, step.bias) if isinstance(step, Affine) else (step.bias,)
    return [x for x in given if isinstance(x, Tensor)]


def _copy_constants(step: Affine | Activation) -> Affine | Activation:
    """The step with copies of constants without grad: running averages change before the backward pass.

    Weights need no copy: autograd saves them for double backward too, and refuses if they change. What is added, double
    backward does not read again.
    """
    if not isinstance(step, Affine):
        return step
    return step._replace(
        constants=tuple(k.clone() if isinstance(k, Tensor) and not k.requires_grad else k for k in step.constants)
    )


def _select(step: Affine | Activation, i: int) -> Affine:
    """The step that computes result i of a call with several results."""
    assert isinstance(step, Affine), "an activation has one result"
    return step._replace(function=lambda *given: step.function(*given)[i])


def _current_module() -> nn.Module | None:
    """The module whose `forward` is running."""
    frame: FrameType | None = sys._getframe(1)  # its own frame among its locals would be a reference cycle
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module
        frame = frame.f_back
    return None


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None  # 0 for fake and for empty tensors
    except (NotImplementedError, RuntimeError):  # without storage, as wrapper tensors are
        return None


def _overwritten(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """The tensor that a call changes in place, judged by its name; version counters see the others."""
    name = getattr(function, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or function in _ASSIGNMENTS
    return args[:1] if in_place and isinstance(args[0], Tensor) else ()


_DATA, _GRAD_FN = (getattr_static(Tensor, name) for name in ("data", "grad_fn"))  # the attributes' descriptors
_ASSIGNMENTS = (Tensor.__setitem__, _DATA.__set__)
_EXPOSES_AUTOGRAD = (Tensor.register_hook, _GRAD_FN.__get__, _DATA.__get__, _DATA.__set__)


def _name(function: Callable) -> str:
    owner = getattr(function, "__self__", None)  # the attribute, if the function is its getter
    return getattr(owner if hasattr(owner, "__objclass__") else function, "__name__", str(function))


# Steps ------------------------------------------------------------------------------------------------------------


def _steps_leading_to(end: int, steps: list[Step]) -> list[Step]:
    """The steps that value `end` depends on."""
    needed, found = {end}, []
    for step in reversed(steps):
        if step.output in needed:
            needed.update(step.inputs)
            found.append(step)
    return found[::-1]


def _move_biases_into_activations(steps: list[Step], readers: Counter) -> list[Step]:
    """Moves the bias of a layer into the activation behind it, where it costs no pass of its own.

    Only if the activation is the sole reader of its input: its bias gradient is a sum of the adjoint of the input,
    which would include the adjoints of other readers.
    """
    steps = list(steps)
    producers = {step.output: i for i, step in enumerate(steps)}
    for i, step in enumerate(steps):
        if isinstance(step, ActivationStep) and readers[step.inputs[0]] == 1:
            steps[i] = step._replace(adjoint=step.inputs[0])
            at = producers.get(step.inputs[0])
            if at is not None and isinstance(steps[at], AffineStep) and step.bias is None:
                steps[i] = steps[i]._replace(bias=steps[at].bias)
                steps[at] = steps[at]._replace(bias=None)
    return steps
