"""The type of an entry in the tables of known layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from fastgan.ops import backends
from fastgan.ops.fused import OPERATIONS
from fastgan.patching.probe import Draw

NOTHING_TO_FUSE = "has no activation, so there is nothing to fuse"


class Known(NamedTuple):
    """A layer that `fastgan.patch` replaces.

    Attributes:
        recognises: (module) -> whether its class is this layer's.
        why_not: (module) -> why it cannot be replaced, or nothing is gained; None if it can.
        arguments: (module, random source) -> arguments for the probe.
        forward: the replacement, (module, *arguments); `module._unpatched` is the original.
        operation: name of the fused operation; empty for a sequence, whose pairs name theirs.
        bypassed: (module) -> submodules that are no longer called.
        probed: (module) -> modules that the probe compares in place of the layer.
        fix_buffers: restores an invariant of the buffers after the probe has filled them with random numbers.
        piecewise_linear: names of parameters in which the layer is piecewise linear. Their second gradient, which is
            zero, may be None.
        pairs: (module) -> fused pairs of a sequence, each with its operation.
        why_some_left: (module) -> why parts of a replaced sequence stay as they are, or None.
    """

    recognises: Callable[[nn.Module], bool]
    why_not: Callable[[nn.Module], str | None]
    arguments: Callable[[nn.Module, Draw], tuple]
    forward: Callable[..., Tensor]
    operation: str
    bypassed: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: ()
    probed: Callable[[nn.Module], list[nn.Module]] = lambda module: [module]
    fix_buffers: Callable[[nn.Module], None] = lambda module: None
    piecewise_linear: tuple[str, ...] = ()
    pairs: Callable[[nn.Module], list[tuple[nn.Sequential, str]]] = lambda module: []
    why_some_left: Callable[[nn.Module], str | None] = lambda module: None

    def operations(self, module: nn.Module) -> list[str]:
        """Names of the fused operations that replace the layer."""
        return sorted({operation for _, operation in self.pairs(module)}) or [self.operation]

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """Submodules whose work the replacement does itself."""
        return [*self.bypassed(module), *(part for pair, _ in self.pairs(module) for part in pair.modules())]


def why_no_kernel(known: Known, module: nn.Module) -> str | None:
    """Why no backend of this machine makes the replacement faster; None if one does."""
    tensor = next((t for t in (*module.parameters(), *module.buffers())), None)
    if tensor is None or tensor.device.type == "meta":
        return None
    operations = known.operations(module)
    for name in operations:
        operation = {"adain": "instance_norm"}.get(name, name)
        # Others have no kernel of their own, and are faster by their algorithm on any backend.
        if operation not in OPERATIONS or backends.choose(operation, tensor.device) != "torch":
            return None
    return f"nothing is gained: {' and '.join(operations)} would run as plain PyTorch, as no kernel can serve here"


def named(*names: str) -> Callable[[nn.Module], bool]:
    """Recognises layers by the name of their class or a base class, except PyTorch's and fastgan's own classes."""
    ours = ("torch.nn.", "fastgan.")
    return lambda module: any(k.__name__ in names and not k.__module__.startswith(ours) for k in type(module).__mro__)


def of_class(kind: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Recognises instances of a PyTorch class, and of subclasses that do not override its forward."""
    return lambda module: isinstance(module, kind) and type(module).forward is kind.forward


def has_numbers(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), int | float) for name in names)
