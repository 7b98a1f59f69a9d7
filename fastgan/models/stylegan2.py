"""StyleGAN2: weight demodulation, skip generator, residual discriminator (Karras et al. 2020, arXiv 1912.04958).

Both networks have the three architectures that section 4.1 compares: "skip", "resnet" and "orig".

With `pixel_shuffle`, which the paper does not have, both networks work at half the resolution: 2x2 pixels of an image
are one place with four times the channels (Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an
Efficient Sub-Pixel Convolutional Neural Network", arXiv 1609.05158).
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import (
    Blur2d,
    Downsample2d,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStddev,
    ModulatedConv2d,
    NoiseBiasLeakyReLU,
    Upsample2d,
)
from fastgan.models.blocks import finished_image
from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.models.labels import projection_logits
from fastgan.models.modulation import Modulation, modulate
from fastgan.models.style_based import MappingNetwork, StyleBasedGenerator, dense_layers, fixed_noise, noise_modes
from fastgan.ops import noise_bias_act, noise_bias_act_to_rgb
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

ANY_SHAPE = True  # images need not be square
PIXELS = 4  # of an image at each place of feature maps, with `pixel_shuffle`
SQRT_HALF = math.sqrt(0.5)  # scales both branches of a residual block, so that their sum keeps the variance


def _scaled(clamp: float | None, gain: float) -> float | None:
    """The limit of activations after a gain."""
    return None if clamp is None else clamp * gain


def resolution_independent_names(config) -> tuple[dict[str, str], dict[str, str]]:
    """See `fastgan.models.resolution_independent_names`."""
    top, levels = config.resolutions[-1], range(len(config.resolutions) - 1)
    generator = {} if config.generator_architecture == "skip" else {"synthesis.to_rgb.0": f"synthesis.to_rgb.{top}"}
    discriminator = {f"blocks.{i}": f"blocks.{top >> i}" for i in levels}
    smaller = {f"from_smaller.{i}": f"from_rgb.{top >> i + 1}" for i in levels}
    return generator, discriminator | smaller | {"from_rgb": f"from_rgb.{top}"}


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution with demodulation, noise, bias, leaky ReLU (figure 2d).

    `gain` scales the output, in addition to the activation's sqrt(2).
    """

    noise_const: Tensor | None

    def __init__(self, config, in_channels: int, out_channels: int, resolution: int, up: int = 1, gain: float = 1.0):
        super().__init__()
        self.affine = EqualizedLinear(config.style_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, up=up, resample_filter=config.resample_filter)
        clamp = _scaled(config.conv_clamp, gain)
        self.epilogue = NoiseBiasLeakyReLU(out_channels, noise=config.noise, gain=math.sqrt(2) * gain, clamp=clamp)
        self.size = config.feature_size(resolution)
        self.register_buffer("noise_const", torch.randn(1, 1, *self.size) if config.noise else None)

    def forward(self, x: Tensor, modulation: Modulation, noise: str, *, scaled: bool = False, **readers: Tensor | None):
        """See `ModulatedConv2d.forward`; `readers` may hold `post` and `to_rgb`."""
        fixed = None if self.noise_const is None else fixed_noise(noise, self.noise_const)
        epilogue = self.epilogue.arguments((x.shape[0], 1, *self.size), x.device, fixed)
        return self.conv(x, **modulation._asdict(), scaled=scaled, **readers, **epilogue)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image, without demodulation.

    shuffle: makes an image of twice the height and width, 2x2 pixels from each place.
    """

    def __init__(self, config, in_channels: int, *, shuffle: bool = False):
        super().__init__()
        channels = config.channels * PIXELS if shuffle else config.channels
        self.affine = EqualizedLinear(config.style_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.clamp = config.conv_clamp
        self.shuffle = PixelShuffle() if shuffle else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.finished(noise_bias_act_to_rgb(x, self.weights(style), act="linear")[1])

    def weights(self, style: Tensor) -> Tensor:
        """The weight of each sample, [N, channels of the image, C]."""
        # By this view the gradient gets the strides of a weight in channels_last, which multi-tensor Adam wants alike.
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return (style / math.sqrt(style.shape[1]))[:, None] * weight

    def finished(self, rgb: Tensor) -> Tensor:
        """The image from the product of weights and activations: adds the bias."""
        rgb = noise_bias_act(rgb, bias=self.bias, act="linear", clamp=self.clamp)
        return rgb if self.shuffle is None else self.shuffle(rgb)


class PixelShuffle(nn.Module):
    """[N, 4 C, H, W] to an image [N, C, 2 H, 2 W] in fp32, smoothed by the filter (1, 2, 1) / 4.

    Each of a place's four pixels has weights of its own, whose differences make a grid with a period of two pixels. The
    filter removes just that.
    """

    def __init__(self):
        super().__init__()
        self.blur = Blur2d((1.0, 2.0, 1.0), padding=(0, 0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            image = F.pixel_shuffle(to_arithmetic(x), 2)
            return self.blur(F.pad(image, (1, 1, 1, 1), mode="replicate"))


class UpsampleSkip(nn.Sequential):
    """Skip connection of a residual block in the generator: 1x1 convolution, then upsampling, which is cheaper."""

    def __init__(self, config, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, out_channels, 1, bias=False)
        self.conv.weight_gain *= SQRT_HALF  # scales the small weight, not the large activation
        self.up = Upsample2d(config.resample_filter)


class Synthesis(GradientCheckpointing):
    """ws [N, num_ws, w_dim] to an image [N, channels, H, W] in fp32 (figure 7).

    "skip" has a ToRGB at each resolution and sums the upsampled images. "resnet" and "orig" have one at the end.
    """

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in config.resolutions]
        residual = config.generator_architecture == "resnet"
        self.num_ws = 2 * len(channels)
        self.const = nn.Parameter(torch.randn(channels[0], *config.base_size))
        self.first = SynthesisLayer(config, channels[0], channels[0], 4)
        self.up = nn.ModuleList()
        self.same = nn.ModuleList()
        self.skip = nn.ModuleList()
        for r, before, after in zip(config.resolutions[1:], channels, channels[1:], strict=False):
            self.up.append(SynthesisLayer(config, before, after, r, up=2))
            self.same.append(SynthesisLayer(config, after, after, r, gain=SQRT_HALF if residual else 1.0))
            if residual:
                self.skip.append(UpsampleSkip(config, before, after))
        self.sums_images = config.generator_architecture == "skip"
        self.to_rgb = nn.ModuleList(ToRGB(config, c) for c in (channels[:-1] if self.sums_images else []))
        self.to_rgb.append(ToRGB(config, channels[-1], shuffle=config.pixel_shuffle))
        self.upsample = Upsample2d(config.resample_filter)
        self.tanh = config.tanh

    @property
    def layers(self) -> list[SynthesisLayer]:
        """The layers in their order; the i-th reads `ws[:, i]`."""
        return [self.first, *itertools.chain.from_iterable(zip(self.up, self.same, strict=True))]  # type: ignore[list-item]

    def forward(self, ws: Tensor, noise: str | Sequence[str] = "random") -> Tensor:
        """Images [N, C, R, R] from ws; see `StyleBasedGenerator.synthesize`."""
        noise = noise_modes(noise, self.num_ws - 1)
        layers = self.layers
        reads = slice(1, None, 2) if self.sums_images else slice(-1, None)
        modulations, styles = modulate(layers, self.to_rgb, ws, reads)
        # ToRGB and the next layer read the end of a level. The layer before them applies the styles of both.
        readers: list[dict[str, Tensor]] = [{} for _ in range(len(self.up) + 1)]
        if self.sums_images:
            for level, (layer, style) in enumerate(zip(self.to_rgb, styles, strict=True)):
                readers[level]["to_rgb"] = layer.weights(style)
            for level, following in enumerate(modulations[1::2]):
                readers[level]["post"] = following.style
        x = channels_last(self.const.expand(ws.shape[0], -1, -1, -1))
        x = self.first(x, modulations[0], noise[0], **readers[0])
        image = None
        if self.sums_images:
            x, rgb = x
            image = self.to_rgb[0].finished(rgb)
        for i in range(len(self.up)):
            two = slice(2 * i + 1, 2 * i + 3)
            x, image = self.block(self._doubled, x, image, i, modulations[two], readers[i + 1], noise[two])
        return finished_image(image if image is not None else self.to_rgb[0](x, styles[0]), self.tanh)

    def _doubled(
        self,
        x: Tensor,
        image: Tensor | None,
        i: int,
        modulations: Sequence[Modulation],
        readers: dict[str, Tensor],
        noise: Sequence[str],
    ):
        """Feature maps and image at the next resolution."""
        up, same = self.up[i], self.same[i]
        # Only `same` reads y, so its style is applied here.
        y = up(x, modulations[0], noise[0], scaled=image is not None, post=modulations[1].style)
        y = same(y, modulations[1], noise[1], scaled=True, **readers)
        if image is not None:
            y, rgb = y
            rgb = self.to_rgb[i + 1].finished(rgb)
            while image.shape[2:] != rgb.shape[2:]:
                image = self._upsampled(image)
            return y, image + rgb
        return (y + self.skip[i](x) if self.skip else y), None

    def _upsampled(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):  # 16-bit rounding errors would add up
            return self.upsample(to_arithmetic(image))


class Generator(StyleBasedGenerator):
    """z [N, z_dim], label [N] to an image [N, channels, H, W], nominally in [-1, 1], fp32."""

    def __init__(self, config):
        super().__init__()
        self.z_dim, self.pixel_shuffle = config.z_dim, config.pixel_shuffle
        self.mapping = MappingNetwork(config)
        self.synthesis = Synthesis(config)
        self.num_ws = self.synthesis.num_ws
        self.noise_resolutions = [4, *(r for r in config.resolutions[1:] for _ in range(2))]
        if not config.noise:
            self.supports = StyleBasedGenerator.supports - {"noise"}

    @property
    def noisy_layers(self) -> list[SynthesisLayer]:
        return self.synthesis.layers if "noise" in self.supports else []

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        return self.synthesis(ws, noise)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions, the second one downsampling by 2 ("skip" and "orig")."""

    def __init__(self, config, in_channels: int, out_channels: int):
        super().__init__()
        clamp, down = config.conv_clamp, {"down": 2, "resample_filter": config.resample_filter}
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu", clamp=clamp)
        self.down = EqualizedConv2d(in_channels, out_channels, 3, act="lrelu", clamp=clamp, **down)

    def forward(self, x: Tensor) -> Tensor:
        return self.down.after(self.conv, x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second one downsampling by 2, beside a downsampling 1x1 convolution ("resnet")."""

    def __init__(self, config, in_channels: int, out_channels: int):
        super().__init__()
        clamp, down = config.conv_clamp, {"down": 2, "resample_filter": config.resample_filter}
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu", clamp=clamp)
        clamp = _scaled(clamp, SQRT_HALF)  # limits the same values as before scaling by sqrt(1/2)
        self.down = EqualizedConv2d(in_channels, out_channels, 3, act="lrelu", gain=1.0, clamp=clamp, **down)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, **down)
        self.skip.weight_gain *= SQRT_HALF

    def forward(self, x: Tensor) -> Tensor:
        x, skip = self.skip.beside(x)
        return self.down.after(self.conv, x, residual=skip)  # lrelu's sqrt(2) times sqrt(1/2) is gain 1


class Discriminator(GradientCheckpointing):
    """image [N, channels, H, W], label [N] to logits [N] in fp32; labels by projection (Miyato & Koyama 2018).

    As in StyleGAN2-ADA, `discriminator_mapping_layers` may follow the embedding of the label.
    """

    def __init__(self, config):
        super().__init__()
        channels = [config.discriminator_features(r) for r in reversed(config.resolutions)]
        last = channels[-1]
        clamp, maps = config.conv_clamp, config.stddev_features
        self.pixel_shuffle = config.pixel_shuffle
        of_image = config.channels * (PIXELS if config.pixel_shuffle else 1)
        self.from_rgb = EqualizedConv2d(of_image, channels[0], 1, act="lrelu", clamp=clamp)
        block = ResidualBlock if config.discriminator_architecture == "resnet" else PlainBlock
        self.blocks = nn.ModuleList(block(config, i, o) for i, o in itertools.pairwise(channels))
        self.from_smaller = nn.ModuleList()  # "skip": image to feature maps at each lower resolution
        if config.discriminator_architecture == "skip":
            clamps = [clamp] * (len(channels) - 2) + [None]  # the official code has none at 4x4
            for width, limit in zip(channels[1:], clamps, strict=True):
                self.from_smaller.append(EqualizedConv2d(of_image, width, 1, act="lrelu", clamp=limit))
            self.downsample = Downsample2d(config.resample_filter)
        self.stddev = MinibatchStddev(config.stddev_group, maps) if maps else nn.Identity()
        self.conv = EqualizedConv2d(last + maps, last, 3, act="lrelu", clamp=clamp)
        self.dense = EqualizedLinear(last * math.prod(config.base_size), last, act="lrelu")
        self.embed = EqualizedLinear(config.num_classes, last) if config.num_classes else None
        depth = config.discriminator_mapping_layers if config.num_classes else 0
        self.directions = dense_layers([last] * (depth + 1), config.projection_lr)
        self.out = EqualizedLinear(last, last if config.num_classes else 1)

    def layers_from_image(self) -> list[nn.Module]:
        """Counted as by the official code's `--freezed`."""
        layers = [self.from_rgb]
        for i, block in enumerate(self.blocks):
            layers += block.children()
            layers += (
                self.from_smaller[i : i + 1] if i + 1 < len(self.blocks) else []
            )  # the one at 4x4 belongs to the end
        return layers

    @shares_kernels
    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        image = channels_last(F.pixel_unshuffle(image, 2) if self.pixel_shuffle else image)
        x = self.from_rgb(image)
        for i, block in enumerate(self.blocks):
            x = self.block(block, x)
            if self.from_smaller:
                image = self.downsample(image)
                x = x + self.from_smaller[i](image)
        x = self.out(self.dense(self.conv(self.stddev(x)).flatten(1)))
        return projection_logits(x, self.embed, label, self.directions)
