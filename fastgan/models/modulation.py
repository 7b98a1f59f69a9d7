"""Styles, converted weights and demodulation factors of all layers of StyleGAN2's synthesis network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.layers import EqualizedLinear, ModulatedConv2d
from fastgan.ops.arithmetic import compute_dtype, to_arithmetic
from fastgan.ops.modulated_conv2d import demodulations
from fastgan.ops.weights import computed_together, stacked, unpadded, with_energies


class Modulation(NamedTuple):
    """Arguments of a modulated convolution besides the activations; None: the layer computes it."""

    style: Tensor  # [N, I]
    weight: Tensor | None = None  # in the dtype of the convolution
    factor: Tensor | None = None  # [N, O], see `modulated_conv2d`


def modulate(
    layers: Sequence[Any], others: Sequence[Any], ws: Tensor, read_by_others: slice
) -> tuple[list[Modulation], list[Tensor]]:
    """Modulations of layers with an `affine` and a `conv`, and styles [N, I] of others with an `affine` alone.

    On a GPU all layers share some forty kernels. One by one they take two hundred, and more for backward.

    Args:
        ws: [N, num_ws, w_dim]. Layer i reads `ws[:, i]`.
        read_by_others: which of them the others read.
    """
    affines: list[EqualizedLinear] = [layer.affine for layer in (*layers, *others)]
    convs: list[ModulatedConv2d] = [layer.conv for layer in layers]
    count = len(layers)
    if not _can_share(affines, convs):
        every = ws.unbind(1)
        styles = [affine(w) for affine, w in zip(affines, (*every[:count], *every[read_by_others]), strict=True)]
        return [Modulation(style) for style in styles[:count]], styles[count:]
    weights = [affine.weight for affine in affines]
    dtype = compute_dtype(weights[0])
    w = torch.cat([ws[:, :count], ws[:, read_by_others]], 1).transpose(0, 1) * affines[0].weight_gain
    biases = stacked([affine.bias for affine in affines if affine.bias is not None], dtype)[:, None]
    stack = to_arithmetic(torch.baddbmm(biases, w, stacked(weights, dtype).transpose(1, 2)))  # [layers, N, largest I]
    conv_weights, energies = with_energies([conv.weight for conv in convs], dtype)
    of_convs = stack[:count, :, : energies.shape[2]]
    factors = demodulations(energies, of_convs, [conv.weight_gain for conv in convs])
    styles = unpadded(stack, [len(weight) for weight in weights])
    modulations = map(Modulation, styles, conv_weights, unpadded(factors, [len(conv.weight) for conv in convs]))
    return list(modulations), styles[count:]


def _can_share(affines: Sequence[EqualizedLinear], convs: Sequence[ModulatedConv2d]) -> bool:
    """Whether sharing pays here, and the layers are alike and without hooks. Not in fp16, whose range is small."""
    return (
        computed_together([*(affine.weight for affine in affines), *(conv.weight for conv in convs)])
        and all(type(affine) is EqualizedLinear and affine.bias is not None for affine in affines)
        and all(type(conv) is ModulatedConv2d and conv.demodulate for conv in convs)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (*affines, *convs))
        and len({(affine.weight_gain, affine.weight.dtype, affine.weight.shape[1]) for affine in affines}) == 1
        and all((affine.act, affine.gain, affine.bias_gain) == ("linear", 1, 1) for affine in affines)
        and compute_dtype(affines[0].weight) != torch.float16
    )
