"""Spectral normalization: weights divided by their largest singular value (Miyato et al. 2018, arXiv 1802.05957).

Unlike PyTorch's, a forward pass changes nothing: the training step calls `power_iteration` once. So a pass can be
repeated with the same result, and micro-batches and processes see the same weights.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

INITIAL_ITERATIONS = 10

Layer = TypeVar("Layer", bound=nn.Module)


class SpectralNorm(nn.Module):
    """Parametrization `weight / sigma`, where sigma is the largest singular value of the weight as a matrix [O, rest].

    The estimate is u^T W v (equation 19 there) with the buffers u [O] and v [rest], which `iterate` improves.

    Args:
        weight: initial.
        transposed: whether the outputs are dimension 1, as in a transposed convolution.
        stored_transposed: whether the layer stores the weight as a transposed convolution does, with outputs last.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, transposed: bool = False, stored_transposed: bool = False):
        super().__init__()
        self.transposed, self.stored_transposed = transposed, stored_transposed
        rows, columns = self._matrix(weight).shape
        self.register_buffer("u", nn.functional.normalize(weight.new_ones(rows), dim=0))
        self.register_buffer("v", weight.new_zeros(columns))
        for _ in range(INITIAL_ITERATIONS):
            self.iterate(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of the same shape and memory format."""
        with torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(self.u, torch.mv(self._matrix(weight), self.v))
            return weight * (1 / sigma)  # a product has fewer passes in backward than a quotient

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One power iteration (algorithm 1 there), in place."""
        matrix = self._matrix(weight)
        for vector, product in ((self.v, lambda: torch.mv(matrix.t(), self.u)), (self.u, lambda: matrix.mv(self.v))):
            vector.copy_(nn.functional.normalize(product(), dim=0, eps=1e-12))

    def _matrix(self, weight: Tensor) -> Tensor:
        """[O, rest]: a view, if the weight is in channels_last, which is the order of the rest."""
        weight = weight.transpose(0, 1) if self.stored_transposed else weight
        if weight.dim() == 4:
            weight = weight.permute(0, 2, 3, 1)
        return weight.flatten(0, -2).t() if self.transposed or self.stored_transposed else weight.flatten(1)


def spectral(layer: Layer) -> Layer:
    """Divide the layer's weight by its spectral norm, from now on. Returns the layer."""
    weight = layer.get_parameter("weight")
    norm = SpectralNorm(
        weight.detach(), isinstance(layer, nn.ConvTranspose2d), getattr(layer, "reads_transposed", False)
    )
    # "unsafe" leaves out a trial run, which the meta device cannot do.
    parametrize.register_parametrization(layer, "weight", norm, unsafe=True)
    return layer


def normalized_layers(network: nn.Module) -> list[tuple[SpectralNorm, Tensor]]:
    """The spectral norms of a network, each with the weight that is trained."""
    return [
        (module[0], module.original)
        for module in network.modules()
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm)
    ]


def power_iteration(layers: Iterable[tuple[SpectralNorm, Tensor]]) -> None:
    """One power iteration of each of `normalized_layers`."""
    for norm, weight in layers:
        norm.iterate(weight)


@torch.no_grad()
def merge_spectral_norm(network: nn.Module) -> None:
    """Replace the weights of a trained network by the effective ones: drawing need not compute them again."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
