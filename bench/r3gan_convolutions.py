"""Times the convolutions and the step of R3GAN's default training on a CPU.

    python -m bench.r3gan_convolutions [--seconds 1]

- Grouped 3x3 convolutions by the library, as a share of the rate of a large matrix product: what is left for a kernel
  of our own.
- 1x1 convolutions by the library and as a matrix product over all positions of the batch.
- A training step of the default recipes of R3GAN and StyleGAN2 at 32x32.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from bench import budget, measure
from bench.report import aligned
from fastgan import models
from fastgan.ops.layout import channels_last
from fastgan.training.averages import Averages
from fastgan.training.state import new_state
from fastgan.training.step import Step

BATCH, GROUP = 64, 16  # generated and real images; channels a group
LEVELS = ((32, 16), (16, 32), (8, 64), (4, 128))  # resolution, width of the block
CLOCK = measure.WallClock(torch.device("cpu"))
aten = torch.ops.aten


def maps(x: Tensor, weight: Tensor, groups: int = 1) -> dict[str, Callable[[], object]]:
    """The library's convolution that keeps the size, and its two gradients."""
    options = (1, 1), (weight.shape[2] // 2,) * 2, (1, 1), False, (0, 0), groups
    dy = aten.convolution(x, weight, None, *options)
    backward = partial(aten.convolution_backward, dy, x, weight, None, *options)
    return {
        "forward": partial(aten.convolution, x, weight, None, *options),
        "grad_input": partial(backward, (True, False, False)),
        "grad_weight": partial(backward, (False, True, False)),
    }


def products(x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """The same maps of a 1x1 convolution as matrix products."""
    matrix = weight.flatten(1)
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    dy = rows @ matrix.t()
    return {
        "forward": lambda: rows @ matrix.t(),
        "grad_input": lambda: dy @ matrix,
        "grad_weight": lambda: dy.t() @ rows,
    }


def convolutions(dtype: torch.dtype, seconds: float) -> list[list[str]]:
    """Rows of the table: convolution, map, ms, share of the matrix rate, times as long as the matrix product."""
    rows = []
    for side, width in LEVELS:
        inner = 2 * width
        for i, o, kernel, groups in ((inner, inner, 3, inner // GROUP), (width, inner, 1, 1), (inner, width, 1, 1)):
            x = channels_last(torch.randn(BATCH, i, side, side).to(dtype))
            weight = channels_last(torch.randn(o, i // groups, kernel, kernel).to(dtype))
            others = products(x, weight) if kernel == 1 else {}
            for name, call in maps(x, weight, groups).items():
                contestants = {"library": call} | ({"product": others[name]} if others else {})
                timings = measure.alternate(contestants, CLOCK, seconds)
                library = timings["library"].seconds
                share = 2 * BATCH * side**2 * weight.numel() / library / measure.matrix_rate(dtype)
                versus = f"{library / timings['product'].seconds:.2f}" if others else ""
                form = f"{kernel}x{kernel} {i} to {o}, {groups} groups, {side}x{side}"
                rows.append([form, name, f"{library * 1e3:.3f}", f"{share:.0%}", versus])
    return rows


def step(arch: str, amp: bool) -> Callable[[], object]:
    """A training step of the default recipe at 32x32."""
    config = budget.Case(arch, 32).config()
    state = new_state(
        models.ModelConfig(**vars(config.network), resolution=32, channels=3), config, torch.device("cpu")
    )
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16) if amp else nullcontext
    trained = Step(state, config, state.generator.z_dim, autocast, Averages())
    return partial(trained, channels_last(torch.rand(32, 3, 32, 32) * 2 - 1), None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.r3gan_convolutions", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    seconds = parser.parse_args().seconds
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if measure.has_bf16() else {})
    for name, dtype in dtypes.items():
        heads = [f"convolution, {name}", "map", "ms", "of a matrix product's rate", "x as long as the product"]
        print(*aligned([heads, *convolutions(dtype, seconds)], [False, False, True, True, True]), sep="\n")
        steps = {arch: step(arch, name == "bf16") for arch in ("r3gan", "stylegan2")}
        timings = measure.alternate(steps, CLOCK, 20 * seconds)
        print("step, ms:", ", ".join(f"{arch} {each.seconds * 1e3:.0f}" for arch, each in timings.items()), "\n")


if __name__ == "__main__":
    main()
