"""Building blocks: a layer with batch norm or bias and activation, initial weights, and the end of a generator."""

import math

import torch
from torch import Tensor, nn

from fastgan.layers import BatchNormAct, UpsampleConv2d
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic


class Block(nn.Module):
    """A layer, batch norm or a bias, and an activation. All but the layer is one fused operation.

    Args:
        layer: linear or convolution, without bias.
        channels: channels of its output.
        norm: batch norm instead of a bias.
        act: see `noise_bias_act`, or with norm `batch_norm_act`; lrelu has slope 0.2.
        gain: factor after the activation.
        bias: whether there is a bias in place of batch norm.
    """

    def __init__(self, layer: nn.Module, channels: int, *, norm: bool, act: str, gain: float = 1.0, bias: bool = True):
        super().__init__()
        self.layer = layer
        self.norm = BatchNormAct(channels, act=act, gain=gain) if norm else None
        self.bias = nn.Parameter(torch.zeros(channels)) if bias and not norm else None
        self.act, self.gain = act, gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.norm is not None:
            return self.norm(x)
        return noise_bias_act(x, bias=self.bias, act=self.act, gain=self.gain)

    def extra_repr(self) -> str:
        return f"act={self.act}"


class ProjectAndReshape(nn.Module):
    """DCGAN's first layer: linear without bias, [N, inputs] to feature maps [N, channels, H, W] in channels_last."""

    def __init__(self, inputs: int, channels: int, size: tuple[int, int]):
        super().__init__()
        self.linear = nn.Linear(inputs, math.prod(size) * channels, bias=False)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return as_feature_maps(self.linear(x), self.size)


def as_feature_maps(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A view of [N, H * W * C] as [N, C, H, W] in channels_last; `size` is (H, W)."""
    return x.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)


def finished_image(image: Tensor, tanh: bool) -> Tensor:
    """A generator's image [N, C, H, W] in fp32 (fp64 stays), after tanh if asked for."""
    image = to_arithmetic(image)
    return image.tanh() if tanh else image


def linear_act(inputs: int, outputs: int, act: str) -> Block:
    """Linear layer with bias and activation; its initial weights keep the variance (He et al. 2015, equation 14)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    block = Block(layer, outputs, norm=False, act=act)
    nn.init.normal_(layer.weight, std=math.sqrt((2 if act in ("relu", "lrelu") else 1) / inputs))
    return block


def dcgan_init(module: nn.Module) -> None:
    """DCGAN's initial weights, for `Module.apply`: N(0, 0.02), and N(1, 0.02) for the scale of batch norm."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding | UpsampleConv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)
    elif isinstance(module, BatchNormAct):
        nn.init.normal_(module.weight, 1.0, 0.02)
