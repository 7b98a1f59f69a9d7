"""Gradient checkpointing: only the inputs of blocks are saved, and backward recomputes their activations.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgan.effective import shared_weights, with_shared_weights
from fastgan.ops.recordable import splits_again


class GradientCheckpointing(nn.Module):
    """Base class of networks that run their blocks by `block`.

    Attributes:
        gradient_checkpointing: whether backward recomputes the blocks, which costs up to another forward pass. The RNG
            states are restored for it. First and second derivatives are the same. Not part of the state dict.
    """

    gradient_checkpointing = False

    def block(self, function: Callable, x: Tensor, *others: Any) -> Any:
        """`function(x, *others)`, checkpointed if enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            function = splits_again(function)  # backward calls it in another context
            if shared := shared_weights():
                function = with_shared_weights(shared, function)
            return checkpoint(function, x, *others, use_reentrant=False)
        return function(x, *others)


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Turns gradient checkpointing on in all parts of a network. Raises ValueError if it has no blocks."""
    parts = [module for module in network.modules() if isinstance(module, GradientCheckpointing)]
    if not parts:
        raise ValueError(f"{type(network).__module__}.{type(network).__name__} is not made of blocks")
    for part in parts:
        part.gradient_checkpointing = True
