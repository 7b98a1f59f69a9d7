"""Growth of a training step with batch, resolution and width: `python -m bench.scaling [OUT]`.

Measures time and peak memory of StyleGAN2's plain step, varying one size at a time, and a floor: the operations of its
convolutions at the rate of a large matrix product, plus the bytes that must pass through memory at the rate of a copy.
Prints a table, and writes OUT/scaling.json and OUT/scaling.png (OUT is `bench/results` by default).

Bytes of the floor: an elementwise pass after each convolution reads and writes its result; its backward reads gradient
and result and writes a gradient. Per parameter, Adam reads four numbers and writes three, the EMA two and one.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from bench import measure, memory
from bench.convolutions import Bare
from bench.training_step import STYLEGAN2, Case, Ours

SECONDS, ROUNDS = 4.0, (3, 20)
SIZES = {
    "cpu": {
        "around": {"resolution": 32, "batch": 16, "channel_base": 2048},
        "batch": (4, 8, 16, 32, 64),
        "resolution": (16, 32, 64, 128),
        "channel_base": (512, 1024, 2048, 4096),
    },
    "cuda": {
        "around": {"resolution": 128, "batch": 32, "channel_base": 16384},
        "batch": (4, 8, 16, 32, 64),
        "resolution": (32, 64, 128, 256),
        "channel_base": (4096, 8192, 16384, 32768),
    },
}
VARIED = ("batch", "resolution", "channel_base")
LABELS = {"batch": "images a step", "resolution": "resolution", "channel_base": "channel base"}


def case(resolution: int, batch: int, channel_base: int) -> Case:
    network = STYLEGAN2 | {"channel_base": channel_base, "z_dim": 128, "mapping_layers": 2}
    return Case(network, resolution, 3, batch, style_mixing=0.9)


def floor_seconds(step: Ours, dtype: torch.dtype) -> float:
    """Lower limit of the plain step's time."""
    work = Bare(lambda: step(1))
    parameters = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("g", step.state.generator), ("d", step.state.discriminator))
    }
    passed = work.bytes_behind + 4 * (7 * sum(parameters.values()) + 3 * parameters["g"])
    return work.flops / measure.matrix_rate(dtype) + passed / measure.copy_bandwidth()


def measured(varied: str, sizes: dict[str, int], amp: bool) -> dict:
    """One row: the varied size and its value, seconds, floor, peak memory."""
    step = Ours(case(**sizes), amp)
    clock = measure.WallClock(measure.device())
    timing = measure.alternate({"step": partial(step, 1)}, clock, SECONDS, rounds=ROUNDS)["step"]
    dtype = torch.bfloat16 if amp else torch.float32
    floor = floor_seconds(step, dtype)
    del step
    return {
        "varied": varied,
        "value": sizes[varied],
        **sizes,
        "dtype": "bf16" if amp else "fp32",
        "seconds": timing.seconds,
        "floor_seconds": floor,
        "times_floor": timing.seconds / floor,
        "peak_mb": memory.peak(partial(Ours, case(**sizes), amp), case(**sizes)) / 2**20,
    }


def plot(rows: list[dict], about: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, len(VARIED), sharex="col")
    for column, varied in zip(axes.T, VARIED, strict=True):
        for dtype, color in (("fp32", "tab:gray"), ("bf16", "tab:blue")):
            chosen = [row for row in rows if (row["varied"], row["dtype"]) == (varied, dtype)]
            if not chosen:
                continue
            values = [row["value"] for row in chosen]
            milliseconds = lambda key, chosen=chosen: [row[key] * 1e3 for row in chosen]
            column[0].plot(values, milliseconds("seconds"), "o-", color=color, label=f"step, {dtype}")
            column[0].plot(values, milliseconds("floor_seconds"), "--", color=color, label=f"floor, {dtype}")
            column[1].plot(values, [row["peak_mb"] for row in chosen], "o-", color=color, label=dtype)
        for axis in column:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(True, which="both", alpha=0.3)
        column[1].set_xlabel(LABELS[varied])
        column[1].set_xticks(sorted({row["value"] for row in rows if row["varied"] == varied}))
        column[1].xaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("milliseconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    axes[0, 0].legend()
    axes[1, 0].legend()
    threads = f", {about['threads']} threads" if measure.device().type == "cpu" else ""
    figure.suptitle(f"StyleGAN2, plain step; {about['device']}{threads}, torch {about['torch']}")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("bench/results"))
    out = parser.parse_args().out
    sizes, rows = SIZES[measure.device().type], []
    for varied in VARIED:
        for value in sizes[varied]:
            for amp in (False, True) if measure.has_bf16() else (False,):
                row = measured(varied, sizes["around"] | {varied: value}, amp)
                rows.append(row)
                taken = f"{row['seconds'] * 1e3:9.1f} ms, {row['times_floor']:.2f} times the floor"
                print(f"{varied:12} {value:6} {row['dtype']}  {taken}  {row['peak_mb']:7.0f} MB", flush=True)
    about = measure.machine() | {"copy_gb_per_s": measure.copy_bandwidth() / 1e9}
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    plot(rows, about, out / "scaling.png")


if __name__ == "__main__":
    main()
