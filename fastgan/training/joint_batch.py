"""Two batches through a discriminator in one pass, with the logits that each would get alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastgan.layers import BatchNormAct, MinibatchStddev


class JointBatch:
    """Joins two batches for one discriminator, and splits its results.

    Minibatch stddev compares samples that lie a fixed distance apart (see `minibatch_stddev`). Seen as rows of that
    length, a batch's groups are columns, so the two batches are joined side by side. `BatchNormAct` is told that there
    are two batches; PyTorch's batch norm cannot be, and its statistics would mix them.
    """

    def __init__(self, discriminator: nn.Module):
        modules = list(discriminator.modules())
        groups = [module.group_size for module in modules if isinstance(module, MinibatchStddev)]
        self._rows = max([size for size in groups if size is not None], default=1)
        self._norms = [module for module in modules if isinstance(module, BatchNormAct)]
        has_torch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
        whole_batch_group = None in groups
        self._impossible = has_torch_norm or whole_batch_group or bool(self._norms and self._rows > 1)

    def fits(self, batch: Tensor, penalized: bool = False) -> bool:
        """Whether a batch can be joined with another of its size.

        penalized: whether a gradient penalty is taken, for which batch norm must see one batch at a time.
        """
        return not self._impossible and len(batch) % self._rows == 0 and not (penalized and self._norms)

    @contextlib.contextmanager
    def separate_statistics(self) -> Iterator[None]:
        """Within the block batch norm takes its input for two batches, one after the other."""
        for norm in self._norms:
            norm.batches = 2
        try:
            yield
        finally:
            for norm in self._norms:
                norm.batches = 1

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, ...] twice to [2N, ...]; images [N, C, H, W] come out in channels_last."""
        if first.ndim == 4:
            return self._join(first.movedim(1, 3), second.movedim(1, 3)).movedim(3, 1)
        return self._join(first, second)

    def _join(self, *batches: Tensor) -> Tensor:
        return torch.cat([batch.unflatten(0, (self._rows, -1)) for batch in batches], 1).flatten(0, 1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """[2N, ...] to [N, ...] twice: the inverse of `join`."""
        first, second = joined.unflatten(0, (self._rows, -1)).chunk(2, 1)
        return first.flatten(0, 1), second.flatten(0, 1)
