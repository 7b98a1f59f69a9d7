"""Whether two versions of a layer or function compute the same: they are run, on copies, and compared.

Random parameters, buffers and inputs, so that a bias or noise strength that is still zero counts, and a filter that
happens to be symmetric shows how it is turned. In fp64 differences of form (another epsilon, a missing factor) stand
far above rounding. Values are compared, buffers after the call, first gradients with respect to inputs and parameters,
and the gradients of the squared norm of the inputs' gradients: what R1, WGAN-GP and path length take. No gradient is
not a gradient of zeros: an optimizer makes a step for zeros. What a probe cannot see is a forward that does something
else for other sizes.

Nothing outside of the copies is touched: not the module, its mode or buffers, nor any random state.
"""

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.patching.instances import patched_class

# Of the largest value. In fp64 it is the check of form. Beside it the layer's own dtype shows what is cast on the way;
# there the convolutions of both versions may differ by what TF32 or sums in 16 bits leave.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}


class Trial(NamedTuple):
    """One run of both versions. `orders` of derivatives are compared."""

    dtype: torch.dtype
    training: bool
    orders: int
    n: int
    size: tuple[int, int, int]


class Draw:
    """Random numbers for a trial, in its dtype; the same ones for both versions."""

    def __init__(self, trial: Trial, device: torch.device):
        self.n, self.size, self.dtype, self.device = trial.n, trial.size, trial.dtype, device
        self.all_given = trial.training  # whether optional arguments are given
        self._generator = torch.Generator().manual_seed(1)

    def tensor(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return values.to(self.device, self.dtype)

    def image(self, channels: int, dims: int = 2, least: int = 1) -> Tensor:
        """[N, channels, ...] with `dims` further dimensions, which are `least` and more."""
        return self.tensor(self.n, channels, *(size + least - 1 for size in self.size[:dims]))

    def vector(self, features: int) -> Tensor:
        return self.tensor(self.n, features)


def why_unlike(module: nn.Module, known) -> str | None:
    """How what is known of a layer (`layers.Known`) differs from the layer at hand; None if it does not."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    if device.type == "meta":
        return "is on the meta device, where nothing can be tried"
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
            known.arrange(twin)
        twin.train(trial.training).requires_grad_()
        inputs = known.arguments(twin, draw)
        if patched:
            twin.__class__ = patched_class(type(twin), known.forward)
        return twin, inputs, dict(twin.named_parameters()), dict(twin.named_buffers())

    return _first_difference(run, _trials(own), device)


def why_functions_differ(original: Callable, ours: Callable, calls: Callable[[Draw], list[tuple]]) -> str | None:
    """The same for functions: `calls` lists (args, kwargs). On CPU tensors: no plugin is built for it."""
    device = torch.device("cpu")
    for which in range(len(calls(Draw(_trials(torch.float32)[0], device)))):

        def run(patched: bool, trial: Trial, which=which):
            args, options = calls(Draw(trial, device))[which]
            return (lambda *given: (ours if patched else original)(*given, **options)), args, {}, {}

        reason = _first_difference(run, _trials(torch.float32), device)
        if reason is not None:
            return reason
    return None


def form(module: nn.Module) -> tuple | None:
    """All that tells a layer from another but the values of its tensors, hashable; None if that cannot be told."""
    parts = []
    for name, part in module.named_modules():
        own = {key: _hashable(value) for key, value in vars(part).items() if key not in _OF_EVERY_MODULE}
        hooks = any(vars(part)[key] for key in _OF_EVERY_MODULE if key.endswith("_hooks"))
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


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _trials(own: torch.dtype) -> list[Trial]:
    trials = [
        Trial(torch.float64, training=True, orders=2, n=2, size=(2, 3, 4)),
        Trial(torch.float64, training=False, orders=0, n=3, size=(4, 2, 3)),
    ]
    if own != torch.float64:
        trials.append(Trial(own, training=True, orders=0, n=2, size=(2, 3, 4)))
    return trials


def _first_difference(run: Callable, trials: list[Trial], device: torch.device) -> str | None:
    with _undisturbed(device):
        for trial in trials:
            results = []
            for patched in (False, True):
                _seed(device)
                try:
                    results.append(_results(*run(patched, trial), trial.orders))
                except _Unfit as reason:
                    return str(reason)
                except Exception as error:
                    what = "fastgan's version" if patched else "it"
                    return f"on a small random input {what} raises {type(error).__name__}: {_first_line(error)}"
            for (what, expected), (_, got) in zip(*results, strict=True):
                reason = _unlike(expected, got, _TOLERANCES[trial.dtype])
                if reason is not None:
                    return f"computes something else: {what} {reason}"
    return None


class _Unfit(Exception):
    pass


def _results(function: Callable, inputs: tuple, parameters: dict, buffers: dict, orders: int) -> list:
    """(what, tensor or None): the result, buffers, first gradients, second gradients."""
    given = {f"argument {i}": t.requires_grad_() for i, t in enumerate(inputs) if isinstance(t, Tensor)}
    before = [t.detach().clone() for t in given.values()]
    y = function(*inputs)
    if not isinstance(y, Tensor):
        raise _Unfit(f"its result is a {type(y).__name__}, not one tensor")
    if not all(map(torch.equal, given.values(), before)):
        raise _Unfit("it overwrites its input")
    found = [("its result", y.detach()), *((f"its buffer {name}", buffer) for name, buffer in buffers.items())]
    if orders == 0:
        return found
    if not y.requires_grad:
        raise _Unfit("its result has no gradient")
    leaves = {**given, **parameters}
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y)
    first = _gradients((y * weights).sum(), leaves, create_graph=True)
    found += [(f"the gradient of {name}", first[name]) for name in leaves]
    penalty = sum(first[name].square().sum() for name in given if first[name] is not None)
    curved = isinstance(penalty, Tensor) and penalty.requires_grad  # else it does not depend on anything
    second = _gradients(penalty, leaves) if curved else dict.fromkeys(leaves)
    return found + [(f"the second gradient of {name}", second[name]) for name in leaves]


def _gradients(of: Tensor, leaves: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor | None]:
    gradients = torch.autograd.grad(of, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return dict(zip(leaves, gradients, strict=True))


def _unlike(expected: Tensor | None, got: Tensor | None, tolerance: float) -> str | None:
    if expected is None or got is None:
        if expected is got:
            return None
        return "is None, and not in the original" if got is None else "is None in the original, and here it is not"
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):
        return f"is {expected.dtype} {list(expected.shape)}, not {got.dtype} {list(got.shape)}"
    if expected.numel() == 0:
        return None
    largest = expected.abs().max().double().item()
    error = (expected.double() - got.double()).abs().max().item()
    if error <= tolerance * max(largest, 1e-3):  # also False where there are no numbers
        return None
    return f"differs by {error:.1g} where the largest is {largest:.1g}"


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, also of tensors with a history, such as a weight that a hook made in the last forward."""
    memo = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Every random state is put back; gradients are on and autocast is off."""
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
    torch.default_generator.manual_seed(1)  # torch.manual_seed would reach for GPUs that have not been started yet
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(1)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
