"""Networks in plain PyTorch, as textbooks and code bases write them: separate elementwise operations.

Parameters and their names are those of `fastgan.models`: the state dictionary of one loads into the other, and then
both compute the same, drawing random numbers in the same order. So benchmarks compare the same work. Activations are
not clamped, which fp32 rarely needs.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import textbook

MODULATIONS = ("grouped", "scaled")
_SQRT2 = math.sqrt(2)


def build(config, modulation: str = "scaled") -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator for a `fastgan.models.ModelConfig`.

    Args:
        config: arch "stylegan2", "pggan" (at full resolution) or "dcgan" (variant "upsample").
        modulation: form of StyleGAN2's convolutions: "grouped", one weight per sample as published, or "scaled",
            activations scaled around a shared weight.
    """
    if config.arch == "stylegan2":
        return StyleGAN2Generator(config, modulation), StyleGAN2Discriminator(config)
    if config.arch == "pggan":
        return PGGANGenerator(config), PGGANDiscriminator(config)
    if (config.arch, config.variant) == ("dcgan", "upsample"):
        return DCGANGenerator(config), DCGANDiscriminator(config)
    raise ValueError(f"no textbook form of {config.arch} {config.variant}")


# ---- Layers ----------------------------------------------------------------------------------------------------------


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * _SQRT2


