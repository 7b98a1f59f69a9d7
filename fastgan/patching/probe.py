"""Compares two versions of a layer or function by running both on copies.

Parameters, buffers and inputs are random: a bias or noise strength that is still zero would hide a difference, and so
would a symmetric filter that one version flips. In fp64 another formula (a different epsilon, a missing factor) is far
above rounding. The probe compares results, buffers after the call, first gradients of inputs and parameters, and the
gradients of the squared norm of the input gradients, which R1, WGAN-GP and path length need. No gradient (None) differs
from a gradient of zeros: an optimizer makes a step for zeros. A probe cannot see a forward that behaves differently for
other sizes.

Only the copies are touched: not the module, its mode or buffers, nor any RNG state.
"""

import copy
import random
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.patching.instances import patched_class

# Relative to the largest value. fp64 checks the formula. The layer's own dtype checks casts; there convolutions may
# differ by TF32 or by sums in 16 bits.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}
_COMPUTES_IN_FP32 = 1e-4  # for a layer that does so with fp64 inputs as well


class Trial(NamedTuple):
    """One run of both versions; derivatives up to `orders` are compared."""

    dtype: torch.dtype
    training: bool
    orders: int
    n: int
    size: tuple[int, int, int]


class Draw:
    """Random tensors for a trial, in its dtype; the same for both versions."""

    def __init__(self, trial: Trial, device: torch.device):
        self.n, self.size, self.dtype, self.device = trial.n, trial.size, trial.dtype, device
        self.optional_arguments = trial.training  # whether to pass them
        self._generator = torch.Generator().manual_seed(1)

    def tensor(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return values.to(self.device, self.dtype)

    def image(self, channels: int, dims: int = 2, min_size: int = 1) -> Tensor:
        """A tensor [N, channels, ...] with `dims` further dimensions of at least `min_size` each."""
        return self.tensor(self.n, channels, *(size + min_size - 1 for size in self.size[:dims]))

    def vector(self, features: int) -> Tensor:
        return self.tensor(self.n, features)


def why_layers_differ(module: nn.Module, known) -> str | None:
    """Reason not to replace a layer by `known` (a `known.Known`): results differ or cannot be compared; or None."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    if device.type == "meta":
        return "is on the meta device, where nothing can be compared"
    if own not in _TOLERANCES:
        return f"has parameters of dtype {own}"

    def run(patched: bool, trial: Trial):
        draw = Draw(trial, device)
        twin = _copy(module).to(trial.dtype)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.copy_(draw.tensor(*parameter.shape))
            for buffer in twin.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(draw.tensor(*buffer.shape).abs() + 0.1)
            known.fix_buffers(twin)
        twin.train(trial.training).requires_grad_()
        inputs = known.arguments(twin, draw)
        if patched:
            twin.__class__ = patched_class(type(twin), known.forward)
        return twin, inputs, dict(twin.named_parameters()), dict(twin.named_buffers())

    return _first_difference(run, _trials(own), device, {f"the second gradient of {n}" for n in known.piecewise_linear})


def why_functions_differ(original: Callable, ours: Callable, calls: Callable[[Draw], list[tuple]]) -> str | None:
    """Reason not to replace a function, or None; `calls` lists (args, kwargs).

    Runs on the CPU, where the official code needs no plugin.
    """
    device = torch.device("cpu")
    for which in range(len(calls(Draw(_trials(torch.float32)[0], device)))):

        def run(patched: bool, trial: Trial, which=which):
            args, options = calls(Draw(trial, device))[which]
            return (lambda *given: (ours if patched else original)(*given, **options)), args, {}, {}

        reason = _first_difference(run, _trials(torch.float32), device)
        if reason is not None:
            return reason
    return None


def configuration(module: nn.Module) -> tuple | None:
    """A hashable key of everything in a layer except its tensors' values; None if there is no such key."""
    parts = []
    for name, part in module.named_modules():
        own = {key: _hashable(value) for key, value in vars(part).items() if key not in _MODULE_ATTRIBUTES}
        hooks = any(vars(part)[key] for key in _MODULE_ATTRIBUTES if key.endswith("_hooks"))
        if hooks or any(isinstance(value, Tensor) for value in own.values()):
            return None
        tensors = (*part._parameters.items(), *part._buffers.items())
        shapes = [(key, None if t is None else (t.shape, t.dtype, t.device)) for key, t in tensors]
        parts.append((name, type(part), part.training, tuple(own.items()), tuple(shapes)))
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _hashable(value):
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(each)) for key, each in value.items())
    return value


