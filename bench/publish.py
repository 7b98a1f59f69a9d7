"""Measured figures in the README and the docs: `python -m bench.publish` writes them from bench/results.

A part of a page between `<!-- measured: NAME -->` and `<!-- end -->` is the return value of `BLOCKS[NAME]`. A test
compares pages with results, and refuses figures elsewhere in the README and in docs/performance.md.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench.forms import FORMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
PAGES = (README, PERFORMANCE, ROOT / "docs" / "models.md", ROOT / "docs" / "penalties.md")
RESULTS = ROOT / "bench" / "results"
PLOT = ROOT / "docs" / "speed.png"

MACHINES = ("cpu_avx512", "cpu_avx2")  # endings of the results' file names
FAMILIES = {
    "stylegan2": "StyleGAN2",
    "pggan": "PGGAN, WGAN-GP",
    "dcgan": "DCGAN, upsampling variant",
    "default": "StyleGAN2, the default training",
}
DTYPES = ("fp32", "bf16")
# By `python -m bench.time_to_quality`: the default training with three seeds, and a longer one with the first.
DEFAULT, LONG = "default_glyphs_cpu_zen4.json", "long_glyphs_cpu_amx.json"
QUALITY = {"kid": "KID x 1000", "fd": "Fréchet distance", "precision": "precision", "recall": "recall"}
MEASURED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"\d(?:\.\d+)? ?(?:%|x\b|ms\b|s\b|min\b|GB/s|images/s|times\b)")


# ---- README ----------------------------------------------------------------------------------------------------------


def quality() -> str:
    """Time and samples of the default training."""
    found, longer = _read(DEFAULT), _read(LONG)
    runs = [each["rows"][-1] for each in found["contestants"].values()]
    last = longer["contestants"]["stylegan2"]["rows"][-1]
    minutes, seconds = divmod(round(60 * runs[0]["minutes"]), 60)
    read = sorted(run["as_asked"] for run in runs)
    return f"""
Made by that command in {minutes} min {seconds} s on {_machine(found)}.
A classifier reads {read[0]:.1%} to {read[-1]:.1%} of 1,000 samples of three seeds as the digit asked for. Against fonts
that it has not seen, on features of EfficientNet-Lite0 ([metrics](docs/metrics.md), {found["samples"]:,} samples):

| | {" | ".join(QUALITY.values())} |
| --- |{" --: |" * len(QUALITY)}
{_joined([f"| seed {seed} | {_quality(run)} |" for seed, run in enumerate(runs)])}
| `--images {last["images"]}`, {last["minutes"]:.0f} min on one core beside other work | {_quality(last)} |
| training images | {_quality(found["floor"])} |
"""


def speed() -> str:
    """Speed and memory of training steps, against eager PyTorch in fp32."""
    lines = []
    for arch, rows, memory in _steps():
        own, amp = rows["fp32"], rows.get("bf16")
        shares = [f"{memory[dtype]['of_textbook_fp32']:.0%}" if dtype in rows else "-" for dtype in DTYPES]
        lines.append(
            _line(
                f"{FAMILIES[arch]}, {own['shape']}",
                own["instructions"],
                _times(own["vs_textbook"]),
                _times(amp and amp["vs_textbook"]),
                ", ".join(shares),
            )
        )
    return f"""
| training step | CPU | times as fast, fp32 | `--amp` | peak memory, % of eager fp32: fp32, `--amp` |
| --- | --- | --- | --- | --- |
{_joined(lines)}

Baseline: the same networks in eager PyTorch, fp32. Machines: {_machines()}.
"""


# ---- docs/performance.md ---------------------------------------------------------------------------------------------


def steps() -> str:
    """Speed of training steps against everything they are measured against."""
    lines = [
        _line(
            f"{FAMILIES[arch]}, {row['shape']}",
            row["instructions"],
            "`--amp`" if dtype == "bf16" else dtype,
            _times(row["vs_textbook"]),
            _times(row["vs_grouped"]),
            _times(row["vs_compile"]),
            f"{row['of_bare']:.2f}",
        )
        for arch, rows, _ in _steps()
        for dtype, row in rows.items()
    ]
    return f"""
| training step | CPU | dtype | × eager fp32 | × eager fp32, grouped | × `torch.compile`, same dtype \
| time / bare convolutions |
| --- | --- | --- | --- | --- | --- | --- |
{_joined(lines)}

