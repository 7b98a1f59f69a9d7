"""Adam whose beta2 may be a tensor on the device, so that it can change under a captured CUDA graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.training.guard import zero_gradients_if


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` (Kingma & Ba 2015) that also takes beta2 from the device; torch's fused form takes only the
    learning rate from there.

    If `group["betas"][1]` is a 0-dim tensor, preferably fp64, the step is a series of multi-tensor operations that read
    it on the device, with no kernel for a single parameter. The optimizer state is the same in both forms.

    Attributes:
        found_inf: 0-dim fp32, or None. If it is 1, a step changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._sizes: dict[tuple[int, ...], Tensor] = {}  # a copy on the device, which a graph cannot make

    @torch.no_grad()
    def step(self, closure=None) -> None:
        if all(isinstance(group["betas"][1], float) for group in self.param_groups):
            super().step(closure)
            return
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        counts, means, squares = zip(*map(self._moments, parameters), strict=True)
        beta1, beta2 = group["betas"]
        # 1, or 0 to skip the step: all changes are multiplied by it, so no NaN may be among them.
        applied = torch.ones_like(counts[0]) if self.found_inf is None else 1 - self.found_inf
        if self.found_inf is not None:
            zero_gradients_if(self.found_inf, gradients)
        dtype = squares[0].dtype

        torch._foreach_add_(counts, [applied] * len(counts))
        changes = torch._foreach_sub(gradients, means)
        torch._foreach_mul_(changes, ((1 - beta1) * applied).to(dtype))
        torch._foreach_add_(means, changes)
        torch._foreach_mul_(squares, (1 - (1 - beta2) * applied).to(dtype))
        shares = torch._foreach_mul(gradients, ((1 - beta2) * applied).to(dtype))
        torch._foreach_addcmul_(squares, shares, gradients)

        # p -= lr / (1 - beta1^t) * mean / (sqrt(square / (1 - beta2^t)) + eps). Each parameter has its own t, as
        # levels of a growing network start later. In fp64: 1 - beta2^t is small at first.
        t = torch.stack(counts).double().clamp_min(1)
        rates = -group["lr"] * applied / (1 - beta1**t)
        roots = (1 - beta2.double() ** t).sqrt()
        # One buffer for all parameters: multi-tensor operations take one number for all tensors, not one for each.
        root, rate = self._for_each_element(squares, roots, rates)
        denominators = torch.empty_like(root)
        views = _views(denominators, squares)
        torch._foreach_copy_(views, squares)
        denominators.sqrt_().div_(root).add_(group["eps"]).div_(rate)
        torch._foreach_addcdiv_(parameters, means, views)

    def _moments(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step count, exp_avg and exp_avg_sq of a parameter, as in torch's fused Adam."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["step"], state["exp_avg"], state["exp_avg_sq"]

    def _for_each_element(self, tensors: Sequence[Tensor], *numbers: Tensor) -> Tensor:
        """Numbers [len(tensors)] repeated for each element of each tensor, padded as `_views` are."""
        sizes = tuple(map(_padded, tensors))
        if sizes not in self._sizes:
            self._sizes[sizes] = torch.tensor(sizes, device=tensors[0].device)
        rows = torch.stack(numbers).to(tensors[0].dtype)
        return rows.repeat_interleave(self._sizes[sizes], dim=1, output_size=sum(sizes))


def _padded(tensor: Tensor) -> int:
    """The number of elements, so that the next tensor begins at 16 bytes: vector loads need that."""
    return -(-tensor.numel() // 4) * 4


def _views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of consecutive parts of a buffer, with the shapes and strides of dense tensors."""
    starts = itertools.accumulate(map(_padded, tensors), initial=0)
    return [buffer.as_strided(each.shape, each.stride(), start) for each, start in zip(tensors, starts, strict=False)]
