"""Times drawing: `python -m bench.sampling [CASE ...] [--json FILE]`.

The network is a StyleGAN2 of random weights, prepared as a trained one is.

Prints images per second of `fastgan.sampler.Sampler`, in fp32 and as `amp=True`, beside three loops over the same
network in fp32. Each loop is what a user writes, in eval mode and without gradients:

    naive 1:   images = [generator(torch.randn(1, z_dim), noise="const") for _ in range(n)]
    naive 32:  the same in batches of 32
    plain:     naive 1 on plain PyTorch (`fastgan.ops.use_backend("torch")`)

Then the time of one image as the page of `fastgan view` draws it, and frames per second of an interpolation as
`fastgan generate interpolate` draws it, both beside a network that is not prepared, whose frames are drawn one by one.
The floor is the FLOPs of all convolutions and matrix products at the rate of a large matrix product of the same
precision. Winograd's convolutions take fewer, so fp32 may be below it.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import measure, report
from bench.measure import Clock, Timing
from fastgan import figures, models, ops, studies
from fastgan.models import ModelConfig
from fastgan.runs import drawing, precision
from fastgan.sampler import Sampler
from fastgan.training.recipes import stylegan2
from fastgan.view import rendering

SIZES = (64, 256)
SECONDS = 60.0  # per case and precision
ROUNDS = (5, 40)
NAIVE_BATCH = 32
FRAMES = 16
OPERATION = "sampling"

COLUMNS: tuple[tuple[str, str, Callable[[object], str]], ...] = (
    ("model", "form", str),
    ("dtype", "dtype", str),
    ("batch", "batch", str),
    ("images/s", "images_per_s", "{:.2f}".format),
    ("vs naive 1", "vs_naive_1", report.TIMES),
    ("vs naive 32", "vs_naive_32", report.TIMES),
    ("vs plain", "vs_plain", report.TIMES),
    ("of floor", "of_floor", "{:.2f}".format),
    ("one image", "latency_ms", report.MILLISECONDS),
    ("vs unprepared", "latency_vs_unprepared", report.TIMES),
    ("frames/s", "frames_per_s", "{:.2f}".format),
    ("vs unprepared", "frames_vs_unprepared", report.TIMES),
)


class CpuClock:
    """CPU time of this process: of use where other work takes turns with it on the same cores."""

    def __call__(self, call: Callable[[], object]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start


def configured(resolution: int) -> ModelConfig:
    """The network of the default recipe, below 128 pixels wider, at full resolution and with noise."""
    recipe = {name: value for name, value in stylegan2(resolution).items() if name in ModelConfig.__dataclass_fields__}
    if resolution < 128:
        recipe |= {"channel_base": 2048, "noise": True, "pixel_shuffle": False}
    return ModelConfig(arch="stylegan2", resolution=resolution, channels=3, **recipe)


def network(model: ModelConfig) -> nn.Module:
    """A generator of random weights, as a checkpoint is loaded."""
    torch.manual_seed(0)
    generator = models.build(model)[0].to(measure.device(), memory_format=torch.channels_last)
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def naive(generator: nn.Module, batch: int) -> Tensor:
    z = torch.randn(batch, generator.z_dim, device=measure.device())
    return generator(z, noise="const")


def on_page(generator: nn.Module) -> str:
    """The large image of the page, as HTML."""
    image = drawing.to_uint8(studies.samples(generator, [0])[0, 0])
    return rendering.figure(image, "seed 0", "seed0000.png")


def frames(generator: nn.Module) -> None:
    """An animation, as the command draws it."""
    for _ in figures.interpolation_frames(generator, [0, 1], [None], steps=FRAMES, space="w"):
        pass


def frames_one_by_one(generator: nn.Module) -> None:
    for image in studies.interpolation_frames(generator, [0, 1], steps=FRAMES, space="w"):
        drawing.to_uint8(image)


def run(name: str, model: ModelConfig, dtype: str, clock: Clock, seconds: float = SECONDS) -> dict:
    """The row of one network and precision of the sampler."""
    chosen = precision.choose(dtype == "bf16", measure.device())
    assert dtype != "bf16" or chosen.dtype == torch.bfloat16, "this machine has no bf16 instructions"
    plain_network = network(model)
    sampler = Sampler(copy.deepcopy(plain_network), model, [], chosen)
    prepared = sampler.generator
    _require_agreement(sampler, plain_network)

    def plain() -> Tensor:
        with ops.use_backend("torch"):
            return naive(plain_network, 1)

    contestants: dict[str, tuple[int, Callable[[], object]]] = {
        "sampler": (sampler.batch, lambda: sampler.sample(sampler.batch)),
        "naive 1": (1, lambda: naive(plain_network, 1)),
        f"naive {NAIVE_BATCH}": (NAIVE_BATCH, lambda: naive(plain_network, NAIVE_BATCH)),
        "plain": (1, plain),
    }
    if dtype == "fp32":  # the page and the command draw in fp32
        contestants |= {
            "one image": (1, lambda: on_page(prepared)),
            "one image, unprepared": (1, lambda: on_page(plain_network)),
            "frames": (FRAMES, lambda: frames(prepared)),
            "frames, unprepared": (FRAMES, lambda: frames_one_by_one(plain_network)),
        }
    timed = measure.alternate({key: call for key, (_, call) in contestants.items()}, clock, seconds, ROUNDS)
    timings = {
        key: Timing(tuple(each / images for each in timed[key].rounds)) for key, (images, _) in contestants.items()
    }
    ours = timings["sampler"]
    row = {
        "operation": OPERATION,
        "form": name,
        "dtype": dtype,
        "batch": sampler.batch,
        "images_per_s": 1 / ours.seconds,
        "of_floor": ours.seconds / floor(plain_network, chosen.dtype, clock),
        "clock": "CPU time" if isinstance(clock, CpuClock) else "wall clock",
        "rounds": len(ours.rounds),
        **measure.machine(),
    }
    row |= {f"vs_{key.replace(' ', '_')}": ours.times_faster_than(timings[key]) for key in list(timings)[1:4]}
    if "one image" in timings:
        latency, shown = timings["one image"], timings["frames"]
        row["latency_ms"] = 1e3 * latency.seconds
        row["latency_vs_unprepared"] = latency.times_faster_than(timings["one image, unprepared"])
        row["frames_per_s"] = 1 / shown.seconds
        row["frames_vs_unprepared"] = shown.times_faster_than(timings["frames, unprepared"])
    return row


def _require_agreement(sampler: Sampler, generator: nn.Module) -> None:
    """The sampler must draw the images of the naive loop."""
    z = drawing.latents([3], generator.z_dim).to(measure.device())
    with torch.no_grad():
        expected = generator(z, noise="const")
    images = sampler.sample(seeds=[3] * min(sampler.batch, 4), dtype=torch.float32)[-1:]
    error = (images - expected).norm() / expected.norm()
    allowed = 1e-4 if sampler.precision.dtype == torch.float32 else 0.05
    assert error <= allowed, f"images differ by {error:.2g}"


def floor(generator: nn.Module, dtype: torch.dtype, clock: Clock) -> float:
    """Seconds of an image's convolutions and matrix products at the rate of a large matrix product."""
    with ops.use_backend("torch"), FlopCounterMode(display=False) as counter:
        naive(generator, 1)
    return counter.get_total_flops() / measure.matrix_rate(dtype, clock)


