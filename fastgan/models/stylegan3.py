"""StyleGAN3: alias-free generator, StyleGAN2's discriminator (Karras et al. 2021, arXiv 2106.12423).

Variants:

- "t": translation equivariance. 3x3 convolutions, separable filters.
- "r": rotation equivariance as well. 1x1 convolutions, radially symmetric downsampling filters; published with twice
  the feature maps.

Feature maps are samples of continuous signals, with a margin around the image. Each layer's nonlinearity runs at a
higher rate between two low-pass filters. There are no noise inputs and no skip connections.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import EqualizedLinear
from fastgan.models.alias_free import Band, bands, resampling
from fastgan.models.blocks import finished_image
from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.models.style_based import MappingNetwork, StyleBasedGenerator
from fastgan.models.stylegan2 import Discriminator
from fastgan.ops import filtered_lrelu, squared_norm
from fastgan.ops.arithmetic import to_arithmetic, update_average
from fastgan.ops.modulated_conv2d import alias_free_conv2d

__all__ = ["VARIANTS", "Discriminator", "Generator"]

VARIANTS = ("t", "r")
OUTPUT_GAIN = 0.25
MAGNITUDE_HALFLIFE = 20_000  # images


class FourierInput(nn.Module):
    """Feature maps of sine waves, translated and rotated by w: w [N, w_dim] to [N, C, S, S].

    `transform` is a user's inverse transform of the whole scene, [3, 3] or [N, 3, 3] in homogeneous coordinates in
    which the image lies within [-0.5, 0.5]: it maps places of the result to places of the scene.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, config, band: Band):
        super().__init__()
        self.rate, self.size, self.cutoff = band.rate, band.size, band.cutoff
        frequencies = torch.randn(band.channels, 2)
        radius = frequencies.norm(dim=1, keepdim=True)
        frequencies = frequencies / (radius * radius.square().exp().pow(0.25)) * band.cutoff
        self.weight = nn.Parameter(torch.randn(band.channels, band.channels))
        self.affine = EqualizedLinear(config.style_dim, 4)
        nn.init.zeros_(self.affine.weight)
        self.affine.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", frequencies)
        self.register_buffer("phases", torch.rand(band.channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        with torch.autocast(w.device.type, enabled=False):
            return self._waves(self.affine(w.to(self.affine.weight.dtype)))

    def _waves(self, pose: Tensor) -> Tensor:
        """pose: [N, 4], cosine and sine of an angle, not normalised, and a translation."""
        pose = pose / pose[:, :2].norm(dim=1, keepdim=True)
        cosine, sine, x, y = pose.unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rotation = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], 1).view(-1, 3, 3)
        translation = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1).view(-1, 3, 3)
        scene = rotation @ translation @ self.transform.to(pose.dtype)
        phases = self.phases + (self.freqs @ scene[:, :2, 2:]).squeeze(2)  # [N, C]
        frequencies = self.freqs @ scene[:, :2, :2]  # [N, C, 2]
        fading = (frequencies.norm(dim=2) - self.cutoff) / (self.rate / 2 - self.cutoff)
        amplitudes = (1 - fading).clamp(0, 1)
        place = (torch.arange(self.size, device=pose.device, dtype=pose.dtype) + 0.5 - self.size / 2) / self.rate
        across = place[:, None] * frequencies[:, None, :, 0]  # [N, S, C]
        down = place[:, None] * frequencies[:, None, :, 1] + phases[:, None]
        waves = (2 * math.pi * (across[:, None] + down[:, :, None])).sin() * amplitudes[:, None, None]
        mixed = waves @ (self.weight / math.sqrt(self.weight.shape[1])).t()
        return mixed.permute(0, 3, 1, 2)  # [N, C, S, S] in channels_last