class Linear(nn.Module):
    """Linear layer with equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, lr: float = 1.0, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.lr, self.gain = lr, gain * lr / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.lr
        return F.linear(x, self.weight * self.gain, bias)


class Conv2d(nn.Module):
    """Convolution with equalised learning rate; stride 1 keeps the size."""

    def __init__(self, inputs: int, outputs: int, size: int, bias: bool = True, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = 1 / math.sqrt(inputs * size**2)
        self.stride, self.padding = stride, size // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, stride=self.stride, padding=self.padding)


# Labels: little work, the same in both.


def _normalized(x: Tensor) -> Tensor:
    return textbook.pixel_norm(x)


def _joined(z: Tensor, embed: Linear | None, label: Tensor | None) -> Tensor:
    z = _normalized(z)
    return z if embed is None else torch.cat([z, _normalized(embed(_one_hot(label, embed)))], 1)


def _projected(x: Tensor, embed: Linear | None, label: Tensor | None) -> Tensor:
    if embed is None:
        return x.squeeze(1)
    return (x * _normalized(embed(_one_hot(label, embed)))).sum(1) / math.sqrt(x.shape[1])


def _one_hot(label: Tensor, embed: Linear) -> Tensor:
    return F.one_hot(label, embed.weight.shape[1]).to(embed.weight.dtype)


# ---- StyleGAN2 -------------------------------------------------------------------------------------------------------


class Mapping(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.z_dim
        self.embed = Linear(config.num_classes, width) if config.num_classes else None
        sizes = [width * (2 if config.num_classes else 1)] + [width] * config.mapping_layers
        self.layers = nn.ModuleList(Linear(i, o, lr=config.mapping_lr) for i, o in itertools.pairwise(sizes))
        self.register_buffer("w_avg", torch.zeros(width))

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        x = _joined(z, self.embed, label)
        for layer in self.layers:
            x = lrelu(layer(x))
        if self.training and torch.is_grad_enabled():
            self.w_avg.copy_(x.detach().float().mean(0).lerp(self.w_avg, 0.995))
        return x


class Modulated(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.gain = 1 / math.sqrt(inputs * size**2)


class Epilogue(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels))


class SynthesisLayer(nn.Module):
    def __init__(self, config, inputs: int, outputs: int, resolution: int, up: int, modulation: str):
        super().__init__()
        self.affine = Linear(config.z_dim, inputs)
        self.conv = Modulated(inputs, outputs, 3)
        self.epilogue = Epilogue(outputs)
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))
        self.convolve = {"grouped": textbook.modulated_conv2d, "scaled": textbook.scaled_conv2d}[modulation]
        self.up, self.taps = up, _taps()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        noise = torch.randn(len(x), 1, *self.noise_const.shape[2:], device=x.device)
        return self.convolve(
            x, self.conv.weight * self.conv.gain, self.affine(w), noise, self.epilogue.strength, self.epilogue.bias,
            _SQRT2, taps=self.taps, up=self.up,
        )  # fmt: skip


class ToRGB(nn.Module):
    def __init__(self, config, inputs: int, modulation: str):
        super().__init__()
        self.affine = Linear(config.z_dim, inputs)
        self.weight = nn.Parameter(torch.randn(config.channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.gain = 1 / math.sqrt(inputs)
        self.grouped = modulation == "grouped"

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * self.gain
        if self.grouped:
            n, c, *size = x.shape
            weight = (self.weight[None] * style[:, None, :, None, None]).to(x.dtype)
            y = F.conv2d(x.reshape(1, n * c, *size), weight.flatten(0, 1), groups=n).reshape(n, -1, *size)
        else:
            y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], self.weight.to(x.dtype))
        return y + self.bias.to(x.dtype)[:, None, None]


class Synthesis(nn.Module):
    def __init__(self, config, modulation: str):
        super().__init__()
        channels = [config.features(r) for r in config.resolutions]
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.first = SynthesisLayer(config, channels[0], channels[0], 4, 1, modulation)
        self.up, self.same = nn.ModuleList(), nn.ModuleList()
        for r, before, after in zip(config.resolutions[1:], channels, channels[1:], strict=False):
            self.up.append(SynthesisLayer(config, before, after, r, 2, modulation))
            self.same.append(SynthesisLayer(config, after, after, r, 1, modulation))
        self.to_rgb = nn.ModuleList(ToRGB(config, c, modulation) for c in channels)
        self.taps, self.tanh = _taps(), config.tanh

    def forward(self, ws: Tensor) -> Tensor:
        w = ws.unbind(1)
        x = self.first(self.const.expand(len(ws), -1, -1, -1), w[0])
        image = self.to_rgb[0](x, w[1])
        for i, (up, same, to_rgb) in enumerate(zip(self.up, self.same, self.to_rgb[1:], strict=True)):
            x = same(up(x, w[2 * i + 1]), w[2 * i + 2])
            image = textbook.resample2d(image, self.taps, up=2) + to_rgb(x, w[2 * i + 3])
        return image.float().tanh() if self.tanh else image.float()


class StyleGAN2Generator(nn.Module):
    def __init__(self, config, modulation: str):
        super().__init__()
        self.z_dim, self.num_ws = config.z_dim, 2 * len(config.resolutions)
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config, modulation)

    def forward(self, z: Tensor, label: Tensor | None = None, *, style_mixing: float = 0.0) -> Tensor:
        return self.synthesis(self.styles(z, label, style_mixing=style_mixing))

    def styles(self, z: Tensor, label: Tensor | None = None, *, style_mixing: float = 0.0) -> Tensor:
        ws = self.mapping(z, label)[:, None].expand(-1, self.num_ws, -1)
        if style_mixing:
            other = self.mapping(torch.randn_like(z), label)[:, None]
            layer = torch.arange(self.num_ws, device=z.device)
            cutoff = torch.randint(1, self.num_ws, (len(z), 1), device=z.device)
            cutoff = torch.where(torch.rand(len(z), 1, device=z.device) < style_mixing, cutoff, self.num_ws)
            ws = torch.where((layer < cutoff)[:, :, None], ws, other)
        return ws


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = Conv2d(inputs, inputs, 3)
        self.down = Conv2d(inputs, outputs, 3, stride=2)
        self.skip = Conv2d(inputs, outputs, 1, bias=False)
        self.taps = _taps()

    def forward(self, x: Tensor) -> Tensor:
        y = textbook.filtered(lrelu(self.conv(x)), self.taps, 2)
        return (lrelu(self.down(y)) + self.skip(textbook.resample2d(x, self.taps, down=2))) * math.sqrt(0.5)


class StyleGAN2Discriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in reversed(config.resolutions)]
        last = channels[-1]
        self.from_rgb = Conv2d(config.channels, channels[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(i, o) for i, o in itertools.pairwise(channels))
        self.conv = Conv2d(last + 1, last, 3)
        self.dense = Linear(last * 16, last)
        self.embed = Linear(config.num_classes, last) if config.num_classes else None
        self.out = Linear(last, last if config.num_classes else 1)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = lrelu(self.from_rgb(image))
        for block in self.blocks:
            x = block(x)
        x = lrelu(self.conv(textbook.minibatch_stddev(x)))
        return _projected(self.out(lrelu(self.dense(x.flatten(1)))).float(), self.embed, label)


def _taps() -> Tensor:
    return torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


# ---- PGGAN -----------------------------------------------------------------------------------------------------------


class PGGANUp(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up, self.conv = Conv2d(inputs, outputs, 3), Conv2d(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        # Bias and activation follow the convolution, at the larger resolution.
        x = textbook.pixel_norm(lrelu(self.up(F.interpolate(x, scale_factor=2, mode="nearest"))))
        return textbook.pixel_norm(lrelu(self.conv(x)))


class PGGANGenerator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.embed = Linear(config.num_classes, config.z_dim) if config.num_classes else None
        channels = [config.features(r) for r in config.resolutions]
        width = config.z_dim * (2 if config.num_classes else 1)
        self.dense = Linear(width, 16 * channels[0], bias=False, gain=_SQRT2 / 4)
        self.bias = nn.Parameter(torch.zeros(channels[0]))
        self.conv = Conv2d(channels[0], channels[0], 3)
        self.blocks = nn.ModuleList(PGGANUp(i, o) for i, o in itertools.pairwise(channels))
        self.to_rgb = nn.ModuleList(Conv2d(c, config.channels, 1) for c in channels)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.dense(_joined(z, self.embed, label)).reshape(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        x = textbook.pixel_norm(F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], 0.2))
        x = textbook.pixel_norm(lrelu(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.to_rgb[-1](x).float()


class PGGANDown(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.down = Conv2d(inputs, inputs, 3), Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = lrelu(self.conv(x))
        weight = self.down.weight * self.down.gain
        x = F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)  # pooled before bias and activation, as published
        return lrelu(x + self.down.bias.to(x.dtype)[:, None, None])


class PGGANDiscriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in config.resolutions]
        last = channels[0]
        self.from_rgb = nn.ModuleList(Conv2d(config.channels, c, 1) for c in channels)
        self.blocks = nn.ModuleList(PGGANDown(i, o) for o, i in itertools.pairwise(channels))
        self.conv = Conv2d(last + 1, last, 3)
        self.dense = Linear(last * 16, last)
        self.embed = Linear(config.num_classes, last) if config.num_classes else None
        self.out = Linear(last, last if config.num_classes else 1)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = lrelu(self.from_rgb[-1](image))
        for block in reversed(self.blocks):
            x = block(x)
        x = lrelu(self.conv(textbook.minibatch_stddev(x)))
        return _projected(self.out(lrelu(self.dense(x.flatten(1)))).float(), self.embed, label)


# ---- DCGAN, with upsampling ------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Layer, batch norm or bias, activation; parameter names are fastgan's."""

    def __init__(self, layer: nn.Module, channels: int, norm: bool, act: str, before: nn.Module | None = None):
        super().__init__()
        self.layer = layer
        self.norm = nn.BatchNorm2d(channels) if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(channels))
        self.before = before or nn.Identity()
        self.act = {"lrelu": nn.LeakyReLU(0.2, inplace=True), "tanh": nn.Tanh(), "linear": nn.Identity()}[act]

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.bias is not None:  # bias as in nn.Conv2d
            layer = self.layer
            x = F.conv2d(x, layer.weight, self.bias, stride=layer.stride, padding=layer.padding)
        else:
            x = self.norm(self.layer(x))
        return self.act(x)


