"""The measured figures in the README, as bench/results has them: `python -m bench.readme` writes them and the plot.

A part of README.md between `<!-- measured: NAME -->` and `<!-- end -->` is what `BLOCKS[NAME]` returns. A test
compares, and refuses figures elsewhere.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
PLOT = ROOT / "docs" / "speed.png"

MACHINES = ("cpu_avx512", "cpu_avx2")  # as the results are named
NAMES = {"stylegan2": "StyleGAN2", "pggan": "PGGAN, WGAN-GP", "dcgan": "DCGAN, upsampling variant"}
MEASURED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"\d(?:\.\d+)? ?(?:%|x\b|ms\b|s\b|min\b|GB/s|images/s|times\b)")


def quality() -> str:
    """Of the default training."""
    results = _read("glyph_families_cpu_avx512.json")
    run, about = results["stylegan2"], results["machine"]
    minutes, seconds = divmod(round(run["seconds"]), 60)
    variety = run["within_class_distance"] / run["within_class_distance_fresh_reals"]
    novelty = run["distance_to_training"] / run["distance_to_training_fresh_reals"]
    return f"""
What that command made in {minutes} min {seconds} s on {_machine(about)}.
`python bench/glyph_quality.py RUN` measures it, with a small classifier trained on real glyphs:

| {run["samples"]:,} samples, psi 1 | |
| --- | --- |
| classified as the digit asked for | {run["samples_as_asked"]:.1%} (the classifier itself: \
{run["classifier_on_held_out_fonts"]:.1%} on fonts held out from it) |
| mean distance within a class | {variety:.2f} of that of real glyphs |
| median distance to the nearest training image | {novelty:.2f} of that of real glyphs not trained on |
"""


def speed() -> str:
    """Of whole training steps, and their memory."""
    lines, machines = [], {}
    for arch, rows, memory in _steps():
        own, amp = rows["fp32"], rows.get("bf16")
        machines[_machine(own)] = None
        of_compile = [_times(row["vs_compile"]) for row in (own, amp) if row]
        shares = [
            f"{memory[dtype]['of_textbook_fp32']:.0%}" if dtype in memory else "-"
            for dtype, row in (("fp32", own), ("bf16", amp))
            if row
        ]
        lines.append(
            f"| {NAMES[arch]}, {own['shape']} | {own['instructions']} | {_times(own['vs_textbook'])} "
            f"| {_times(amp and amp['vs_textbook'])} | {', '.join(of_compile)} | {', '.join(shares)} |"
        )
    return f"""
A whole training step, lazy penalties included, beside the same networks as plain PyTorch, written the usual way; of
StyleGAN2's modulation the faster of its two common forms. On {" and ".join(machines)}
(`python -m bench.training_step`, `python -m bench.memory`; [bench/README.md](bench/README.md) says how):

| images a step | CPU | times as fast, fp32 | `--amp` (bf16) against fp32 | against `torch.compile`, fp32 and bf16 \
| peak memory beside its fp32, fp32 and `--amp` |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}

![Bars: how many times as fast as plain PyTorch each family trains]({PLOT.relative_to(ROOT)})
"""


BLOCKS: dict[str, Callable[[], str]] = {"quality": quality, "speed": speed}


def plot(path: Path = PLOT) -> None:
    """Speed-ups over the textbook's fp32 step, a group of bars a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [(arch, rows) for arch, rows, _ in _steps()]
    bars = {"torch.compile, fp32": [], "fastgan, fp32": [], "torch.compile, bf16": [], "fastgan, bf16 (--amp)": []}
    for _, rows in steps:
        for dtype, ours in (("fp32", "fastgan, fp32"), ("bf16", "fastgan, bf16 (--amp)")):
            row = rows.get(dtype, {"vs_textbook": 0, "vs_compile": 0})
            bars[ours].append(row["vs_textbook"])
            bars[f"torch.compile, {dtype}"].append(row["vs_textbook"] / row["vs_compile"] if row["vs_compile"] else 0)
    figure, axes = pyplot.subplots(figsize=(8, 3.4), layout="constrained")
    colours = ["#b9c4cf", "#6c8ebf", "#8b98a5", "#1f4e9c"]
    for number, ((name, values), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        places = [group + 0.2 * (number - 1.5) for group in range(len(steps))]
        drawn = axes.bar(places, values, 0.19, label=name, color=colour)
        axes.bar_label(drawn, [f"{value:.1f}" if value else "" for value in values], fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(steps) - 0.15)  # room for what the line is
    axes.text(1, 1.03, "plain PyTorch,\neager, fp32 ", fontsize=8, ha="right", transform=axes.get_yaxis_transform())
    axes.set_xticks(range(len(steps)), [_label(arch, rows["fp32"]) for arch, rows in steps])
    axes.set_ylabel("times as fast")
    axes.set_title(
        "A training step on " + " and ".join({_machine(rows["fp32"]): None for _, rows in steps}), fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(arch: str, row: dict) -> str:
    return "\n".join([*NAMES[arch].split(", "), row["shape"], row["instructions"]])


def rendered(text: str) -> str:
    """The README with its blocks as the results have them."""
    return MEASURED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def figures_elsewhere(text: str) -> list[str]:
    """What looks measured outside of the blocks and of code."""
    text = MEASURED.sub("", text)
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return FIGURE.findall(text)


def _read(name: str):
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else []


def _steps() -> Iterator[tuple[str, dict[str, dict], dict[str, dict]]]:
    """What was measured of training steps: architecture, rows by dtype, and those of its memory."""
    for machine in MACHINES:
        memory = _by_arch(f"memory_{machine}.json")
        for arch, rows in _by_arch(f"training_step_{machine}.json").items():
            yield arch, rows, memory.get(arch, {})


def _by_arch(name: str) -> dict[str, dict[str, dict]]:
    """Rows by architecture and dtype."""
    found: dict[str, dict[str, dict]] = {}
    for row in _read(name):
        found.setdefault(row["arch"], {})[row["dtype"]] = row
    return found


def _machine(about: dict) -> str:
    version = about["torch"].partition("+")[0]
    return f"{about['threads']} cores of an {about['device']} ({about['instructions']}, torch {version})"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> int:
    README.write_text(rendered(README.read_text()))
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
