"""Measures projection: `python -m bench.projection`. Are images that a network has drawn found again, and how soon?

For each seed an image is drawn and projected by itself, as by `fastgan project IMAGE`: a table of PSNR, distance and
CPU seconds, and how many images come within 30 dB. No seed's latent is among those that a projection starts from.

--checkpoint takes any run or file; `fresh:R` is an untrained StyleGAN2 of the recipe's size for RxR images, which are
mostly noise: harder than those of a trained network.

Exits with status 1 unless 9 of 10 images reach 30 dB.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.metrics.perceptual import PerceptualDistance
from fastgan.projection import STEPS, project
from fastgan.runs import config as configuration
from fastgan.runs.networks import open_networks
from fastgan.studies import samples
from fastgan.training import configure

ENOUGH = 30.0  # dB
SHARE = 0.9  # of the images that must reach it
FIRST_SEED = 100_000  # of the latents


class Found(NamedTuple):
    """A projected image. cpu_seconds: of all cores together."""

    seed: int
    psnr: float
    distance: float
    cpu_seconds: float
    wall_seconds: float


def fresh(resolution: int) -> nn.Module:
    """An untrained StyleGAN2 for colour images, whose noise inputs have an effect; of the recipe's size from 128 on."""
    data = configuration.DataOptions(resolution=resolution, channels=3)
    small = {"channel_base": 2048, "noise": True, "pixel_shuffle": False} if resolution < 128 else {}
    network = configuration.NetworkOptions(arch="stylegan2", **small)
    config = configure.resolve(configuration.Config(network=network, data=data))
    torch.manual_seed(0)
    model = models.ModelConfig(**vars(config.network), resolution=resolution, channels=3, num_classes=0)
    generator, _ = models.build(model)
    for name, parameter in generator.named_parameters():
        if name.endswith("strength"):
            nn.init.constant_(parameter, 0.1)
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def open_generator(name: str) -> tuple[nn.Module, int]:
    """A generator, and its number of classes."""
    if name.startswith("fresh:"):
        return fresh(int(name.removeprefix("fresh:"))), 0
    networks = open_networks(name)
    return networks.load(torch.device("cpu")), networks.model.num_classes


def images_of(generator: nn.Module, classes: int, count: int) -> Iterator[tuple[int, Tensor]]:
    """Seeds, and an image [1, C, H, W] of each; of classes in turns."""
    for number in range(count):
        label = number % classes if classes else None
        yield FIRST_SEED + number, samples(generator, [FIRST_SEED + number], label=label)[0]


def measure(generator: nn.Module, images: Iterable[tuple[int, Tensor]], **options) -> Iterator[Found]:
    """Projects one image after the other; `options` are those of `project`."""
    for seed, image in images:
        cpu, wall = time.process_time(), time.perf_counter()
        found = project(generator, image, **options)
        times = time.process_time() - cpu, time.perf_counter() - wall
        yield Found(seed, float(found.psnr[0]), float(found.distances[0]), *times)


def report(results: Iterable[Found]) -> tuple[list[str], bool]:
    """The last lines of the output, and whether enough images are found again."""
    results = list(results)
    near = sum(result.psnr >= ENOUGH for result in results)
    mean = lambda name: sum(getattr(result, name) for result in results) / len(results)
    lines = [
        f"{near} of {len(results)} reach {ENOUGH:g} dB; mean {mean('psnr'):.1f} dB",
        f"{mean('cpu_seconds'):.1f} CPU s, {mean('wall_seconds'):.1f} s an image",
    ]
    return lines, near >= SHARE * len(results)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="example:digits", help="a run, a file, example:NAME or fresh:R")
    parser.add_argument("--seeds", type=int, default=10, help="number of images")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--space", choices=("w", "w+", "z"))
    parser.add_argument("--distance", choices=("perceptual", "pixels"), default="perceptual")
    parser.add_argument("--constant-noise", action="store_true", help="look for latents alone")
    options = parser.parse_args(argv)
    generator, classes = open_generator(options.checkpoint)
    print(f"{options.checkpoint}: {options.steps} steps, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    perceptual = PerceptualDistance() if options.distance == "perceptual" else None
    settings = {"space": options.space, "steps": options.steps, "noise": not options.constant_noise}
    results = []
    images = images_of(generator, classes, options.seeds)
    for result in measure(generator, images, perceptual=perceptual, num_classes=classes, **settings):
        results.append(result)
        print(
            f"seed {result.seed}: PSNR {result.psnr:.1f} dB, distance {result.distance:.4f}, "
            f"{result.cpu_seconds:.1f} CPU s, {result.wall_seconds:.1f} s",
            flush=True,
        )
    lines, enough = report(results)
    print("\n".join(lines))
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
