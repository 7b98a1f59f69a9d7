"""Formats the rows of benchmarks as text tables."""

from collections.abc import Callable

from bench import measure

MILLISECONDS = "{:.2f}".format
TIMES = "{:.2f}x".format
PERCENT = "{:.0%}".format

# Heading, key of the row, format. A column appears if a row has a value.
COLUMNS: tuple[tuple[str, str, Callable[[object], str]], ...] = (
    ("form", "form", str),
    ("model", "arch", str),
    ("discriminator", "discriminator", str),
    ("shape", "shape", str),
    ("dtype", "dtype", str),
    ("backend", "backend", str),
    ("fastgan", "fastgan_ms", MILLISECONDS),
    ("eager", "eager_ms", MILLISECONDS),
    ("compile", "compile_ms", MILLISECONDS),
    ("bare loop", "bare_loop_ms", MILLISECONDS),
    ("library", "library_ms", MILLISECONDS),
    ("plain step", "plain_ms", MILLISECONDS),
    ("double backward", "double_backward_ms", MILLISECONDS),
    ("of plain", "of_plain", TIMES),
    ("passes", "passes_of_plain", str),
    ("vs double backward", "vs_double_backward", TIMES),
    ("passes", "passes_vs_double_backward", str),
    ("textbook", "textbook_ms", MILLISECONDS),
    ("grouped", "grouped_ms", MILLISECONDS),
    ("bare", "bare_ms", MILLISECONDS),
    ("eager launches", "launched_ms", MILLISECONDS),
    ("with compile", "with_compile_ms", MILLISECONDS),
    ("vs eager", "vs_eager", TIMES),
    ("vs textbook", "vs_textbook", TIMES),
    ("vs grouped", "vs_grouped", TIMES),
    ("vs compile", "vs_compile", TIMES),
    ("of bare", "of_bare", TIMES),
    ("vs eager launches", "vs_launched", TIMES),
    ("vs with compile", "vs_with_compile", TIMES),
    ("of bare loop", "vs_bare_loop", PERCENT),
    ("bare in autograd", "bare_loop_in_autograd", PERCENT),
    ("copies in autograd", "copies_in_autograd", PERCENT),
    ("vs library", "vs_library", TIMES),
    ("forward", "forward_ms", MILLISECONDS),
    ("vs eager", "forward_vs_eager", TIMES),
    ("GFLOP/s", "gflop_per_s", "{:.0f}".format),
    ("of product", "share_of_product", PERCENT),
    ("GB/s", "gb_per_s", "{:.1f}".format),
    ("of copy", "share_of_copy", PERCENT),
    ("fastgan MB", "fastgan_mb", "{:.0f}".format),
    ("checkpoint blocks MB", "checkpoint_blocks_mb", "{:.0f}".format),
    ("textbook fp32 MB", "textbook_fp32_mb", "{:.0f}".format),
    ("textbook MB", "textbook_own_mb", "{:.0f}".format),
    ("of textbook fp32", "of_textbook_fp32", PERCENT),
    ("of textbook", "of_textbook_own", PERCENT),
    ("step", "step_ms", MILLISECONDS),
    ("images/s", "images_per_s", "{:.0f}".format),
    ("step images/s", "step_images_per_s", "{:.0f}".format),
    ("headroom", "headroom", "{:.0f}x".format),
    ("targets", "targets", str),
)
TRAINING_STEP = "training_step"
PENALTIES = "penalties"
MEMORY = "memory"
WEIGHT_GRADIENT = "weight_gradient"
IMAGE_BATCH = "image_batch"
DATA_PATH = "data_path"
TITLES = {
    TRAINING_STEP: "whole training step; textbook: its faster form, fp32; bare: the step's dense convolutions",
    MEMORY: "peak memory of a training step; textbook: in fp32, and in the same precision",
    IMAGE_BATCH: "image_batch (no backward); shape: of the result",
    DATA_PATH: "mirrored batches of the data loader; step: the plain training step that it feeds",
    WEIGHT_GRADIENT: "weight gradients of convolutions; forward: the convolution; product: a large matrix product",
    PENALTIES: "discriminator step with a one-pass gradient penalty; passes: convolution passes over one batch",
}
OPERATION = "{}: forward and backward, then forward alone"


def lines(rows: list[dict]) -> list[str]:
    """The report: the machine, then a table for each operation. Times are medians in ms."""
    about = measure.machine()
    threads = f", {about['threads']} threads" if measure.device().type == "cpu" else ""
    copy = measure.copy_bandwidth() / 1e9
    text = [f"{about['device']}{threads}, torch {about['torch']}, channels_last; copy {copy:.1f} GB/s, times in ms"]
    for operation in dict.fromkeys(row["operation"] for row in rows):
        chosen = [row for row in rows if row["operation"] == operation]
        text += ["", TITLES.get(operation, OPERATION.format(operation)), *_table(chosen)]
    notes = {row["notes"]: None for row in rows if row["notes"]}
    return [*text, *([""] if notes else []), *notes]


def _table(rows: list[dict]) -> list[str]:
    columns = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    cells = [[heading for heading, _, _ in columns]]
    for row in rows:
        values = [(row.get(key), form) for _, key, form in columns]
        cells.append(["-" if value is None else form(value) for value, form in values])
    return aligned(cells, [form is not str for _, _, form in columns])


def aligned(cells: list[list[str]], numeric: list[bool]) -> list[str]:
    """Lines of a table whose first row is the heading; numeric columns are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]
