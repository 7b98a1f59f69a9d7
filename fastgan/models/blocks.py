"""What the older families are made of: layers with batch norm or bias and activation behind them, and labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import BatchNormAct, UpsampleConv2d
from fastgan.ops import noise_bias_act


class Block(nn.Module):
    """A layer, then batch norm or a bias, then an activation; what stands behind the layer is one operation.

    Args:
        layer: linear or convolution, built without bias.
        channels: of its result.
        norm: batch norm instead of a bias.
        act: see `noise_bias_act`, or with norm `batch_norm_act`; the slope of lrelu is 0.2.
    """

    def __init__(self, layer: nn.Module, channels: int, *, norm: bool, act: str):
        super().__init__()
        self.layer = layer
        self.norm = BatchNormAct(channels, act=act) if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(channels))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return noise_bias_act(x, bias=self.bias, act=self.act) if self.norm is None else self.norm(x)

    def extra_repr(self) -> str:
        return f"act={self.act}"


class ProjectAndReshape(nn.Module):
    """A linear layer without bias whose result is seen as feature maps: [N, inputs] to [N, channels, H, W].

    In channels_last, as the convolutions after it like it.
    """

    def __init__(self, inputs: int, channels: int, size: tuple[int, int]):
        super().__init__()
        self.linear = nn.Linear(inputs, math.prod(size) * channels, bias=False)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return as_feature_maps(self.linear(x), self.size)


def as_feature_maps(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, H * W * C] seen as [N, C, H, W] in channels_last; size: H and W."""
    return x.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)


def linear_act(inputs: int, outputs: int, act: str) -> Block:
    """A linear layer with bias and activation, of weights that keep the variance (He et al. 2015, equation 14)."""
    block = Block(nn.Linear(inputs, outputs, bias=False), outputs, norm=False, act=act)
    nn.init.normal_(block.layer.weight, std=math.sqrt((2 if act in ("relu", "lrelu") else 1) / inputs))
    return block


def dcgan_init(module: nn.Module) -> None:
    """DCGAN's initial values, for `Module.apply`: weights from N(0, 0.02), factors of batch norm from N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding | UpsampleConv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, BatchNormAct):
        nn.init.normal_(module.weight, 1.0, 0.02)


def embed_label(embed: nn.Embedding, label: Tensor | None) -> Tensor:
    """The embedding [N, width] of labels [N]. Raises ValueError if there are none."""
    return embed(_given(label, embed.num_embeddings))


def one_hot(label: Tensor | None, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Labels [N] as vectors [N, num_classes], 1 at the label and 0 elsewhere. Raises ValueError if there are none."""
    return F.one_hot(_given(label, num_classes), num_classes).to(dtype)


def _given(label: Tensor | None, num_classes: int) -> Tensor:
    if label is None:
        raise ValueError(f"this network has {num_classes} classes: it needs a label [N] for every sample")
    return label
