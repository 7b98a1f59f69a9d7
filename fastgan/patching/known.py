"""What an entry in the tables of known layers says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from fastgan.ops import backends
from fastgan.patching.probe import Draw

NOTHING_TO_FUSE = "has no activation, so there is nothing to fuse"


class Known(NamedTuple):
    """A layer that `fastgan.patch` replaces.

    Attributes:
        recognises: whether a module is such a layer, by its class.
        why_not: what does not fit, of its parameters and attributes; or why nothing is gained.
        arguments: what to try it with.
        forward: the replacement, (module, *arguments); `module._unpatched` is the original.
        by: the operation that it is made of; of a sequence, its pairs say it.
        bypassed: parts that are not called any more.
        tried: what stands for the layer when it is tried.
        arrange: gives a copy with random buffers the form that the layer's buffers always have.
        pairs: the pairs of parts that are fused, where the layer is a sequence, each with its operation.
        beside: what is left although the layer is replaced, and why.
    """

    recognises: Callable[[nn.Module], bool]
    why_not: Callable[[nn.Module], str | None]
    arguments: Callable[[nn.Module, Draw], tuple]
    forward: Callable[..., Tensor]
    by: str
    bypassed: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: ()
    tried: Callable[[nn.Module], list[nn.Module]] = lambda module: [module]
    arrange: Callable[[nn.Module], None] = lambda module: None
    pairs: Callable[[nn.Module], list[tuple[nn.Sequential, str]]] = lambda module: []
    beside: Callable[[nn.Module], str | None] = lambda module: None

    def operations(self, module: nn.Module) -> list[str]:
        """Names of the operations that take the layer's place."""
        return sorted({by for _, by in self.pairs(module)}) or [self.by]

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The parts that the replacement computes itself."""
        return [*self.bypassed(module), *(part for pair, _ in self.pairs(module) for part in pair.modules())]


# Operations without kernels of their own, which are faster by the way they are computed.
_COMPOSED = ("modulated_conv2d", "conv2d")


def why_no_kernel(known: Known, module: nn.Module) -> str | None:
    """Why nothing is gained with the backends of this machine, or None."""
    tensor = next((t for t in (*module.parameters(), *module.buffers())), None)
    if tensor is None or tensor.device.type == "meta":
        return None
    operations = known.operations(module)
    for name in operations:
        operation = {"adain": "instance_norm"}.get(name, name)
        if name in _COMPOSED or backends.choose(operation, tensor.device) != "torch":
            return None
    return f"nothing is gained: {' and '.join(operations)} would be plain PyTorch here, for want of a kernel"


def named(*names: str) -> Callable[[nn.Module], bool]:
    """Layers whose class, or one that it is derived from, has a name; PyTorch's and fastgan's own are others."""
    ours = ("torch.nn.", "fastgan.")
    return lambda module: any(k.__name__ in names and not k.__module__.startswith(ours) for k in type(module).__mro__)


def of_class(kind: type) -> Callable[[nn.Module], bool]:
    """Layers with a class of PyTorch that have not overridden its forward."""
    return lambda module: isinstance(module, kind) and type(module).forward is kind.forward


def has_numbers(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), int | float) for name in names)