Machines: {_machines()}.

![Bars: how many times as fast as eager PyTorch each family trains]({PLOT.name})
"""


def memory() -> str:
    """Peak memory of training steps."""
    lines = [
        _line(
            f"{FAMILIES[arch]}, {row['shape']}",
            row["instructions"],
            "`--amp`" if dtype == "bf16" else dtype,
            f"{row['fastgan_mb']:,.0f}",
            f"{row['of_textbook_fp32']:.0%}",
            f"{row['of_textbook_own']:.0%}",
            f"{row['checkpoint_blocks_mb']:,.0f}" if row["checkpoint_blocks_mb"] else "-",
        )
        for arch, _, rows in _steps()
        for dtype, row in rows.items()
    ]
    return f"""
| training step | CPU | dtype | peak, MB | % of eager fp32 | % of eager, same dtype \
| with `--checkpoint-blocks`, MB |
| --- | --- | --- | --- | --- | --- | --- |
{_joined(lines)}
"""


def operations() -> str:
    """Speed of operations: the range over the shapes that were measured."""
    rows = _rows("noise_bias_act_cpu_avx512.json") + _rows("operations_cpu_avx512.json")
    lines = []
    measured = {row["form"] for row in rows}
    for form in FORMS:
        if form.name not in measured:
            continue
        chosen = {dtype: [row for row in rows if (row["form"], row["dtype"]) == (form.name, dtype)] for dtype in DTYPES}
        lines.append(
            _line(
                form.label,
                *(_range(row["vs_eager"] for row in chosen[dtype]) for dtype in DTYPES),
                *(_range(row["vs_compile"] for row in chosen[dtype]) for dtype in DTYPES),
                _range(100 * row["share_of_copy"] for row in chosen["fp32"] if "share_of_copy" in row),
                ", ".join(dict.fromkeys(row["shape"] for row in chosen["fp32"])),
            )
        )
    return f"""
| operation | × eager, fp32 | × eager, bf16 | × `torch.compile`, fp32 | × `torch.compile`, bf16 \
| % of copy bandwidth, fp32 | shapes of x |
| --- | --- | --- | --- | --- | --- | --- |
{_joined(lines)}

Machine: {_machine(rows[0])}.
"""


def penalties() -> str:
    """Speed of the one-pass gradient penalty."""
    rows = _rows("penalties_cpu_avx512.json")
    lines = [
        _line(
            f"{row['form']}, {row['discriminator']} discriminator, {row['shape']}",
            row["dtype"],
            f"{row['of_plain']:.2f}",
            _times(row["vs_double_backward"], 2),
            row["passes_of_plain"],
        )
        for row in rows
    ]
    return f"""
| penalty | dtype | time, × step without penalty | × as fast as double backward | convolution passes / without penalty |
| --- | --- | --- | --- | --- |
{_joined(lines)}

Machine: 2 cores of an AMD EPYC (Zen 5, AVX512-BF16). Measured with an earlier form of the one-pass penalty; see the
[notes](notes/penalties.md).
"""


def one_pass() -> str:
    """Speed of the one-pass gradient penalty: ranges over the discriminators."""
    rows = _rows("penalties_cpu_avx512.json")
    lines = []
    for penalty in dict.fromkeys(row["form"] for row in rows):
        chosen = {dtype: [row for row in rows if (row["form"], row["dtype"]) == (penalty, dtype)] for dtype in DTYPES}
        keys = [(key, dtype) for key in ("of_plain", "vs_double_backward") for dtype in DTYPES]
        lines.append(_line(penalty, *(_range((row[key] for row in chosen[dtype]), 2) for key, dtype in keys)))
    shapes = dict.fromkeys(f"{row['discriminator']} at {row['shape']}" for row in rows)
    return f"""
| penalty | time, × step without penalty: fp32 | bf16 | × as fast as double backward: fp32 | bf16 |
| --- | --- | --- | --- | --- |
{_joined(lines)}

