"""torch.func and forward-mode AD: which calls take the plain form of an operation.

torch.func (grad, vmap, jvp and what is made of them) and dual tensors ask every operation for a rule of its own.
PyTorch's operations have one. A custom Function has none, and a kernel would read the numbers of a dual tensor and drop
its tangent. So these calls take the plain form, which is made of PyTorch's operations: every transform works, at the
speed and with the memory of plain PyTorch.
"""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

try:
    from torch._C import _are_functorch_transforms_active as transforms_active
    from torch._C._functorch import is_legacy_batchedtensor
except ImportError:  # a release of torch that names them otherwise: its Functions and kernels refuse by themselves

    def transforms_active() -> bool:
        return False

    def is_legacy_batchedtensor(tensor: Tensor) -> bool:
        return False


__all__ = ["backward_takes_plain_form", "is_batch_of_gradients", "takes_plain_form", "transforms_active"]


def takes_plain_form(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors is within torch.func, or one of them has a tangent of forward-mode AD."""
    if transforms_active():
        return True
    if forward_ad._current_level < 0:  # no tensor has a tangent outside of `dual_level`
        return False
    return any([x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors])


def backward_takes_plain_form(grads: Iterable[Tensor | None], kept: Iterable[Tensor | None] = ()) -> bool:
    """The same of a backward pass, by the gradients that come in and the tensors that were kept."""
    if takes_plain_form((*grads, *kept)):
        return True
    return not is_compiling() and any([g is not None and is_legacy_batchedtensor(g) for g in grads])


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether it is one of `autograd.grad(..., is_grads_batched=True)`, which has a vmap of its own."""
    return not is_compiling() and is_legacy_batchedtensor(grad)