def lines(rows: list[dict]) -> list[str]:
    about = measure.machine()
    columns = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    cells = [[heading for heading, _, _ in columns]]
    for row in rows:
        values = [(row.get(key), form) for _, key, form in columns]
        cells.append(["-" if value is None else form(value) for value, form in values])
    clock = " and ".join(dict.fromkeys(row["clock"] for row in rows))
    title = f"{about['device']}, {about['threads']} threads, torch {about['torch']}, {clock}, times in ms"
    return [title, "", *report.aligned(cells, [form is not str for _, _, form in columns])]


def main(arguments: list[str] | None = None) -> None:
    cases = {f"stylegan2-{size}": size for size in SIZES}
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description="Time drawing beside a naive loop.")
    parser.add_argument("case", nargs="*", metavar="CASE", help=f"of {', '.join(cases)} (default: all)")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, where other work shares the cores")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.case if case not in cases]:
        parser.error(f"no case {unknown[0]!r}; there are: {', '.join(cases)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = CpuClock() if options.cpu_time else measure.WallClock(measure.device())
    rows = []
    for case in options.case or cases:
        for dtype in ("fp32", "bf16") if measure.has_bf16() else ("fp32",):
            print(case, dtype, flush=True)
            rows.append(run(f"StyleGAN2, 3x{cases[case]}x{cases[case]}", configured(cases[case]), dtype, clock))
    print("", *lines(rows), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