Ranges over discriminators: {", ".join(shapes)} (real and generated images). Machine: 2 cores of an AMD EPYC (Zen 5,
AVX512-BF16). Measured with an earlier form of the one-pass penalty; see the [notes](notes/penalties.md).
"""


def data() -> str:
    """Speed of `image_batch` and of the loader."""
    rows = _rows("data_path_cpu_avx512.json")
    batches = [
        _line(f"`image_batch`, {row['form']}, {row['shape']}", row["dtype"], _times(row["vs_eager"]), "-")
        for row in rows
        if row["operation"] == "image_batch"
    ]
    loaders = [
        _line(
            f"data loader, {row['arch'].replace('default', 'stylegan2')} training, {row['shape']}",
            "uint8",
            _times(row["vs_eager"]),
            f"{row['headroom']:.0f}",
        )
        for row in rows
        if row["operation"] == "data_path"
    ]
    return f"""
| what | dtype | × numpy and eager PyTorch | images delivered / images trained on |
| --- | --- | --- | --- |
{_joined([*batches, *loaders])}

Machine: {_machine(rows[0])}.
"""


def sampling() -> str:
    """Images per second of drawing, beside naive loops; the latency of an image, and frames of an interpolation."""
    rows = _rows("sampling_cpu_zen4.json")
    lines, others = [], []
    for row in rows:
        size = row["form"].rpartition(" ")[2]
        images = f"{row['images_per_s']:.0f}" if row["images_per_s"] >= 10 else f"{row['images_per_s']:.1f}"
        ratios = [_times(row[key]) for key in ("vs_naive_1", "vs_naive_32", "vs_plain")]
        precision = "`amp=True`" if row["dtype"] == "bf16" else row["dtype"]
        lines.append(_line(size, precision, f"{row['batch']}", images, *ratios, f"{row['of_floor']:.2f}"))
        if "latency_ms" in row:
            frames = f"{row['frames_per_s']:.0f}" if row["frames_per_s"] >= 10 else f"{row['frames_per_s']:.1f}"
            times = _times(row["latency_vs_unprepared"]), frames, _times(row["frames_vs_unprepared"])
            others.append(_line(size, f"{row['latency_ms']:.0f}", *times))
    return f"""
| image | precision | batch | images/s | × loop over single images | × loop over batches of 32 \
| × plain PyTorch, single images | time / floor |
| --- | --- | --- | --- | --- | --- | --- | --- |
{_joined(lines)}

| image | one image on the page, ms | × unprepared | frames of an interpolation/s | × unprepared |
| --- | --- | --- | --- | --- |
{_joined(others)}

Machine: {_machine(rows[0])}, by {rows[0]["clock"]}.
"""


# ---- docs/models.md --------------------------------------------------------------------------------------------------


def families() -> str:
    """Samples of each family on glyphs, after the same time."""
    return _race("glyphs")


def emoji() -> str:
    """Samples of several families on emoji, after the same time."""
    return _race("emoji")


def photographs() -> str:
    """Samples of several families on few photographs, after the same time."""
    return _race("photographs")


def _race(data: str) -> str:
    """Table and plot of the trainings that `python -m bench.time_to_quality` raced on this data."""
    race = _read(f"race_{data}_cpu_zen4.json")
    last = {name: each["rows"][-1] for name, each in race["contestants"].items()}
    keys = [key for key in (*QUALITY, "kid_lite2", "fd_lite2") if all(key in row for row in last.values())]
    has_digits = any("variety" in row for row in last.values())
    titles = [QUALITY.get(key) or f"{QUALITY[key.removesuffix('_lite2')]}, Lite2" for key in keys]
    titles += ["digits", "distance within a class / real"] * has_digits
    lines = []
    for name, row in last.items():
        cells = _cells(row, keys)
        if has_digits:
            cells += [f"{row['as_asked']:.1%} as asked" if "as_asked" in row else f"rarest {row['rarest']:.1%}"]
            cells += [_times(row["variety"], 2)]
        images = f"{row['images']:,}" if row["images"] else ""
        lines.append(_line(name, _options(race["contestants"][name]["command"]), images, *cells))
    if race["floor"]:
        lines.append(_line(race["floor"]["of"], "", "", *_cells(race["floor"], keys), *[""] * (2 * has_digits)))
    minutes = max(row["minutes"] for row in last.values())
    return f"""
| | options | images | {" | ".join(titles)} |
| --- | --- | --: |{" --: |" * len(titles)}
{_joined(lines)}

![Curves of quality against minutes](models/race_{data}.png)

