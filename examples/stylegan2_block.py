"""A textbook StyleGAN2 block and the same block on two layers of fastgan: compares times and results.

    python examples/stylegan2_block.py [--batch 8] [--channels 128] [--size 32]

The textbook block is StyleGAN2 as published: one weight per sample, a grouped convolution, separate operations.
"""

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import ModulatedConv2d, NoiseBiasLeakyReLU


class TextbookLayer(nn.Module):
    """Modulated 3x3 convolution, demodulation, noise, bias, leaky ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.weight / math.sqrt(c * 9) * style[:, None, :, None, None]  # [N, O, I, 3, 3]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, n * c, h, w), weight.flatten(0, 1), padding=1, groups=n).reshape(n, c, h, w)
        y = y + self.strength * noise
        y = y + self.bias[:, None, None]
        return F.leaky_relu(y, 0.2) * math.sqrt(2)


class TextbookBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = TextbookLayer(channels), TextbookLayer(channels)

    def forward(self, x: Tensor, styles: Tensor, noises: Tensor) -> Tensor:
        return self.second(self.first(x, styles[0], noises[0]), styles[1], noises[1])


class FusedBlock(nn.Module):
    """Two layers of a convolution with a shared weight and one elementwise pass each.

    The first layer's pass also applies the second layer's style.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(ModulatedConv2d(channels, channels, 3) for _ in range(2))
        self.ends = nn.ModuleList(NoiseBiasLeakyReLU(channels) for _ in range(2))

    def load_textbook(self, textbook: TextbookBlock) -> None:
        for conv, end, layer in zip(self.convs, self.ends, (textbook.first, textbook.second), strict=True):
            conv.load_state_dict({"weight": layer.weight})
            end.load_state_dict({"strength": layer.strength, "bias": layer.bias})

    def forward(self, x: Tensor, styles: Tensor, noises: Tensor) -> Tensor:
        ends = [end.arguments(x.shape, x.device, noise) for end, noise in zip(self.ends, noises, strict=True)]
        x = self.convs[0](x, styles[0], post=styles[1], **ends[0])
        return self.convs[1](x, styles[1], scaled=True, **ends[1])


def milliseconds(*steps, rounds: int = 10) -> list[float]:
    """Median time of each step; steps run in turn."""
    taken = [[] for _ in steps]
    for _ in range(rounds + 1):
        for step, times in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(times[1:]) for times in taken]  # the first is a warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description="A textbook StyleGAN2 block before and after fastgan's layers.")
    for name, default in (("batch", 8), ("channels", 128), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    batch, channels, size = vars(parser.parse_args()).values()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(0)
    before = TextbookBlock(channels).to(device)
    for layer in (before.first, before.second):
        nn.init.normal_(layer.strength)
    after = FusedBlock(channels).to(device)
    after.load_textbook(before)
    x = torch.randn(batch, channels, size, size, device=device).contiguous(memory_format=torch.channels_last)
    styles = 1 + 0.3 * torch.randn(2, batch, channels, device=device)
    noises = torch.randn(2, batch, 1, size, size, device=device)
    inputs = [t.requires_grad_() for t in (x, styles)]

    def step(block: nn.Module) -> list[Tensor]:
        y = block(x, styles, noises)
        return [y, *torch.autograd.grad(y.square().mean(), [*inputs, *block.parameters()])]

    for old, new in zip(step(before)[:3], step(after)[:3], strict=True):
        error = ((old - new).norm() / old.norm()).item()
        assert error < 1e-4, f"the blocks differ by {error:.1e}"
    old, new = milliseconds(lambda: step(before), lambda: step(after))
    print(f"two layers of {channels} channels at {size}x{size}, batch {batch}, forward and backward on {device.type}")
    print(f"textbook {old:8.2f} ms\nfastgan  {new:8.2f} ms, {old / new:.2f} times faster, the same numbers to rounding")


if __name__ == "__main__":
    main()
