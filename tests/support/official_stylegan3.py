"""StyleGAN3's generator as stylegan3 writes it to a file, and in plain PyTorch.

As `tests.support.official`, whose discriminator belongs to it, uses neither fastgan nor the official code. Sizes,
filters and formulas follow from Karras et al. 2021, section 3 and appendix C.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support import official
from tests.support.official import EasyDict, Saved, dense, mapped, spread


@dataclass(frozen=True)
class Sizes:
    """Sizes of both networks, by their official names."""

    img_resolution: int = 32
    img_channels: int = 3
    c_dim: int = 0
    z_dim: int = 12
    w_dim: int = 10
    channel_base: int = 512
    channel_max: int = 12
    mapping_layers: int = 2
    lr_multiplier: float = 0.01
    num_layers: int = 14
    num_critical: int = 2
    margin_size: int = 10
    conv_kernel: int = 3
    use_radial_filters: bool = False
    conv_clamp: float | None = 256.0
    loud: float = 1.0  # size of biases

    def discriminator(self) -> official.Sizes:
        return official.Sizes(
            img_resolution=self.img_resolution, img_channels=self.img_channels, c_dim=self.c_dim, channel_base=256,
            channel_max=16, conv_clamp=self.conv_clamp, flat=True, loud=self.loud,
        )  # fmt: skip

    def signals(self) -> list["Signal"]:
        """Before the first layer, and after each; the last is the image."""
        found = []
        for i in (0, *range(self.num_layers + 1)):
            e = min(i / (self.num_layers - self.num_critical), 1)
            cutoff = 2 * (self.img_resolution / 4) ** e
            stop = 2**2.1 * (self.img_resolution / 2 * 2**0.3 / 2**2.1) ** e
            rate = 2 ** math.ceil(math.log2(min(2 * stop, self.img_resolution)))
            side = self.img_resolution if i >= self.num_layers - 1 else rate + 2 * self.margin_size
            channels = round(min(self.channel_base / 2 / cutoff, self.channel_max))
            found.append(Signal(side, rate, cutoff, max(stop, rate / 2) - cutoff, channels))
        found[-1] = replace(found[-1], channels=self.img_channels)
        return found


@dataclass(frozen=True)
class Signal:
    side: int
    rate: int
    cutoff: float
    half_width: float
    channels: int


@dataclass(frozen=True)
class Layer:
    """Numbers of layer i of a generator."""

    s: Sizes
    i: int

    @property
    def before(self) -> Signal:
        return self.s.signals()[self.i]

    @property
    def after(self) -> Signal:
        return self.s.signals()[self.i + 1]

    @property
    def to_image(self) -> bool:
        return self.i == self.s.num_layers

    @property
    def name(self) -> str:
        return f"L{self.i}_{self.after.side}_{self.after.channels}"

    @property
    def kernel(self) -> int:
        return 1 if self.to_image else self.s.conv_kernel

    @property
    def rate(self) -> int:
        """Of the nonlinearity."""
        return max(self.before.rate, self.after.rate) * (1 if self.to_image else 2)

    @property
    def up(self) -> int:
        return self.rate // self.before.rate

    @property
    def down(self) -> int:
        return self.rate // self.after.rate

    def filters(self) -> dict[str, Tensor]:
        if self.to_image:
            return {}
        radial = self.s.use_radial_filters and self.i < self.s.num_layers - self.s.num_critical
        return {
            "up_filter": low_pass(6 * self.up, self.before, self.rate),
            "down_filter": low_pass(6 * self.down, self.after, self.rate, radial),
        }


def low_pass(taps: int, signal: Signal, rate: float, radial: bool = False) -> Tensor:
    """Kaiser's design: attenuation and shape from the number of taps and the transition's width."""
    attenuation = 2.285 * (taps - 1) * math.pi * (2 * signal.half_width) / (rate / 2) + 7.95
    beta = 0.0
    if attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    window, place = np.kaiser(taps, beta), (np.arange(taps) - (taps - 1) / 2) / rate
    if not radial:
        f = window * np.sinc(2 * signal.cutoff * place)
        return torch.tensor(f / f.sum(), dtype=torch.float32)
    r = np.hypot(*np.meshgrid(place, place))
    f = bessel_j1(2 * math.pi * signal.cutoff * r) / r * window[:, None] * window
    return torch.tensor(f / f.sum(), dtype=torch.float32)


def bessel_j1(x: np.ndarray) -> np.ndarray:
    """By its integral, (1 / pi) * integral of cos(t - x sin t) from 0 to pi; the midpoint rule is exact for it."""
    t = (np.arange(200) + 0.5) / 200 * math.pi
    return np.cos(t - x[..., None] * np.sin(t)).mean(-1)


def generator(s: Sizes, **more: Any) -> Saved:
    first = s.signals()[0]
    directions = torch.randn(first.channels, 2)
    radius = directions.norm(dim=1, keepdim=True)
    posed = official._dense(s.w_dim, 4)
    posed.parameters = {
        "weight": 0.2 * torch.randn(4, s.w_dim),
        "bias": torch.tensor([1.0, 0.2, 0.1, -0.1]),
    }
    waves = Saved(
        "SynthesisInput",
        {"weight": torch.randn(first.channels, first.channels)},
        {
            "transform": torch.eye(3),
            "freqs": directions / (radius * (radius**2 / 4).exp()) * first.cutoff,
            "phases": torch.rand(first.channels) - 0.5,
        },
        {"affine": posed},
    )
    synthesis = Saved("SynthesisNetwork", modules={"input": waves})
    for i in range(s.num_layers + 1):
        layer = Layer(s, i)
        inputs, outputs = layer.before.channels, layer.after.channels
        synthesis.modules[layer.name] = Saved(
            "SynthesisLayer",
            {
                "weight": torch.randn(outputs, inputs, layer.kernel, layer.kernel),
                "bias": s.loud * torch.randn(outputs),
            },
            {"magnitude_ema": 0.5 + torch.rand(())} | layer.filters(),
            {"affine": official._dense(s.w_dim, inputs, bias=1.0)},
            attributes={"conv_clamp": s.conv_clamp, "up_factor": layer.up, "is_torgb": layer.to_image},
        )
    wide = official.Sizes(c_dim=s.c_dim)
    mapping = official._mapping(wide, s.z_dim, s.w_dim, s.mapping_layers, s.lr_multiplier)
    mapping.buffers["w_avg"] = torch.randn(s.w_dim)
    kwargs = {
        **{name: getattr(s, name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")},
        "mapping_kwargs": EasyDict(num_layers=s.mapping_layers, lr_multiplier=s.lr_multiplier),
        **{name: getattr(s, name) for name in ("channel_base", "channel_max", "num_layers", "num_critical")},
        **{name: getattr(s, name) for name in ("margin_size", "conv_kernel", "use_radial_filters", "conv_clamp")},
        "num_fp16_res": 4,
        "magnitude_ema_beta": 0.999,
        **more,
    }
    return Saved("Generator", modules={"synthesis": synthesis, "mapping": mapping}, kwargs=kwargs)


def snapshot(s: Sizes) -> dict[str, Any]:
    """Snapshot of a training of the official code."""
    torch.manual_seed(0)
    content = {"G": generator(s), "D": official.discriminator(s.discriminator()), "G_ema": generator(s)}
    first, second = (content[name].modules["synthesis"].modules["input"] for name in ("G", "G_ema"))
    second.buffers |= first.buffers  # the average has the same waves
    data = EasyDict(path="data.zip", use_labels=s.c_dim > 0, max_size=None, xflip=False)
    return content | {"augment_pipe": None, "training_set_kwargs": data}


# ---- the network in plain PyTorch; `t` are tensors by their official names ------------------------------------------


def image_of(
    z: Tensor, label: Tensor | None, t: dict[str, Tensor], s: Sizes, *,
    truncation_psi: float = 1.0, truncation_cutoff: int | None = None,
) -> Tensor:  # fmt: skip
    wide = official.Sizes(c_dim=s.c_dim)
    ws = mapped(z, label, t, wide, s.lr_multiplier, s.mapping_layers)[:, None].repeat(1, s.num_layers + 2, 1)
    ws[:, :truncation_cutoff] = t["mapping.w_avg"].lerp(ws[:, :truncation_cutoff], truncation_psi)
    x = fourier_features(ws[:, 0], t, s)
    for i in range(s.num_layers + 1):
        x = layer_of(x, ws[:, i + 1], t, Layer(s, i))
    return 0.25 * x


def fourier_features(w: Tensor, t: dict[str, Tensor], s: Sizes) -> Tensor:
    """Sample by sample and pixel by pixel: the frequencies at the pixel's place in the scene."""
    first, images = s.signals()[0], []
    for pose in dense(w, t, "synthesis.input.affine"):
        cosine, sine, x, y = pose / (pose[0] ** 2 + pose[1] ** 2).sqrt()
        turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
        user = t["synthesis.input.transform"]
        shift = user[:2, 2] - torch.stack([x, y])
        linear = turn @ user[:2, :2]
        place = (torch.arange(first.side, dtype=w.dtype) + 0.5) / first.rate - first.side / (2 * first.rate)
        grid = torch.stack([place.expand(first.side, -1), place[:, None].expand(-1, first.side)], 2)
        found = grid @ linear.t() + turn @ shift
        cycles = found @ t["synthesis.input.freqs"].t() + t["synthesis.input.phases"]
        height = (t["synthesis.input.freqs"] @ linear).norm(dim=1)
        height = (1 - (height - first.cutoff) / (first.rate / 2 - first.cutoff)).clamp(0, 1)
        mixed = (height * torch.sin(2 * math.pi * cycles)) @ t["synthesis.input.weight"].t() / math.sqrt(first.channels)
        images.append(mixed.permute(2, 0, 1))
    return torch.stack(images)