class SynthesisLayer(nn.Module):
    """Modulated convolution, then the filtered leaky ReLU; the last one, to the image, has neither of the two."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, config, before: Band, after: Band, channels: int, *, critical: bool, to_image: bool):
        super().__init__()
        radial = config.variant == "r"
        kernel = 1 if to_image or radial else 3
        self.demodulate = not to_image
        self.in_fp32 = after.rate * 16 <= config.resolution  # cheap, and all later layers build on it
        self.clamp = config.conv_clamp
        self.affine = EqualizedLinear(config.style_dim, before.channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, before.channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("magnitude_ema", torch.ones(()))
        plan = resampling(before, after, kernel, to_image=to_image, radial=radial and not critical)
        # Not saved: the filters follow from the sizes, and a layer keeps its weights when the resolution changes.
        self.register_buffer("up_filter", plan.up_taps, persistent=False)
        self.register_buffer("down_filter", plan.down_taps, persistent=False)
        self.up, self.down, self.padding = plan.up, plan.down, plan.padding
        self.size = after.size  # side of the result

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        if self.in_fp32:
            with torch.autocast(x.device.type, enabled=False):
                return self._activated(to_arithmetic(x), w.to(self.affine.weight.dtype))
        return self._activated(x, w)

    def _activated(self, x: Tensor, w: Tensor) -> Tensor:
        style, input_gain = to_arithmetic(self.affine(w)), self.magnitude_ema.rsqrt()
        x = alias_free_conv2d(x, self.weight, style, input_gain, demodulate=self.demodulate)
        gain, slope = (math.sqrt(2), 0.2) if self.demodulate else (1.0, 1.0)
        return filtered_lrelu(
            x, self.up_filter, self.down_filter, self.bias, up=self.up, down=self.down, padding=self.padding,
            gain=gain, slope=slope, clamp=self.clamp,
        )  # fmt: skip


class Synthesis(GradientCheckpointing):
    """ws [N, layers + 2, w_dim] to an image [N, channels, R, R] in fp32.

    In training, passes with gradients add up the mean squares of each layer's input, for `update_magnitudes`.
    """

    magnitudes: Tensor

    def __init__(self, config):
        super().__init__()
        count, critical = config.synthesis_layers, config.critical_layers
        if not 0 < critical < count:
            raise ValueError(f"synthesis_layers is {count}, must be more than critical_layers {critical}, from 1")
        if config.margin < 0:
            raise ValueError(f"margin is {config.margin}, must be 0 at least")
        signals = bands(config)
        self.input = FourierInput(config, signals[0])
        self.layers = nn.ModuleList()
        for i, after in enumerate(signals):
            to_image = i == count
            channels = config.channels if to_image else after.channels
            before = signals[max(i - 1, 0)]
            self.layers.append(
                SynthesisLayer(config, before, after, channels, critical=i >= count - critical, to_image=to_image)
            )
        self.tanh = config.tanh
        self.gain = 1.0 if config.tanh else OUTPUT_GAIN  # tanh needs large numbers, which short trainings do not reach
        # Sums since the last update, and at the end the number of passes.
        self.register_buffer("magnitudes", torch.zeros(count + 2), persistent=False)

    def forward(self, ws: Tensor) -> Tensor:
        x = self.input(ws[:, 0])
        observes = self.training and torch.is_grad_enabled()
        squares = []
        for layer, w in zip(self.layers, ws.unbind(1)[1:], strict=True):
            if observes:
                squares.append(squared_norm(x.detach()).sum() / x.numel())
            x = self.block(layer, x, w)
        if observes:
            self.magnitudes.add_(torch.stack([*squares, torch.ones_like(squares[0])]).to(self.magnitudes.dtype))
        return finished_image(self.gain * to_arithmetic(x), self.tanh)

    @torch.no_grad()
    def update_magnitudes(self, share: float | Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Updates the running mean square of each layer's input by the passes since the last update.

        share: weight of these. mean: of a tensor over all processes.
        """
        sums = mean(self.magnitudes)
        for layer, square in zip(self.layers, sums[:-1] / sums[-1], strict=True):  # without a pass NaN: no update
            update_average(layer.magnitude_ema, square, share)
        self.magnitudes.zero_()


class Generator(StyleBasedGenerator):
    """z [N, z_dim], label [N] to an image [N, channels, R, R], nominally in [-1, 1], fp32."""

    supports = StyleBasedGenerator.supports - {"noise"}

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.mapping = MappingNetwork(config)
        self.synthesis = Synthesis(config)
        self.num_ws = len(self.synthesis.layers) + 1
        self.turns = config.variant == "r"  # whether images turn as a whole when their input does
        self.noise_resolutions: list[int] = []

    @shares_kernels
    def synthesize(self, ws: Tensor, *, noise: str = "random") -> Tensor:
        return self.synthesis(ws)
