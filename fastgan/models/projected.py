"""The projected discriminator, for generators of any family (Sauer et al. 2021, "Projected GANs Converge Faster", arXiv
2111.01007).

It judges images by feature maps of a frozen pretrained network (EfficientNet-Lite0), mixed by fixed random
convolutions. A small discriminator for each of four scales is all that learns. Widths and depths are those of the
authors' code for StyleGAN2, whose small discriminators have separable convolutions.

Differences:

- Upsampling and the random 1x1 convolution after it are exchanged, which changes no value and costs a quarter.
- Images below `projected_size` are enlarged to it, not to 224 pixels; small sizes are for CPUs.
- The power iteration of the spectral norms is done once a step, not in each pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import Conv2d
from fastgan.models.blocks import Block
from fastgan.models.efficientnet import EfficientNetLite
from fastgan.models.labels import embed_label
from fastgan.models.spectral_norm import spectral
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

NETWORK = "lite0"
STAGES = (1, 2, 4, 6)  # those of the network whose feature maps are used, of strides 4, 8, 16 and 32
CHANNEL_MIX = (64, 128, 256, 512)  # channels of each scale after mixing of channels
SCALE_MIX = (64, 64, 128, 256)  # after mixing of scales, at strides 2, 4, 8 and 16
WIDTHS = ((64, 64, 128, 256, 512), (64, 128, 256, 512), (128, 256, 512), (256, 512))  # of the small discriminators
LAST = 4  # side of their last convolution
LABEL_WIDTHS = 128, 64  # of a label's embedding and of its projection
MULTIPLE = 32  # of the sides of enlarged images: each stride then halves whole pixels


class FixedConv2d(nn.Module):
    """1x1 convolution without bias, with random weights from N(0, 1 / inputs) that are saved but not trained."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.randn(outputs, inputs, 1, 1) / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class RandomMixing(nn.Module):
    """Fixed random mixing of channels, then of scales from the coarsest on (section 3.2 and figure 2).

    channels: of the feature maps, finest first.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        self.channels = nn.ModuleList(map(FixedConv2d, channels, CHANNEL_MIX))
        self.scales = nn.ModuleList(map(FixedConv2d, CHANNEL_MIX, SCALE_MIX))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature maps, finest first, to as many of twice the height and width."""
        mixed: list[Tensor] = []
        for x, channels, scales in list(zip(maps, self.channels, self.scales, strict=True))[::-1]:
            x = channels(x)
            x = scales(x + mixed[-1] if mixed else x)
            mixed.append(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
        return mixed[::-1]


class SmallDiscriminator(nn.Module):
    """Feature maps [N, widths[0], H, W] and label [N] to logits [N, P], of P places.

    A block from each width to the next: a separable convolution with batch norm and leaky ReLU, then the mean of 2x2
    pixels. All convolutions have spectral normalization. Labels by projection.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, norm: bool):
        super().__init__()
        self.blocks = nn.Sequential()
        for i, o in itertools.pairwise(widths):
            depthwise = spectral(Conv2d(i, i, 3, padding=1, groups=i, bias=False))
            pointwise = Block(spectral(Conv2d(i, o, 1, bias=False)), o, norm=norm, act="lrelu")
            self.blocks.append(nn.Sequential(depthwise, pointwise, nn.AvgPool2d(2)))
        wide, narrow = LABEL_WIDTHS
        self.out = spectral(Conv2d(widths[-1], narrow if num_classes else 1, LAST, bias=False))
        self.embed = nn.Embedding(num_classes, wide) if num_classes else None
        self.project = nn.Linear(wide, narrow) if num_classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = to_arithmetic(self.out(self.blocks(x)))
        if self.embed is not None and self.project is not None:
            direction = F.leaky_relu(to_arithmetic(self.project(embed_label(self.embed, label))), 0.2)
            x = (x * direction[:, :, None, None]).sum(1) / math.sqrt(x.shape[1])
        return x.flatten(1)


class ProjectedDiscriminator(nn.Module):
    """image [N, channels, H, W], label [N] to logits [N, P] in fp32, of several places at each of four scales.

    Call `load_pretrained` first. Grey is repeated to RGB. Transparent images, premultiplied, are seen on a random grey
    each; in evaluation on medium grey.
    """

    supports: frozenset[str] = frozenset()

    def __init__(self, config):
        super().__init__()
        self.network = EfficientNetLite(NETWORK)
        self.mixing = RandomMixing([self.network.channels[stage] for stage in STAGES])
        self.size = enlarged_size(*config.feature_size(config.resolution), config.projected_size)
        left_out = int(min(self.size) < LAST * MULTIPLE)  # of the blocks, where maps are too small for all
        self.heads = nn.ModuleList(
            SmallDiscriminator(widths[: len(widths) - left_out], config.num_classes, config.discriminator_norm)
            for widths in WIDTHS
        )

    def load_pretrained(self) -> None:
        """Loads the weights of the frozen network. Raises UserError if their package is missing."""
        self.network.load_pretrained()

    def layers_from_image(self) -> list[nn.Module]:
        """None: the first layers are frozen anyway."""
        return []

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = channels_last(self._as_rgb(image))
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        maps = self.network.pyramid(x)
        mixed = self.mixing([maps[stage] for stage in STAGES])
        return torch.cat([head(x, label) for head, x in zip(self.heads, mixed, strict=True)], 1)

    def _as_rgb(self, image: Tensor) -> Tensor:
        if image.shape[1] == 4:
            shape = len(image), 1, 1, 1
            grey = torch.rand(shape, device=image.device) if self.training else image.new_full(shape, 0.5)
            return image[:, :3] + grey * (1 - image[:, 3:])
        return image.expand(-1, 3, -1, -1)


def enlarged_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Size at which images are seen: of a shorter side of `shorter` or more, rounded up to multiples of MULTIPLE."""
    least = min(height, width)
    rows, columns = (-(-side * max(least, shorter) // (least * MULTIPLE)) for side in (height, width))
    return rows * MULTIPLE, columns * MULTIPLE