def layer_of(x: Tensor, w: Tensor, t: dict[str, Tensor], layer: Layer) -> Tensor:
    name = f"synthesis.{layer.name}"
    weight, style = t[f"{name}.weight"], dense(w, t, f"{name}.affine")
    gain = t[f"{name}.magnitude_ema"] ** -0.5
    if layer.to_image:
        style = style / math.sqrt(weight[0].numel())
    else:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        style = style * style.square().mean().rsqrt()
    images = []
    for image, factors in zip(x, style, strict=True):
        own = weight * factors[:, None, None]
        if not layer.to_image:
            own = own * (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        images.append(F.conv2d(image[None], own * gain, padding=layer.kernel - 1))
    x = torch.cat(images) + t[f"{name}.bias"][:, None, None]
    up, down = t.get(f"{name}.up_filter"), t.get(f"{name}.down_filter")
    taps = (1 if up is None else len(up)) + (1 if down is None else len(down)) - 2
    total = (layer.after.side - 1) * layer.down + 1 - x.shape[2] * layer.up + taps
    before = (total + layer.up) // 2
    x = F.pad(spread(x, layer.up), (before, total - before) * 2)
    x = convolved(x, up) * layer.up**2
    if not layer.to_image:
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    if layer.s.conv_clamp is not None:
        x = x.clamp(-layer.s.conv_clamp, layer.s.conv_clamp)
    return convolved(x, down)[:, :, :: layer.down, :: layer.down]


def convolved(x: Tensor, f: Tensor | None) -> Tensor:
    """A convolution (not correlation) of each channel with a filter [k], for both axes, or [k, k]."""
    if f is None:
        return x
    f = (torch.outer(f, f) if f.dim() == 1 else f).flip(0, 1).to(x.dtype)
    return F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), groups=x.shape[1])
