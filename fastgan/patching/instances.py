"""How one module gets another forward, and its own again.

It is given a subclass of its class, made for the purpose, as `torch.nn.utils.parametrize` does: `isinstance`, names,
parameters, hooks, `copy.deepcopy`, pickle and `torch.compile` take it for what it was. An attribute `forward` of the
instance could not be pickled as a method, and would be what `type(module).forward` is not.
"""

import copy
import copyreg
import functools
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


@functools.cache
def patched_class(original: type, forward: Callable) -> type:
    """A subclass of a module's class that computes `forward(module, *args)`.

    Within `forward`, `module._unpatched(*args)` is what the class itself computes. Names of arguments are those of the
    original; `forward` takes them in the same order. Whoever traces or exports the model gets the original.
    """
    renamed = dict(zip(_arguments(original.forward), _arguments(forward), strict=True))

    @functools.wraps(original.forward)
    def call(self, *args, **named):
        if _is_traced(args):
            return original.forward(self, *args, **named)
        if named:
            named = {renamed.get(name, name): value for name, value in named.items()}
        return forward(self, *args, **named)

    def deepcopy(self, memo):
        """Also where the class itself says how it is pickled, as the official layers do: a copy is patched as well."""
        function, args, *state = self.__reduce_ex__(4)
        twin = memo[id(self)] = function(*copy.deepcopy(args, memo))
        if state and state[0] is not None:
            twin.__setstate__(copy.deepcopy(state[0], memo))
        if not is_patched(twin):
            twin.__class__ = patched_class(type(twin), forward)
        return twin

    def reduce(self, protocol):  # for pickle and copy: the class is found by the two parts that it is made of
        function, args, *state = super(patched, self).__reduce_ex__(max(protocol, 2))
        usual = function is copyreg.__newobj__ and args == (patched,)
        return (_rebuilt, (original, forward), *state) if usual else (function, args, *state)

    body = {
        "forward": call,
        "_unpatched": original.forward,
        "_fastgan_patched": True,
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    if not hasattr(original, "__deepcopy__"):
        body["__deepcopy__"] = deepcopy
    patched = type(original)(original.__name__, (original,), body)
    return patched


def _rebuilt(original: type, forward: Callable) -> nn.Module:
    kind = patched_class(original, forward)
    return kind.__new__(kind)


def _arguments(forward: Callable) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


def _is_traced(args: tuple) -> bool:
    """Whether the call is recorded, to be run elsewhere: as PyTorch's own operations, which the original has."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return recorded or (len(args) > 0 and isinstance(args[0], torch.fx.Proxy))


def is_patched(module: nn.Module) -> bool:
    return hasattr(type(module), "_fastgan_patched")


def change(module: nn.Module, patched: type) -> Callable[[], bool]:
    """Gives the module its new class; returns what takes it back, unless the class has been changed again since."""
    original = type(module)
    module.__class__ = patched

    def restore() -> bool:
        if type(module) is not patched:
            return type(module) is original
        module.__class__ = original
        return True

    return restore


def why_not(module: nn.Module) -> str | None:
    """What forbids to replace a module's forward, whatever it computes."""
    kind = type(module)
    if "forward" in vars(module):
        return "has a forward that was set on this one module"
    if kind.__call__ is not nn.Module.__call__:
        return "has a __call__ of its own"
    if "parametrizations" in module._modules:
        return "has a parametrization"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules"
    return _hooks(module)


def why_not_called_so(module: nn.Module, forward: Callable) -> str | None:
    """Whether a module's forward takes other arguments than those of what is known of it: a mask, a flag."""
    kinds = {p.kind for p in inspect.signature(type(module).forward).parameters.values()}
    theirs = _arguments(type(module).forward)
    if kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD} and len(theirs) == len(_arguments(forward)):
        return None
    return f"its forward takes ({', '.join(theirs)}), where ({', '.join(_arguments(forward))}) is known"


def why_not_through(module: nn.Module, bypassed: Iterable[nn.Module]) -> str | None:
    """What forbids it among the modules within: of those bypassed, any hook; of the others, hooks that are functions.

    The probe runs copies of those; a function's effects would not stay within the copy. A hook that is an object, as
    those that make the weights of equalised rate or spectral norm, is copied as well.
    """
    bypassed = list(bypassed)
    for name, part in module.named_modules():
        if part is module:
            continue
        if part in bypassed and not runs_as_its_class(part):
            return f"its part '{name}' has a hook, a parametrization or a forward of its own"
        hooks = [hook for kind in _HOOKS for hook in getattr(part, kind).values()]
        if any(inspect.isroutine(hook) for hook in hooks):
            return f"its part '{name}' has {_hooks(part).removeprefix('has ')}"
    return None


def runs_as_its_class(*modules: nn.Module) -> bool:
    """Whether calling these modules does what their classes say, and nothing else: so that it need not be called.

    Asked at each call of a layer that bypasses others: hooks may come later.
    """
    return not nn.modules.module._has_any_global_hook() and not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "parametrizations" in module._modules
        for module in modules
    )


def has_only_pre_hooks_that_are_objects(module: nn.Module) -> bool:
    """Whether a module runs as its class says but for hooks that make its weight: of equalised rate, spectral norm."""
    hooks = module._forward_pre_hooks
    with_names = getattr(module, "_forward_pre_hooks_with_kwargs", None)
    if with_names or any(inspect.isroutine(hook) for hook in hooks.values()):
        return False
    return not nn.modules.module._has_any_global_hook() and not (
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "parametrizations" in module._modules
    )


def run_pre_hooks(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the hooks of a module, called as `module(x)`, make of its argument."""
    for hook in module._forward_pre_hooks.values():
        result = hook(module, (x,))
        if result is not None:
            (x,) = result if isinstance(result, tuple) else (result,)
    return x


def _hooks(module: nn.Module) -> str | None:
    return next((f"has {what}" for attribute, what in _HOOKS.items() if getattr(module, attribute)), None)