_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def _trials(own: torch.dtype) -> list[Trial]:
    trials = [
        Trial(torch.float64, training=True, orders=2, n=2, size=(2, 3, 4)),
        Trial(torch.float64, training=False, orders=0, n=3, size=(4, 2, 3)),
    ]
    if own != torch.float64:
        trials.append(Trial(own, training=True, orders=0, n=2, size=(2, 3, 4)))
    return trials


def _first_difference(
    run: Callable, trials: list[Trial], device: torch.device, may_miss: Collection[str] = ()
) -> str | None:
    """may_miss: results that may be None or zero."""
    with _isolated(device):
        for trial in trials:
            results = []
            for patched in (False, True):
                _seed(device)
                try:
                    results.append(_results(*run(patched, trial), trial.orders))
                except _NotComparable as reason:
                    return str(reason)
                except Exception as error:
                    what = "fastgan's version" if patched else "the original"
                    return f"on a small random input {what} raises {type(error).__name__}: {_first_line(error)}"
            of_result = results[0][0][1].dtype
            exact = trial.dtype != torch.float64 or of_result == torch.float64
            tolerance = _TOLERANCES[trial.dtype] if exact else _COMPUTES_IN_FP32
            for (what, expected), (_, got) in zip(*results, strict=True):
                if what in may_miss:
                    expected, got = (torch.zeros(()) if t is None or not t.any() else t for t in (expected, got))
                reason = _difference(expected, got, tolerance)
                if reason is not None:
                    return f"computes something else: {what} {reason}"
    return None


class _NotComparable(Exception):
    """The layer cannot be compared; the message says why."""


def _results(function: Callable, inputs: tuple, parameters: dict, buffers: dict, orders: int) -> list:
    """Pairs (name, tensor or None): the result, buffers, first gradients, second gradients."""
    given = {f"argument {i}": t.requires_grad_() for i, t in enumerate(inputs) if isinstance(t, Tensor)}
    before = [t.detach().clone() for t in given.values()]
    y = function(*inputs)
    if not isinstance(y, Tensor):
        raise _NotComparable(f"its result is a {type(y).__name__}, not a tensor")
    if not all(map(torch.equal, given.values(), before)):
        raise _NotComparable("it overwrites its input")
    found = [("its result", y.detach()), *((f"its buffer {name}", buffer) for name, buffer in buffers.items())]
    if orders == 0:
        return found
    if not y.requires_grad:
        raise _NotComparable("its result has no gradient")
    leaves = {**given, **parameters}
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y)
    first = _gradients((y * weights).sum(), leaves, create_graph=True)
    found += [(f"the gradient of {name}", first[name]) for name in leaves]
    penalty = sum(first[name].square().sum() for name in given if first[name] is not None)
    curved = isinstance(penalty, Tensor) and penalty.requires_grad  # else the penalty is constant
    second = _gradients(penalty, leaves) if curved else dict.fromkeys(leaves)
    return found + [(f"the second gradient of {name}", second[name]) for name in leaves]


def _gradients(of: Tensor, leaves: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor | None]:
    gradients = torch.autograd.grad(of, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return dict(zip(leaves, gradients, strict=True))


def _difference(expected: Tensor | None, got: Tensor | None, tolerance: float) -> str | None:
    if expected is None or got is None:
        if expected is got:
            return None
        return "is None, unlike the original's" if got is None else "is not None, unlike the original's"
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):
        return f"is {expected.dtype} {list(expected.shape)}, not {got.dtype} {list(got.shape)}"
    if expected.numel() == 0:
        return None
    largest = expected.abs().max().double().item()
    error = (expected.double() - got.double()).abs().max().item()
    if error <= tolerance * max(largest, 1e-3):  # False for NaN
        return None
    return f"differs by {error:.1g} where the largest is {largest:.1g}"


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy. Non-leaf tensors, such as a weight that a hook has computed, are copied detached."""
    memo = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Within the block gradients are on and autocast is off; afterwards all RNG states are restored."""
    states = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _seed(device: torch.device) -> None:
    torch.default_generator.manual_seed(1)  # torch.manual_seed would initialise CUDA
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(1)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
