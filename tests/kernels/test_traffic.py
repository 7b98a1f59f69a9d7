"""Memory traffic of the CUDA kernels, counted under emulation: every operation, layout and dtype is held to the limits
of `LIMITS`, or to its exception. Seeded bad kernels prove that each figure can fail."""

from __future__ import annotations

import ctypes
from fnmatch import fnmatchcase

import pytest
import torch

from fastgan.ops.fused import OPERATIONS
from tests.emulation import build as emulation
from tests.support import traffic
from tests.support.traffic import BEST, CASES, DTYPES, FORMULAS

pytestmark = pytest.mark.slow  # compiles

LIMITS = {"sectors": 0.95, "noise": 0.95, "bytes": 1.05, "reads": 1.3, "passes": 1.1}  # see Traffic.figures
WORSE, BETTER = 0.02, 0.05  # how far a figure may be off its exception, relative to it

# Reason -> (pattern of "case, layout, direction"; figure; its value in fp32 and in 16 bits, None if the limit holds).
# The first pattern that fits counts.
EXCEPTIONS: dict[str, list[tuple[str, str, float | None, float | None]]] = {
    "threads read the noise of their vector 16 bytes at a time (NCHW), or that of each output (NHWC)": [
        ("noise_bias_act: *, NCHW, *", "noise", None, 0.5),
        ("style_epilogue: *, NCHW, *", "noise", None, 0.5),
        ("filtered_noise_bias_act, NCHW, *", "noise", None, 0.5),
        ("filtered_noise_bias_act, NHWC, forward", "noise", None, 0.5),
        ("filtered_noise_bias_act, NHWC, backward", "noise", 0.417, 0.417),
    ],
    "pixels of three channels: lanes that read every second one, or one of two, meet in banks": [
        ("upfirdn2d: up 2, RGB, NHWC, forward", "passes", 1.63, 1.89),
        ("upfirdn2d: up 2, RGB, NHWC, backward", "passes", 1.81, 1.57),
        ("upfirdn2d: down 2, RGB, NHWC, forward", "passes", 1.67, 1.53),
        ("upfirdn2d: down 2, RGB, NHWC, backward", "passes", 1.58, 1.85),
    ],
    "rows of an odd number of numbers begin anywhere in a sector": [
        ("filtered_noise_bias_act, NCHW, forward", "sectors", 0.833, 0.704),
        ("filtered_noise_bias_act, NCHW, backward", "sectors", 0.836, 0.720),
    ],
    "the filter is an operation of its own": [
        ("filtered_noise_bias_act, NCHW, forward", "bytes", 1.98, 1.98),
        ("filtered_noise_bias_act, NCHW, backward", "bytes", 1.65, 1.65),
        ("filtered_noise_bias_act, NCHW, forward", "reads", 1.97, 1.97),
        ("filtered_noise_bias_act, NCHW, backward", "reads", 1.48, 1.48),
    ],
    "statistics take a first pass over x, or over x and dy, where they do not fit on chip; the L2 serves the second": [
        ("batch_norm_act, *", "reads", 2.00, 2.00),
        ("adain: large, *", "reads", 2.00, 2.00),
        ("style_epilogue: large, *", "reads", 2.00, 2.00),
    ],
    "tiles read what the filters reach in their neighbours: ten pixels of x along each axis": [
        ("filtered_lrelu: same size, NHWC, *", "reads", 1.535, 1.535),
        ("filtered_lrelu: up 2, NHWC, forward", "reads", 1.871, 1.871),
        ("filtered_lrelu: up 2, NHWC, backward", "reads", 1.417, 1.417),
        ("filtered_lrelu: radial filter, NHWC, *", "reads", 1.535, 1.535),
        ("filtered_lrelu: radial filter, up 2, NHWC, forward", "reads", 1.995, 1.995),
        ("filtered_lrelu: radial filter, up 2, NHWC, backward", "reads", 1.616, 1.616),
        ("filtered_lrelu: *, NCHW, *", "reads", 1.617, 2.00),
    ],
    "pixels of an odd number of channels begin anywhere in a sector, and a block takes 16 channels": [
        ("filtered_lrelu: odd channels, NHWC, *", "sectors", 0.744, 0.542),
        ("filtered_lrelu: odd channels, NHWC, *", "reads", 2.202, 3.02),
    ],
    "the gradient of the noise is a launch of its own, which reads what backward reads": [
        ("noise_bias_act*learned noise, *, backward", "bytes", 1.667, 1.667),
        ("noise_bias_act*learned noise, *, backward", "reads", 2.00, 2.00),
    ],
    "statistics take a first pass over x": [
        ("minibatch_stddev, *, forward", "bytes", 1.50, 1.50),
        ("minibatch_stddev, *, forward", "reads", 2.00, 2.03),
    ],
    "rows of y have an odd number of channels": [
        ("minibatch_stddev, NHWC, forward", "sectors", None, 0.915),
        ("minibatch_stddev, NHWC, backward", "sectors", None, 0.923),
    ],
    "mirrored images are read byte by byte": [
        ("image_batch, NHWC, forward", "sectors", 0.75, 0.456),
    ],
}


def test_every_operation_is_counted():
    missing = set(OPERATIONS) - {traffic.FORMS[case.form].operation for case in CASES.values()}
    assert not missing, f"{missing}: add a form to FORMULAS and a case to CASES in tests/support/traffic.py"


