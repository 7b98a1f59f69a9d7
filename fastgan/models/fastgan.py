"""FastGAN: skip-layer excitation and a self-supervised discriminator, for few images (Liu et al. 2021, arXiv
2101.04775). The family has the same name as this package; neither comes from the other.

Widths are those of the authors' code at `channel_base=8192, channel_max=1024`, `z_dim=256`. It differs from the paper
in that the discriminator also judges a small image, has excitations, and averages two paths in each block. All weights
have spectral normalization. Here sizes below 256 are supported as well, with shorter skips and smaller second images.

Differences:

- The reconstruction loss is the mean square error of pixels. The authors' is LPIPS on VGG features, whose weights no
  package contains.
- The quadrant to reconstruct is drawn for each image, not for each batch; a captured CUDA graph could not choose it.
- Small images and targets are means over pixels, not every n-th pixel.
- In evaluation the noise is a constant map, so that a latent always gives the same image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import BatchNormAct, Conv2d, ConvDownsample2d, UpsampleConv2d
from fastgan.models.blocks import Block, as_feature_maps, finished_image
from fastgan.models.labels import embed_label, one_hot
from fastgan.models.spectral_norm import spectral
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

ANY_SHAPE = True  # images need not be square
TRUNK_FROM = 256  # the discriminator's blocks begin here; larger images are brought down by plain convolutions
Pair = tuple[Tensor, Tensor]  # images [N, C, H, W], and the same at `small_resolution`


def small_resolution(config) -> int:
    """Resolution of the second image, which the generator draws and the discriminator judges as well."""
    return min(128, max(config.resolution // 2, 8))


def generator_width(config, resolution: int) -> int:
    """Feature maps of the generator: those at 32 are no more than those at 64."""
    return config.features(2 * resolution if resolution <= 32 else resolution)


def resolution_independent_names(config) -> tuple[dict[str, str], dict[str, str]]:
    """See `fastgan.models.resolution_independent_names`. Blocks are named by their resolution anyway."""
    top, small = config.resolution, small_resolution(config)
    discriminator = {name: f"{name}.{top}" for name in ("stem", "part_decoder", "decoder", "small_decoder")}
    return (
        {"to_image": f"to_image.{top}", "to_small": f"to_small.{small}"},
        discriminator | {"small_stem": f"small_stem.{small}"},
    )


class GatedBlock(nn.Module):
    """A convolution to twice the channels, noise, batch norm, and a gated linear unit: one half times the sigmoid of
    the other (Dauphin et al. 2017).

    Args:
        layer: the convolution, without bias.
        channels: of the output [N, channels, H, W].
        noise: size (H, W) of the noise that is added with a learned strength; None for no noise.
        norm: batch norm, or else a bias.
    """

    noise_const: Tensor | None

    def __init__(self, layer: nn.Module, channels: int, *, noise: tuple[int, int] | None = None, norm: bool = True):
        super().__init__()
        self.layer = _normalized(layer)
        self.norm = BatchNormAct(2 * channels, act="linear") if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(2 * channels))
        self.strength = None if noise is None else nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", None if noise is None else torch.randn(1, 1, *noise))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.strength is not None or self.bias is not None:
            x = noise_bias_act(x, noise=self._noise(x), strength=self.strength, bias=self.bias, act="linear")
        value, gate = (x if self.norm is None else self.norm(x)).chunk(2, 1)
        return value * gate.sigmoid()

    def _noise(self, x: Tensor) -> Tensor | None:
        if self.noise_const is None or not self.training:
            return self.noise_const
        return torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)


class SkipExcitation(nn.Module):
    """Skip-layer excitation: features of low resolution scale the channels of high ones (section 3.1, equation 1).

    Args:
        low, high: channels.
        size: of the map (H, W) that the low features are averaged to; a convolution reduces it to one position.
        pool: factor of that averaging.
    """

    def __init__(self, low: int, high: int, size: tuple[int, int], pool: int):
        super().__init__()
        self.squeeze = _normalized(Conv2d(low, high, size, bias=False))
        self.excite = _normalized(Conv2d(high, high, 1, bias=False))
        self.pool = pool

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        scale = self.excite(F.silu(self.squeeze(_mean(low, self.pool)))).sigmoid()
        return noise_bias_act(high, scale=scale.flatten(1), act="linear")


def _mean(image: Tensor, factor: int) -> Tensor:
    """The mean over squares of `factor` pixels a side."""
    return image if factor == 1 else F.avg_pool2d(image, factor)


class _FirstConv(nn.ConvTranspose2d):
    """Transposed convolution of a latent [N, inputs], as a map of one position, by a matrix product; [N, C, H, W]."""

    def forward(self, z: Tensor) -> Tensor:  # type: ignore[override]  # no output_size
        height, width = self.kernel_size
        return as_feature_maps(z @ self.weight.permute(0, 2, 3, 1).flatten(1), (height, width))


def _normalized(layer: nn.Module) -> nn.Module:
    """A layer with spectral normalization and initial weights from N(0, 0.02).

    The effective weights do not depend on that scale, but Adam's steps are relative to it.
    """
    nn.init.normal_(layer.get_parameter("weight"), 0.0, 0.02)
    return spectral(layer)


def _init_norm(module: nn.Module) -> None:
    """Initial scales of batch norm in the authors' code, for `Module.apply`."""
    if isinstance(module, BatchNormAct):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32; given `small`, to a `Pair` of images.

    A transposed convolution to the first maps, then one gated block a resolution after nearest upsampling; at every
    second resolution with noise, and followed by another. The label is concatenated to z as a one-hot vector.

    Raises ValueError if `channel_base` is too small.
    """

    supports = frozenset({"small"})

    def __init__(self, config):
        super().__init__()
        _check(config)
        self.z_dim, self.num_classes = config.z_dim, config.num_classes
        width = lambda r: generator_width(config, r)
        first, *others = config.resolutions
        inputs = config.z_dim + config.num_classes
        self.first = GatedBlock(_FirstConv(inputs, 2 * width(first), config.base_size, bias=False), width(first))
        self.blocks = nn.ModuleDict()
        for r in others:
            noise = config.feature_size(r) if r.bit_length() % 2 == 0 else None  # at 8, 32, 128, 512
            self.blocks[str(r)] = nn.Sequential(
                GatedBlock(UpsampleConv2d(width(r // 2), 2 * width(r), bias=False), width(r), noise=noise)
            )
            if noise is not None:
                conv = Conv2d(width(r), 2 * width(r), 3, padding=1, bias=False)
                self.blocks[str(r)].append(GatedBlock(conv, width(r), noise=noise))
        self.skip = min(16, config.resolution // 4)  # from a resolution to one this many times as high
        self.excitations = nn.ModuleDict()
        for r in others:
            if (low := r // self.skip) >= 4 and r <= 512:
                self.excitations[str(r)] = SkipExcitation(width(low), width(r), config.base_size, low // 4)
        self.small = small_resolution(config)
        self.to_small = _normalized(Conv2d(width(self.small), config.channels, 1, bias=False))
        self.to_image = _normalized(Conv2d(width(config.resolution), config.channels, 3, padding=1, bias=False))
        self.apply(_init_norm)

    def forward(self, z: Tensor, label: Tensor | None = None, *, small: bool = False) -> Tensor | Pair:
        if self.num_classes:
            z = torch.cat([z, one_hot(label, self.num_classes, z.dtype)], 1)
        x = self.first(z)
        features = {4: x}
        for name, block in self.blocks.items():
            x, r = block(x), int(name)
            if name in self.excitations:
                x = self.excitations[name](features[r // self.skip], x)
            if r * self.skip <= 512 or r == self.small:  # is read again
                features[r] = x
        image = finished_image(self.to_image(x), tanh=True)
        return (image, finished_image(self.to_small(features[self.small]), tanh=True)) if small else image


class DownBlock(nn.Module):
    """Downsampling by 2: the mean of two convolutions, and of an average and a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool):
        super().__init__()
        same = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        direct = ConvDownsample2d(in_channels, out_channels, 1, bias=False)
        self.main = nn.Sequential(
            _down(in_channels, out_channels, norm=norm),
            Block(_normalized(same), out_channels, norm=norm, act="lrelu", gain=0.5),
        )
        self.direct = Block(_normalized(direct), out_channels, norm=norm, act="lrelu", gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.direct(x)


def _down(in_channels: int, out_channels: int, **options) -> Block:
    """4x4 convolution of stride 2 with batch norm and leaky ReLU."""
    conv = Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
    return Block(_normalized(conv), out_channels, act="lrelu", **options)


class Decoder(nn.Sequential):
    """Features to the image that they come from, in [-1, 1]: gated blocks after nearest upsampling.

    Args:
        channels: of the features at resolution `start`.
        stop: resolution of the image.
    """

    def __init__(self, config, channels: int, start: int, stop: int):
        super().__init__()
        while start < stop:
            start *= 2
            width = max(generator_width(config, start) // 2, 1)
            conv = UpsampleConv2d(channels, 2 * width, bias=False)
            self.append(GatedBlock(conv, width, norm=config.discriminator_norm))
            channels = width
        self.append(_normalized(Conv2d(channels, config.channels, 3, padding=1, bias=False)))
        self.append(nn.Tanh())


class Discriminator(nn.Module):
    """image [N, channels, H, W] or a `Pair`, label [N] to logits [N, patches] in fp32, each of a part of the image.

    The first logits are of the image, the others of its small version: the second of a pair, or else means over pixels.
    Labels by projection on the features of the image.

    `discriminator(image, label, reconstruct=True)`, for real images, also returns the self-supervised loss (section
    3.2), a scalar in fp32: the mean square error of three decoders, for the whole image, a random quadrant of it, and
    the small image.

    Raises ValueError if `channel_base` is too small.
    """

    supports = frozenset({"reconstruct"})

    def __init__(self, config):
        super().__init__()
        _check(config)
        norm, channels = config.discriminator_norm, config.channels
        width = lambda r: config.features(2 * r)
        top, last = min(TRUNK_FROM, config.resolution), min(8, config.resolution // 2)
        self.top, self.small = config.resolution, small_resolution(config)
        # Image to feature maps of 256 and below.
        self.stem = nn.Sequential()
        if config.resolution == top:
            conv = Conv2d(channels, width(top), 3, padding=1, bias=False)
            self.stem.append(Block(_normalized(conv), width(top), norm=False, bias=False, act="lrelu"))
        r, before = config.resolution, channels
        while r > top:
            r, is_first = r // 2, r == config.resolution
            self.stem.append(_down(before, width(r), norm=norm and not is_first, bias=not is_first))
            before = width(r)
        # Down to maps of 8x8, and a logit for each 4x4 part of them.
        self.blocks = nn.ModuleDict()
        self.excitations = nn.ModuleDict()
        self.skip = min(8, config.resolution // 8)
        while r > last:
            r //= 2
            self.blocks[str(r)] = DownBlock(width(2 * r), width(r), norm)
            high = r * self.skip
            if r < high <= top:
                self.excitations[str(r)] = SkipExcitation(width(high), width(r), config.base_size, high // 4)
        hidden = width(last // 2)
        self.head = Block(_normalized(Conv2d(width(last), hidden, 1, bias=False)), hidden, norm=norm, act="lrelu")
        self.out = _normalized(Conv2d(hidden, 1, 4, bias=False))
        self.embed = _normalized(nn.Embedding(config.num_classes, hidden)) if config.num_classes else None
        # The same for the small image.
        small_width = lambda r: config.features(4 * r)
        r = self.small // 2
        self.small_stem = _down(channels, small_width(r), norm=False, bias=False)
        self.small_blocks = nn.ModuleDict()
        while r > 8:
            r //= 2
            self.small_blocks[str(r)] = _down(small_width(2 * r), small_width(r), norm=norm)
        self.small_out = _normalized(Conv2d(small_width(r), 1, 4, bias=False))
        self.decoder = Decoder(config, width(last), last, self.small)
        self.part_decoder = Decoder(config, width(2 * last), last, min(self.small, config.resolution // 2))
        self.small_decoder = Decoder(config, small_width(r), r, self.small)
        self.apply(_init_norm)

    def layers_from_image(self) -> list[nn.Module]:
        """Blocks for the image, each with that for the small image at the same resolution."""
        small = {str(self.small // 2): self.small_stem, **self.small_blocks}
        layers = [*self.stem]
        for name, block in self.blocks.items():
            others = (part[name] for part in (self.excitations, small) if name in part)
            layers.append(nn.ModuleList([block, *others]))
        return layers

    def forward(
        self, image: Tensor | Pair, label: Tensor | None = None, *, reconstruct: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        large, small = image if isinstance(image, tuple) else (image, _mean(image, self.top // self.small))
        large, small = channels_last(large), channels_last(small)
        x = self.stem(large)
        features = {min(TRUNK_FROM, self.top): x}
        for name, block in self.blocks.items():
            r, before = int(name), x
            x = block(x)
            if name in self.excitations:
                x = self.excitations[name](features[r * self.skip], x)
            features[r] = x
        y = self.small_stem(small)
        for block in self.small_blocks.values():
            y = block(y)
        hidden = self.head(x)
        logits = to_arithmetic(self.out(hidden)).flatten(1)
        if self.embed is not None:
            of_label = (to_arithmetic(hidden).mean((2, 3)) * embed_label(self.embed, label)).sum(1, keepdim=True)
            logits = logits + of_label
        logits = torch.cat([logits, to_arithmetic(self.small_out(y)).flatten(1)], 1)
        if not reconstruct:
            return logits
        # `before`, the last block's input, has twice the resolution of x, so its quadrants have that of x.
        choice = torch.rand(2, len(large), 1, 1, 1, device=large.device) < 0.5
        loss = _error(self.decoder(x), large) + _error(self.small_decoder(y), small)
        return logits, loss + _error(self.part_decoder(_quadrant(before, *choice)), _quadrant(large, *choice))


def _quadrant(x: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """A quarter of each image, [N, C, H, W] to [N, C, H/2, W/2]; the choices are bool [N, 1, 1, 1]."""
    upper, lower = x.chunk(2, 2)
    x = torch.where(bottom, lower, upper)
    first, second = x.chunk(2, 3)
    return torch.where(right, second, first)


def _error(decoded: Tensor, image: Tensor) -> Tensor:
    """The mean square error of a decoder's output for an image of the same or a higher resolution."""
    return F.mse_loss(to_arithmetic(decoded), _mean(to_arithmetic(image), image.shape[2] // decoded.shape[2]))


def _check(config) -> None:
    if config.features(2 * config.resolution) < 1:
        raise ValueError(
            f"channel_base is {config.channel_base}, must be at least {2 * config.resolution} for fastgan: twice the "
            "resolution"
        )
