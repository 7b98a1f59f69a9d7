"""A textbook WGAN-GP discriminator and the same one on two layers of fastgan: compares times and gradients.

    python examples/wgan_gp_discriminator.py [--batch 16] [--channels 32] [--size 64]

The discriminator is PGGAN's (equalized rates, leaky ReLU, average pooling), in plain PyTorch and with fastgan's layers.
The step around it stays the same. one_pass_penalty.py replaces the penalty as well.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import ConvDownsample2d, EqualizedConv2d

LAMBDA = 10.0


class TextbookConv(nn.Module):
    """Convolution with equalized rate, optional average pooling, bias, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, pool: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        _, in_channels, kernel_size, _ = self.weight.shape
        x = F.conv2d(x, self.weight / math.sqrt(in_channels * kernel_size**2), padding=kernel_size // 2)
        if self.pool:
            x = F.avg_pool2d(x, 2)
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2)


def fastgan_conv(in_channels: int, out_channels: int, kernel_size: int, pool: bool = False) -> nn.Module:
    """The same with equal parameter names; bias, activation and gain are one pass, and the convolution pools."""
    if pool:
        return ConvDownsample2d(in_channels, out_channels, kernel_size, equalized=True, act="lrelu")
    return EqualizedConv2d(in_channels, out_channels, kernel_size, act="lrelu")


def build_discriminator(conv: Callable[..., nn.Module], channels: int, size: int) -> nn.Sequential:
    """Images [N, 3, size, size] to logits [N]."""
    stages = [conv(3, channels, 1)]
    while size > 4:
        wider = min(2 * channels, 256)
        stages += [conv(channels, channels, 3), conv(channels, wider, 3, pool=True)]
        channels, size = wider, size // 2
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(channels * size**2, 1), nn.Flatten(0))


def textbook_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_step(
    discriminator: nn.Module, penalty: Callable, real: Tensor, fake: Tensor, share: Tensor
) -> list[Tensor]:
    """Loss of a discriminator step, and its gradient with all parameters concatenated."""
    loss = (
        discriminator(fake).mean()
        - discriminator(real).mean()
        + LAMBDA * penalty(discriminator, torch.lerp(real, fake, share))
    )
    grads = torch.autograd.grad(loss, list(discriminator.parameters()))
    return [loss, torch.cat([grad.flatten() for grad in grads])]


def milliseconds(*steps: Callable[[], object], rounds: int = 10) -> list[float]:
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


def main(description: str, more: dict[str, Callable] | None = None) -> None:
    """Compare step times. `more`: further penalties, by name, for the discriminator on fastgan's layers."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in (("batch", 16), ("channels", 32), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    batch, channels, size = vars(parser.parse_args()).values()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(0)
    before = build_discriminator(TextbookConv, channels, size).to(device, memory_format=torch.channels_last)
    after = build_discriminator(fastgan_conv, channels, size).to(device, memory_format=torch.channels_last)
    after.load_state_dict(before.state_dict())
    real, fake = (
        torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    share = torch.rand(batch, 1, 1, 1, device=device)

    steps = {"textbook": lambda: discriminator_step(before, textbook_penalty, real, fake, share)}
    for name, penalty in {"fastgan's layers": textbook_penalty, **(more or {})}.items():
        steps[name] = lambda penalty=penalty: discriminator_step(after, penalty, real, fake, share)
    expected, *others = (step() for step in steps.values())
    for got in others:
        for old, new in zip(expected, got, strict=True):
            error = (old - new).norm() / old.norm()
            assert error < 1e-3, f"the loss or its gradient differs by {error:.1e}"
    print(f"WGAN-GP, a discriminator's step at {size}x{size}, {batch} images each, on {device.type}")
    times = milliseconds(*steps.values())
    for name, taken in zip(steps, times, strict=True):
        print(f"{name:<17}{taken:9.1f} ms, {times[0] / taken:.2f} times the speed")
    print("the same loss and gradient to rounding")


if __name__ == "__main__":
    main("A textbook WGAN-GP discriminator before and after fastgan's layers.")
