"""Activation checkpointing: networks that keep the inputs of their blocks only, and compute what is within them again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GradientCheckpointing(nn.Module):
    """Base of networks that are made of blocks.

    Attributes:
        gradient_checkpointing: whether backward recomputes the blocks instead of keeping their activations, which costs
            up to another forward pass. Random numbers are drawn again as they were. It is no part of the state
            dictionary. Gradients are the same, those of gradients included.
    """

    gradient_checkpointing = False

    def block(self, function: Callable, x: Tensor, *others: Any) -> Any:
        """`function(x, *others)`, a block of the network."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, x, *others, use_reentrant=False)
        return function(x, *others)


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """From now on `network` keeps the inputs of its blocks only. Raises ValueError if it has none."""
    parts = [module for module in network.modules() if isinstance(module, GradientCheckpointing)]
    if not parts:
        raise ValueError(f"{type(network).__module__}.{type(network).__name__} is not made of blocks")
    for part in parts:
        part.gradient_checkpointing = True