{minutes:.0f} minutes each, {race["samples"]:,} samples, one seed, against {race["real"]}. Machine: {_machine(race)};
the other core had other work.
"""


def _options(command: str) -> str:
    """Options of a training in a race, without those that all of them have."""
    if "bench.textbook_run" in command:
        return "eager PyTorch, fp32"
    common = "amp|data|resolution|out|checkpoint-interval|keep-checkpoints|minutes"
    words = re.sub(rf"--({common})( [^-]\S*)?", "", command.removeprefix("python -m fastgan.train")).split()
    return f"`{' '.join(words)}`"


def _cells(row: dict, keys: Iterable[str]) -> list[str]:
    """Metrics by their names, for a table."""
    return [f"{round(1000 * row[key])}" if "kid" in key else f"{row[key]:.{0 if 'fd' in key else 3}f}" for key in keys]


def _quality(row: dict) -> str:
    return " | ".join(
        [f"{1000 * row['kid']:.0f}", f"{row['fd']:.0f}", *(f"{row[key]:.2f}" for key in ("precision", "recall"))]
    )


BLOCKS: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        quality,
        speed,
        steps,
        memory,
        operations,
        penalties,
        one_pass,
        data,
        sampling,
        families,
        emoji,
        photographs,
    )
}


def plot(path: Path = PLOT) -> None:
    """Draws speed-ups over eager fp32, a group of bars for each family."""
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
    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    colours = ["#b9c4cf", "#6c8ebf", "#8b98a5", "#1f4e9c"]
    for number, ((name, values), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        places = [group + 0.2 * (number - 1.5) for group in range(len(steps))]
        drawn = axes.bar(places, values, 0.19, label=name, color=colour)
        axes.bar_label(drawn, [f"{value:.1f}" if value else "" for value in values], fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(steps) - 0.15)  # room for the label of the line
    axes.text(1, 1.03, "eager PyTorch,\nfp32 ", fontsize=8, ha="right", transform=axes.get_yaxis_transform())
    axes.set_xticks(range(len(steps)), [_label(arch, rows["fp32"]) for arch, rows in steps], fontsize=8)
    axes.set_ylabel("times as fast")
    axes.set_title(f"A training step on {_machines()}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(arch: str, row: dict) -> str:
    return "\n".join([*FAMILIES[arch].split(", "), row["shape"], row["instructions"]])


def rendered(text: str) -> str:
    """A page with its measured blocks filled in from the results."""
    return MEASURED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def figures_elsewhere(text: str) -> list[str]:
    """Figures that look measured, outside of measured blocks and of code."""
    text = MEASURED.sub("", text)
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return FIGURE.findall(text)


def _read(name: str):
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else []


def _rows(name: str) -> list[dict]:
    """The rows of a result: a list of them, or the file that `python -m bench.run --json` writes."""
    found = _read(name)
    return [each["extra_info"] for each in found["benchmarks"]] if isinstance(found, dict) else found


def _steps() -> Iterator[tuple[str, dict[str, dict], dict[str, dict]]]:
    """Training steps by machine and architecture: the latter, and rows of speed and of memory by dtype."""
    for machine in MACHINES:
        memory = _by_arch(f"memory_{machine}.json")
        for arch, rows in _by_arch(f"training_step_{machine}.json").items():
            yield arch, rows, memory.get(arch, {})


def _by_arch(name: str) -> dict[str, dict[str, dict]]:
    """Rows by architecture and dtype."""
    found: dict[str, dict[str, dict]] = {}
    for row in _rows(name):
        found.setdefault(row["arch"], {})[row["dtype"]] = row
    return found


def _machines() -> str:
    return " and ".join({_machine(rows["fp32"]): None for _, rows, _ in _steps()})


def _machine(about: dict) -> str:
    version = about["torch"].partition("+")[0]
    cores = "1 core" if about["threads"] == 1 else f"{about['threads']} cores"
    return f"{cores} of an {about['device']} ({about['instructions']}, torch {version})"


def _times(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _range(values: Iterable[float | None], digits: int = 1) -> str:
    shown = [value for value in values if value is not None]
    if not shown:
        return "-"
    least, most = (_times(edge(shown), 0 if max(shown) >= 10 else digits) for edge in (min, max))
    return least if least == most else f"{least} to {most}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _joined(lines: list[str]) -> str:
    return "\n".join(lines)


def main() -> int:
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
