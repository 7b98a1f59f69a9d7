"""Emulation of CUDA on the CPU: correct kernels give correct results in every thread order; each bug in
emulation/seeded_bugs.cu is reported with the right message and line, and the next launch works again."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.emulation import build as emulation

pytestmark = pytest.mark.slow  # compiles

ROOT = Path(__file__).resolve().parents[2]
SOURCE = emulation.HERE / "seeded_bugs.cu"
ORDERS = ("forward", "reverse", "shuffled")
SANITIZER = {"plain": None, "sanitized": "address"}  # the latter with UBSan too
BUILDS = tuple(SANITIZER)

# Bug -> (what the complaint says, what stands on the line it names, the builds that see it).
LAUNCH = r"Launch\("
REFUSED = {
    "barrier_in_branch": ("divergent barrier: reached by 64 of 128 .* has ended", "__syncthreads", BUILDS),
    "barrier_after_return": ("divergent barrier: reached by 100 of 128 .* has ended", "__syncthreads", BUILDS),
    "barriers_at_different_lines": ("divergent barrier: .* waits at the barrier at", "__syncthreads", BUILDS),
    "barrier_meets_shuffle": ("divergent warp operation: .* waits at the barrier at", "__shfl_xor_sync", BUILDS),
    "block_sums_in_branches": ("divergent barrier: .* waits at the barrier at", "block_sum", BUILDS),
    "shuffle_in_branch": ("divergent warp operation: .* never arrives: .* has ended", "__shfl_xor_sync", BUILDS),
    "shuffles_at_different_lines": ("divergent warp operation: .* but thread", "__shfl_sync", BUILDS),
    "lane_not_in_own_mask": ("lane 31 is not in its own mask 0x7fffffff", "__shfl_xor_sync", BUILDS),
    "mask_of_absent_lanes": ("names lanes that the block does not have", "warp_sum", BUILDS),
    "masks_differ": ("divergent warp operation", "__shfl_xor_sync", BUILDS),
    "vote_in_branch": ("divergent warp operation: .* in ballot .* lane 7 never arrives", "__ballot_sync", BUILDS),
    "syncwarp_in_branch": ("divergent warp operation: .* in __syncwarp", "__syncwarp", BUILDS),
    "shuffle_of_odd_width": ("shuffle of width 12", "__shfl_xor_sync", BUILDS),
    "waits_for_later_block": ("waits for one that has no earlier ticket", "wait_for", BUILDS),
    "too_much_static_shared": ("49156 bytes of static shared memory, more than 49152", "SHARED", BUILDS),
    "too_much_dynamic_shared": ("232452 bytes of dynamic shared memory exceed 232448", LAUNCH, BUILDS),
    "static_beside_dynamic_shared": ("232576 bytes of shared memory, more than 232448", "SHARED", BUILDS),
    "too_many_threads": (r"block \(1025, 1, 1\) exceeds", LAUNCH, BUILDS),
    "too_many_threads_in_3d": (r"block \(32, 32, 2\) has more than 1024 threads", LAUNCH, BUILDS),
    "block_too_deep": (r"block \(1, 1, 65\) exceeds", LAUNCH, BUILDS),
    "empty_grid": (r"empty grid \(0, 1, 1\)", LAUNCH, BUILDS),
    "empty_block": (r"empty block \(0, 1, 1\)", LAUNCH, BUILDS),
    "grid_too_tall": (r"grid \(1, 65536, 1\) exceeds", LAUNCH, BUILDS),
    "grid_too_wide": (r"grid \(2147483648, 1, 1\) exceeds", LAUNCH, BUILDS),
    "global_vector_to_shared": ("a store to global memory has an address of shared", r"gpu::store\(row", BUILDS),
    "misaligned_vector": ("misaligned vector access", r"gpu::load<4>\(x \+ 1\)", BUILDS),
    "misaligned_cast": ("misaligned access", "reinterpret_cast", BUILDS[1:]),
    "misaligned_cast_of_shared": ("misaligned access", "reinterpret_cast", BUILDS[1:]),
    "index_overflow": ("signed integer overflow in a multiplication", r"rows \* row_length", BUILDS[1:]),
    "shift_too_far": ("shift out of bounds", "1 << by", BUILDS[1:]),
    "local_array_past_end": ("index out of bounds|stack-buffer-overflow", r"values\[i\]", BUILDS[1:]),
    "static_shared_read_past_end": ("index out of bounds|use-after-poison, READ", r"row\[read\]", BUILDS[1:]),
    "static_shared_written_past_end": ("index out of bounds|use-after-poison, WRITE", r"row\[write\]", BUILDS[1:]),
    "static_shared_written_before_start": (
        "index out of bounds|use-after-poison, WRITE",
        r"row\[write\]",
        BUILDS[1:],
    ),
    "dynamic_shared_read_past_end": ("use-after-poison, READ of size 4", r"row\[read\]", BUILDS[1:]),
    "read_past_end": ("heap-buffer-overflow, READ of size 4", r"x\[.*offset\]", BUILDS[1:]),
    "read_before_start": ("heap-buffer-overflow, READ of size 4", r"x\[.*offset\]", BUILDS[1:]),
    "written_past_end": ("heap-buffer-overflow, WRITE of size 4", r"y\[.*offset\]", BUILDS[1:]),
    "written_before_start": ("heap-buffer-overflow, WRITE of size 4", r"y\[.*offset\]", BUILDS[1:]),
}
# Without a sanitizer, a write past shared memory is found at the end of the block: the thread is not known.
REFUSED_AFTER_THE_BLOCK = {
    "static_shared_written_past_end": ("written past the end of row, 32 bytes", "SHARED", BUILDS[:1]),
    "static_shared_written_before_start": ("written before the start of row, 32 bytes", "SHARED", BUILDS[:1]),
    "dynamic_shared_written_past_end": ("written past the end of dynamic", LAUNCH, BUILDS[:1]),
}
# These corrupt the heap unless AddressSanitizer stops them.
ONLY_SANITIZED = {"written_past_end", "written_before_start"}


def warp_operations(width: int) -> list[float]:
    """Expected result of the kernel all_warp_operations, by the CUDA C++ programming guide."""
    result = []
    for lane in range(32):
        first = lane - lane % width
        up, down, xor = lane - 3, lane + 3, lane ^ 5
        result += [
            first + (lane * 5 + 3) % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            xor if xor < first + width else lane,
            sum(1 << i for i in range(16) if i % 3 == 0),
            2,
            4,
            8,
        ]
    return result


def rounded(x: float) -> float:
    """x rounded to float."""
    return struct.unpack("f", struct.pack("f", x))[0]


def block_sum(values: list[float]) -> float:
    """The float sum of gpu::block_sum: a tree over the lanes of each warp, then a tree over the warps."""

    def tree(lanes: list[float]) -> float:
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [rounded(a + b) for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        return lanes[0]

    return tree([tree(values[i : i + 32]) for i in range(0, len(values), 32)])


reciprocals = [rounded(1 / (i + 1)) for i in range(1024)]
CORRECT = {
    "aligned_cast": [4],
    "all_warp_operations_32": warp_operations(32),
    "all_warp_operations_8": warp_operations(8),
    "barrier_with_flag": [1] * 100,
    "block_reduction": [rounded(rounded(block_sum(reciprocals) + 1024) + sum(range(1024)))] * 1024,
    "index_overflow_fixed": [1],
    "missing_barrier_fixed": [*range(1, 64), 0],
    "most_dynamic_shared": [1] * 32,
    "read": list(range(32)),
    "shuffle_in_branch_exact_mask": [*(i + (i ^ 8) for i in range(16)), *range(16, 32)] * 2,
    "static_shared": [1] * 32,
    "tickets": [0, 0, 0, 1, 2, 3],
    "vector_to_shared": [1] * 4,
    "vector_copy": list(range(4 * 321)),
    "warp_reduction": [sum(range(32))] * 32 + [sum(range(32, 64))] * 32,
    "written": [1] * 32,
}


def run_all(path: Path) -> dict:
    """Run every case in every order: {order: {case: result or error message}}. After an error a correct kernel must
    work."""
    module = emulation.load(path, "seeded_bugs")
    outcomes = {}
    for order in ORDERS:
        os.environ["FASTGAN_EMULATED_ORDER"] = order
        outcomes[order] = {}
        for name in module.names():
            if name in ONLY_SANITIZED and "ASAN_OPTIONS" not in os.environ:
                continue
            try:
                outcomes[order][name] = module.run(name)
            except Exception as error:
                outcomes[order][name] = f"{type(error).__name__}: {error}"
                assert module.run("block_reduction") == CORRECT["block_reduction"], f"after {name}"
    del os.environ["FASTGAN_EMULATED_ORDER"]
    return outcomes


@cache
def module_path(which: str) -> Path:
    if reason := emulation.why_unavailable(SANITIZER[which]):
        pytest.skip(reason)
    sources = [SOURCE.with_name("seeded_bugs_module.cpp"), SOURCE]
    return emulation.build(sources, "seeded_bugs", sanitizer=SANITIZER[which])


@cache
def outcomes(which: str) -> dict:
    path = module_path(which)
    if which == "plain":
        return run_all(path)
    result = emulation.run_under_address_sanitizer(["-m", "tests.kernels.test_emulation", str(path)], cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def expect_complaint(which: str, name: str, says: str, line_has: str, thread: bool) -> None:
    for order in ORDERS:
        complaint = outcomes(which)[order][name]
        assert isinstance(complaint, str), f"{order}: not refused, but returned {complaint}"
        assert re.search(says, complaint), (order, complaint)
        place = re.match(rf"RuntimeError: {re.escape(str(SOURCE))}:(\d+): ", complaint)
        assert place, (order, complaint)
        assert re.search(line_has, SOURCE.read_text().splitlines()[int(place[1]) - 1]), (order, complaint)
        assert re.search(rf"launched at {re.escape(str(SOURCE))}:\d+\]$", complaint), (order, complaint)
        if thread:
            assert re.search(r"block \(\d+, \d+, \d+\); thread \(\d+, \d+, \d+\); ", complaint), (order, complaint)


@pytest.mark.parametrize(("which", "name"), [(b, n) for n, (_, _, builds) in REFUSED.items() for b in builds])
def test_bug_is_refused(which, name):
    says, line_has, _ = REFUSED[name]
    expect_complaint(which, name, says, line_has, thread=line_has != LAUNCH)


@pytest.mark.parametrize(
    ("which", "name"), [(b, n) for n, (_, _, builds) in REFUSED_AFTER_THE_BLOCK.items() for b in builds]
)
def test_write_past_shared_memory_is_refused_without_sanitizer(which, name):
    says, line_has, _ = REFUSED_AFTER_THE_BLOCK[name]
    expect_complaint(which, name, says, line_has, thread=False)


@pytest.mark.parametrize("which", BUILDS)
@pytest.mark.parametrize("name", CORRECT)
def test_correct_kernel_is_right_and_repeatable_in_every_order(which, name):
    results = [outcomes(which)[order][name] for order in ORDERS]
    assert results == [CORRECT[name]] * len(ORDERS)


@pytest.mark.parametrize("name", ["missing_barrier", "last_thread_wins", "last_block_wins", "float_atomics"])
def test_dependence_on_order_shows(name):
    results = {repr(outcomes("plain")[order][name]) for order in ORDERS}
    assert len(results) > 1


@pytest.mark.parametrize("which", BUILDS)
@pytest.mark.parametrize(
    ("name", "where"),
    [("unwritten_shared", [5]), ("shared_of_previous_block", [0, 1]), ("result_of_inactive_lane", range(8, 16))],
)
def test_undefined_values_are_nan(which, name, where):
    for order in ORDERS:
        result = outcomes(which)[order][name]
        nans = [i for i, value in enumerate(result) if math.isnan(value)]
        # Which block comes first decides what the other finds in shared memory: NaN unless it wrote itself.
        assert nans and set(nans) <= set(where), order


def test_exception_of_a_kernel_reaches_the_caller():
    assert outcomes("plain")["forward"]["throws"].startswith("IndexError: array::at")


def test_every_case_is_tested():
    here = {*REFUSED, *REFUSED_AFTER_THE_BLOCK, *CORRECT, "throws", "missing_barrier", "last_thread_wins"}
    here |= {"last_block_wins", "float_atomics", "unwritten_shared", "shared_of_previous_block"}
    assert set(outcomes("sanitized")["forward"]) == here | {"result_of_inactive_lane"}


def test_unknown_order_is_refused(monkeypatch):
    module = emulation.load(module_path("plain"), "seeded_bugs")
    monkeypatch.setenv("FASTGAN_EMULATED_ORDER", "backwards")
    with pytest.raises(RuntimeError, match="'backwards'; it can be forward, reverse or shuffled"):
        module.run("written")


def test_only_the_ends_of_a_grid_are_executed_where_that_is_asked_for(monkeypatch):
    module = emulation.load(module_path("plain"), "seeded_bugs")
    for order in ORDERS:  # six blocks, of 256 numbers each but for the last
        monkeypatch.setenv("FASTGAN_EMULATED_ORDER", order)
        monkeypatch.setenv("FASTGAN_EMULATED_ENDS", "1")
        assert module.run("vector_copy") == [*range(256), *[0] * 1024, *range(1280, 1284)]
        monkeypatch.setenv("FASTGAN_EMULATED_ENDS", "3")
        assert module.run("vector_copy") == CORRECT["vector_copy"]
    monkeypatch.setenv("FASTGAN_EMULATED_ENDS", "0")
    with pytest.raises(RuntimeError, match="FASTGAN_EMULATED_ENDS is '0'; it must be 1 at least"):
        module.run("vector_copy")


def test_conversions_of_16_bit_types_round_as_torch_does():
    torch = pytest.importorskip("torch")
    module = emulation.load(module_path("plain"), "seeded_bugs")
    every_half = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    torch.manual_seed(0)
    noise = torch.randint(-(2**31), 2**31, (20000,)).to(torch.int32).view(torch.float32)
    halfway = (every_half[:-1] + every_half[1:]) / 2
    limits = torch.tensor([65519.996, 65520.0, 65504.0, 2**-24, 2**-25, 2**-26, 3.4e38, -0.0, math.inf])
    values = torch.cat([every_half, noise, halfway, limits])
    values = values[~values.isnan()]
    converted = torch.cat([torch.tensor(module.convert(part.tolist())) for part in values.split(1024)]).view(-1, 2)
    for column, dtype in enumerate((torch.float16, torch.bfloat16)):
        expected = values.to(dtype).float()
        assert torch.equal(converted[:, column].contiguous().view(torch.int32), expected.view(torch.int32)), dtype
    assert torch.tensor(module.convert([math.nan])).isnan().all()


def test_compiler_errors_are_passed_on(tmp_path):
    if reason := emulation.why_unavailable():
        pytest.skip(reason)
    source = tmp_path / "wrong.cu"
    source.write_text(
        '#include "common/gpu.h"\n__global__ void k(int n) {}\nvoid f(long n) { gpu::Launch(1, 1, 0, 0)(k, n); }\n'
    )
    with pytest.raises(RuntimeError, match="an integer argument is wider than the kernel's parameter"):
        emulation.build([source], "wrong")


if __name__ == "__main__":  # under AddressSanitizer, in a process of its own
    print(json.dumps(run_all(Path(sys.argv[1]))))