def exception_for(row: str, figure: str, dtype: str) -> float | None:
    for entries in EXCEPTIONS.values():
        for pattern, of, fp32, in_16_bits in entries:
            if of == figure and fnmatchcase(row, pattern):
                return fp32 if dtype == "fp32" else in_16_bits
    return None


def complaint(figure: str, value: float, exception: float | None) -> str | None:
    """Message if a figure is beyond its limit, else None."""
    better, worse = (1, -1) if BEST[figure] is max else (-1, 1)
    if exception is None:
        if (value - LIMITS[figure]) * worse > 0:
            return f"{figure} is {value:.3f}, the limit is {LIMITS[figure]}"
    elif (value - exception) * worse > WORSE * exception:
        return f"{figure} is {value:.3f}, its exception {exception}"
    elif (value - exception) * better > BETTER * exception:
        return f"{figure} is {value:.3f}, better than its exception {exception}: tighten or remove it"
    return None


ROWS = [(case, layout) for case in CASES for layout in CASES[case].layouts]


@pytest.fixture(autouse=True)
def _emulation():
    if reason := emulation.why_unavailable():
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "layout"), ROWS)
def test_kernels_move_little_more_than_the_formula_needs(case, layout, dtype):
    directions = CASES[case].count(layout, DTYPES[dtype])
    assert list(directions) == list(FORMULAS[CASES[case].form])
    for direction, counted in directions.items():
        row = f"{case}, {layout}, {direction}"
        figures = counted.figures()
        assert figures["bytes"] > 0.95, f"{row}: a part of the activations is neither read nor written"
        complaints = [complaint(name, value, exception_for(row, name, dtype)) for name, value in figures.items()]
        assert not any(complaints), f"{row}: {'; '.join(filter(None, complaints))}\n{counted.describe()}"


def test_every_exception_is_of_a_case_and_worse_than_its_limit():
    rows = [f"{case}, {layout}, {way}" for case, layout in ROWS for way in FORMULAS[CASES[case].form]]
    for pattern, figure, *values in (entry for entries in EXCEPTIONS.values() for entry in entries):
        assert any(fnmatchcase(row, pattern) for row in rows), pattern
        for value in filter(None, values):
            assert complaint(figure, value, None), (pattern, figure, value)


@pytest.mark.parametrize(
    ("kernel", "figure", "value"),
    [
        ("strided_reads", "sectors", (1 + 1) / (1 + 8)),  # writes are ideal
        ("copied_twice", "bytes", 2),
        ("reads_of_neighbours", "reads", 4),
        ("bank_conflicts", "passes", 32),
        ("copy", None, None),
        ("late_lanes", None, None),
        ("shared_without_conflicts", None, None),
    ],
)
def test_figure_shows_a_bad_kernel(kernel, figure, value):
    counted = count_seeded(kernel)
    for name, found in counted.figures().items():
        if name == figure:
            assert found == pytest.approx(value)
            assert complaint(name, found, None)
        elif not (figure == "bytes" and name == "reads"):  # what is moved twice is read twice
            assert complaint(name, found, None) is None, name
    # Of 64 blocks, block 61 is the next to read what block 0 copies; each reads 4 KiB and writes 1 KiB. Where a
    # block reads and writes 1 KiB each, the last one is the next to read the sector that block 0 begins in.
    far = {"reads_of_neighbours": 61 * 5 * 1024, "late_lanes": 64 * 2 * 1024}.get(kernel, 0)
    assert counted.launches[-1].reuse == pytest.approx(far, rel=0.05)


def count_seeded(kernel: str) -> traffic.Traffic:
    """Traffic of a kernel of emulation/seeded_traffic.cu."""
    path = emulation.build([emulation.HERE / "seeded_traffic.cu"], "seeded_traffic", sanitizer="traffic")
    library = ctypes.CDLL(str(path))
    traffic.declare(library)
    x, y = torch.arange(16 * 1024, dtype=torch.float32), torch.empty(16 * 1024)
    library.fastgan_traffic_start()
    for name, tensor in (("x", x), ("y", y)):
        library.fastgan_traffic_tensor(name.encode(), tensor.data_ptr(), tensor.nbytes)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y))
    library.run(kernel.encode(), *pointers, x.numel())
    launches = traffic.parse(library.fastgan_traffic_stop().decode())
    assert torch.equal(*(t.sort().values for t in (x, y)))
    return traffic.Traffic(launches, x.nbytes, y.nbytes)


def test_only_the_ends_of_a_grid_give_the_figures_of_all_blocks():
    form, shape = traffic.FORMS["synthesis"], (2, 64, 32, 32)
    whole, ends = (traffic.count(form, shape, torch.bfloat16, ends=ends) for ends in (None, 1))
    for direction in whole:
        assert ends[direction].launches[0].executed < whole[direction].launches[0].executed
        assert ends[direction].figures() == pytest.approx(whole[direction].figures(), rel=0.02)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_norms_read_twice_what_the_l2_still_holds(direction):
    """Half of the L2 of an H100; the shape has more pieces than blocks that start before the first second read."""
    counted = traffic.count(traffic.FORMS["style_epilogue"], (12, 64, 96, 96), torch.bfloat16)[direction]
    launch = counted.launches[1]
    assert counted.unique(write=False) == counted.minimum_read
    assert launch.by_block["x", False] == 2 * launch.unique["x", False]
    assert counted.minimum_read / 4 < launch.reuse < 25 * 2**20


def test_source_lines_are_named():
    text = CASES["lerp_samples"].count("NHWC", torch.float32)["forward"].describe()
    assert "samples/cuda.cu:" in text and "reads a: " in text and "writes first: " in text
