"""Gives one module another forward, and restores its own.

The module gets a subclass of its class, as in `torch.nn.utils.parametrize`. `isinstance`, names, parameters, hooks,
`copy.deepcopy`, pickle and `torch.compile` work as before. Setting `module.forward` would break pickling, and
`type(module).forward` would still be the original.
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
    """Returns a subclass of a module's class that computes `forward(module, *args)`.

    Inside `forward`, `module._unpatched(*args)` calls the original forward. `forward` takes the original's arguments in
    the same order; keyword arguments keep the original's names. Tracing and exporting see the original forward.
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
        """Copies the patch as well, also for classes with their own `__reduce__`, such as the official layers."""
        function, args, *state = self.__reduce_ex__(4)
        twin = memo[id(self)] = function(*copy.deepcopy(args, memo))
        if state and state[0] is not None:
            twin.__setstate__(copy.deepcopy(state[0], memo))
        if not is_patched(twin):
            twin.__class__ = patched_class(type(twin), forward)
        return twin

    def reduce(self, protocol):  # the subclass cannot be imported by name: rebuild it from its two parts
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
    """Whether the call is traced or exported. The graph should then hold PyTorch's own operations."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return recorded or (len(args) > 0 and isinstance(args[0], torch.fx.Proxy))


def is_patched(module: nn.Module) -> bool:
    return hasattr(type(module), "_fastgan_patched")


def change(module: nn.Module, patched: type) -> Callable[[], bool]:
    """Sets the module's class. Returns a function that restores it, or returns False if it was changed since."""
    original = type(module)
    module.__class__ = patched

    def restore() -> bool:
        if type(module) is not patched:
            return type(module) is original
        module.__class__ = original
        return True

    return restore


def why_not(module: nn.Module) -> str | None:
    """Why a module's forward must not be replaced, whatever it computes; None if it may."""
    kind = type(module)
    if "forward" in vars(module):
        return "has a forward set on the instance"
    if kind.__call__ is not nn.Module.__call__:
        return "overrides __call__"
    if "parametrizations" in module._modules:
        return "has a parametrization"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules"
    return _hooks(module)


def why_other_arguments(module: nn.Module, forward: Callable) -> str | None:
    """Why a forward takes other arguments than the known layer, such as a mask; None if it does not."""
    kinds = {p.kind for p in inspect.signature(type(module).forward).parameters.values()}
    theirs = _arguments(type(module).forward)
    if kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD} and len(theirs) == len(_arguments(forward)):
        return None
    return f"its forward takes ({', '.join(theirs)}); the known layer takes ({', '.join(_arguments(forward))})"


def why_not_submodules(module: nn.Module, bypassed: Iterable[nn.Module]) -> str | None:
    """Why the submodules forbid a replacement; None if they allow it.

    Bypassed submodules must have no hook at all, since they are no longer called. Other submodules must have no hook
    that is a function: the probe runs copies, and a function's side effects would not stay within the copy. A hook that
    is an object, such as that of equalized learning rate or spectral norm, is copied with the module.
    """
    bypassed = list(bypassed)
    for name, part in module.named_modules():
        if part is module:
            continue
        if part in bypassed and not runs_as_its_class(part):
            return f"its submodule '{name}' has a hook, a parametrization or its own forward"
        hooks = [hook for kind in _HOOKS for hook in getattr(part, kind).values()]
        if any(inspect.isroutine(hook) for hook in hooks):
            return f"its submodule '{name}' has {_hooks(part).removeprefix('has ')}"
    return None


def runs_as_its_class(*modules: nn.Module) -> bool:
    """Whether calling these modules runs their class's forward and nothing else, so that they may be bypassed.

    Checked at each call of a layer that bypasses others, since hooks may be added later.
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


def has_only_weight_pre_hooks(module: nn.Module) -> bool:
    """Whether a module runs as its class, except for pre-hooks that compute its weight (spectral norm, ...)."""
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
    """Returns the argument of `module(x)` after the module's forward pre-hooks."""
    for hook in module._forward_pre_hooks.values():
        result = hook(module, (x,))
        if result is not None:
            (x,) = result if isinstance(result, tuple) else (result,)
    return x


def _hooks(module: nn.Module) -> str | None:
    return next((f"has {what}" for attribute, what in _HOOKS.items() if getattr(module, attribute)), None)
