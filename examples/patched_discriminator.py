"""DCGAN's discriminator in plain PyTorch, before and after `fastgan.patch`: compares step times and gradients.

    python examples/patched_discriminator.py [--batch 64] [--channels 64] [--size 32]

The discriminator's code stays as it is. Its optimizer is made before patching and continues afterwards.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan


def textbook_discriminator(channels: int) -> nn.Sequential:
    layers, width = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)], channels
    for factor in (2, 4):
        layers += [nn.Conv2d(width, factor * channels, 4, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(factor * channels), nn.LeakyReLU(0.2, inplace=True)]
        width = factor * channels
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 1), nn.Flatten())


def milliseconds(step, rounds: int = 10) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])  # the first is a warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description="DCGAN's discriminator before and after fastgan.patch.")
    for name, default in (("batch", 64), ("channels", 64), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    batch, channels, size = vars(parser.parse_args()).values()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(0)
    discriminator = textbook_discriminator(channels).to(device, memory_format=torch.channels_last)
    # With a learning rate of 0 both sides see the same discriminator.
    adam = torch.optim.Adam(discriminator.parameters(), lr=0, betas=(0.0, 0.99))
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> list[Tensor]:
        adam.zero_grad()
        loss = F.softplus(-discriminator(images)).mean()
        loss.backward()
        adam.step()
        return [loss.detach(), *(p.grad for p in discriminator.parameters())]

    before, old = step(), milliseconds(step)
    patched = fastgan.patch(discriminator)
    after, new = step(), milliseconds(step)
    print(patched)
    for expected, got in zip(before, after, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    print(f"A step of Adam, {channels} channels at {size}x{size}, batch {batch}, on {device.type}")
    print(f"textbook {old:8.2f} ms\npatched  {new:8.2f} ms, {old / new:.2f} times as fast, the same to rounding")


if __name__ == "__main__":
    main()
