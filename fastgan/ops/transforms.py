"""torch.func and forward-mode AD: when an operation must run its reference.

torch.func (grad, vmap, jvp and functions built on them) and dual tensors need a rule from every operation. PyTorch's
operations have one. A custom Function has none, and a kernel would read the values of a dual tensor and drop its
tangent. So these calls run the reference, which consists of PyTorch's operations: every transform works, with the speed
and memory of plain PyTorch.
"""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

try:
    from torch._C import _are_functorch_transforms_active as transforms_active
    from torch._C._functorch import is_legacy_batchedtensor
except ImportError:  # a torch release without these names: its Functions and kernels raise by themselves

    def transforms_active() -> bool:
        return False

    def is_legacy_batchedtensor(tensor: Tensor) -> bool:
        return False


__all__ = ["backward_must_use_reference", "is_batch_of_gradients", "must_use_reference", "transforms_active"]


def must_use_reference(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors is inside torch.func, or one of them has a tangent of forward-mode AD."""
    if transforms_active():
        return True
    if forward_ad._current_level < 0:  # outside of `dual_level` no tensor has a tangent
        return False
    return any([x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors])


def backward_must_use_reference(grads: Iterable[Tensor | None], saved: Iterable[Tensor | None] = ()) -> bool:
    """The same for a backward pass, from the incoming gradients and the saved tensors."""
    if must_use_reference((*grads, *saved)):
        return True
    return not is_compiling() and any([g is not None and is_legacy_batchedtensor(g) for g in grads])


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether it comes from `autograd.grad(..., is_grads_batched=True)`, which has a vmap of its own."""
    return not is_compiling() and is_legacy_batchedtensor(grad)
