"""Activation checkpointing: networks that keep the inputs of their blocks only, and compute what is within them again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """Base of networks that are made of blocks.

    Attributes:
        recomputes: whether the backward pass computes again what happened within the blocks, which costs up to another
            forward pass, instead of keeping it. Random numbers are drawn again as they were. It is no part of the state
            dictionary. Gradients are the same, those of gradients included.
    """

    recomputes = False

    def block(self, function: Callable, x: Tensor, *others: Any) -> Any:
        """`function(x, *others)`, a block of the network."""
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(function, x, *others, use_reentrant=False)
        return function(x, *others)


def recompute_blocks(network: nn.Module) -> None:
    """From now on `network` keeps the inputs of its blocks only. Raises ValueError if it has none."""
    parts = [module for module in network.modules() if isinstance(module, Recomputing)]
    if not parts:
        raise ValueError(f"{type(network).__module__}.{type(network).__name__} is not made of blocks")
    for part in parts:
        part.recomputes = True