class Project(nn.Module):
    def __init__(self, inputs: int, channels: int, size: int):
        super().__init__()
        self.linear = nn.Linear(inputs, size * size * channels, bias=False)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (self.size, self.size, -1)).permute(0, 3, 1, 2)


class DCGANGenerator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        wide, narrow = config.channel_max, max(config.channel_max // 2, 1)
        conv = lambda i, o: nn.Conv2d(i, o, 3, padding=1, bias=False)
        up = lambda: nn.Upsample(scale_factor=2)
        self.layers = nn.Sequential(
            Block(Project(config.z_dim, wide, config.resolution // 4), wide, norm=True, act="linear"),
            Block(conv(wide, wide), wide, norm=True, act="lrelu", before=up()),
            Block(conv(wide, narrow), narrow, norm=True, act="lrelu", before=up()),
            Block(conv(narrow, config.channels), config.channels, norm=False, act="tanh"),
        )

    def forward(self, z: Tensor, label: None = None) -> Tensor:
        return self.layers(z).float()


class DCGANDiscriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = [max(config.channel_max // share, 1) for share in (8, 4, 2, 1)]
        self.layers = nn.Sequential()
        for i, o in itertools.pairwise([config.channels, *channels]):
            conv = nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False)
            self.layers.append(Block(conv, o, norm=len(self.layers) > 0, act="lrelu"))
        self.out = nn.Linear(channels[-1] * max(config.resolution // 16, 1) ** 2, 1)

    def forward(self, image: Tensor, label: None = None) -> Tensor:
        return self.out(self.layers(image).flatten(1)).float().squeeze(1)
