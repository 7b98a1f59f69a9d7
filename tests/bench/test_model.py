"""The predicted times of GPU kernels: their limits, the table beside measurements, and the preferred backend."""

import json
import re
from pathlib import Path

import pytest
import torch

from bench import model, sass
from bench.model import Row, Work
from fastgan.ops.backends import PREFERENCE
from fastgan.ops.fused import OPERATIONS
from tests.emulation import build as emulation
from tests.support import machine_code, traffic

MEGABYTES = 2.0**20


def kernel(arithmetic: int = 0, barrier: bool = False) -> sass.Kernel:
    """A kernel that copies 16 bytes in a step of its loop, after so many instructions of arithmetic."""
    steps = ["BAR.SYNC 0x0"] * barrier + [
        "LDG.E.128 R4, desc[UR4][R2.64]",
        *["FADD R4, R4, R5"] * arithmetic,
        "STG.E.128 desc[UR4][R2.64], R4",
    ]
    body = ["LDC R1, c[0x0][0x28]", *steps, "BRA 0x10", "EXIT"]
    code = sass.parse("\n".join(f"  /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(body)))
    return sass.Kernel("copy", 90, {"REG": 32, "SHARED": 0, "STACK": 0, "LOCAL": 0}, code)


def work(megabytes: float, blocks: int = 2112, **changes) -> Work:
    size = megabytes * MEGABYTES
    return Work(kernel(), blocks, 256, 0, size, size, size)._replace(**changes)


def test_a_large_copy_takes_its_bytes_at_copy_bandwidth():
    found = model.predict(work(512))
    assert found.limit == "memory"
    assert found.seconds == pytest.approx(512 * MEGABYTES / 3.0e12 / model.REACHED + 3e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"l2": 4 * 512 * MEGABYTES}, "L2"),  # each byte is read by four blocks
        ({"kernel": kernel(arithmetic=600)}, "issue"),
        ({"blocks": 33}, "latency"),  # a quarter of the multiprocessors
        ({"shared": 200 * 1024}, "latency"),  # one block of 8 warps on a multiprocessor
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_kernel_does_worse_takes_longer(changes, limit):
    good, bad = model.predict(work(512)), model.predict(work(512, **changes))
    assert bad.limit == limit and bad.seconds > 1.2 * good.seconds


def test_barriers_count_the_steps_of_a_kernel_that_has_them_in_its_loop():
    """Bytes do not, where some threads of a block load and store nothing."""
    idle, barriers = work(8, kernel=kernel(600, barrier=True)), 40.0
    found = model.predict(idle._replace(barriers=barriers))
    per_step = 256 / 32 * len(kernel(600, barrier=True).loops[0]) * idle.blocks
    issued = model.CARD.clock * model.CARD.multiprocessors * 4 * model.ISSUE
    assert found.limit == "issue"
    assert found.seconds == pytest.approx(barriers * per_step / issued + model.CARD.launch)
    assert found.seconds > 2 * model.predict(idle).seconds


ROWS = [
    Row("blur", "upfirdn2d", "32x64x256x256", way, backend, 1, seconds, 0.8, "memory")
    for way in ("forward", "backward")
    for backend, seconds in (("cuda", 1e-4), ("triton", 2e-4))
]


def test_predicted_and_measured_stand_in_one_table(tmp_path):
    """Results of gpu_check.sh are flat, those of pytest-benchmark nested."""
    shared = {"form": "blur", "shape": "32x64x256x256", "dtype": "bf16", "forward_ms": 0.3}
    flat, nested = {**shared, "backend": "cuda", "fastgan_ms": 0.8}, {**shared, "backend": "triton", "fastgan_ms": 0.4}
    (tmp_path / "gpu_check.json").write_text(json.dumps({"benchmarks": [flat]}))
    (tmp_path / "operations_h100.json").write_text(json.dumps({"benchmarks": [{"extra_info": nested}]}))
    on_card = model.measured(sorted(tmp_path.glob("*.json")))
    lines = model.table(ROWS, on_card).splitlines()
    assert "| blur | 32x64x256x256 | forward | cuda | 1 | 100 | 80% | memory | 300 |" in lines
    assert "| blur | 32x64x256x256 | backward | triton | 1 | 200 | 80% | memory | 100 |" in lines
    assert model.table(ROWS, {}).splitlines()[-1].endswith("| memory |  |")


def test_measurements_replace_predictions_in_the_preference():
    (predicted,) = model.preferences(ROWS, {})
    assert predicted == ("upfirdn2d", {"forward": 2.0, "backward": 2.0}, False, "cuda")
    on_card = {("blur", "32x64x256x256", "forward", name): s for name, s in (("cuda", 3e-4), ("triton", 1e-4))}
    (seen,) = model.preferences(ROWS, on_card)
    assert seen.from_card and seen.faster == "triton" and seen.ratios["forward"] == pytest.approx(1 / 3)
    assert "| upfirdn2d | 0.33 |  |  | card | triton |" in model.preference_table([seen])


def committed() -> dict[str, str]:
    """The preferred backend of operations in docs/gpu_counters.md."""
    text = (Path(__file__).parents[2] / "docs/gpu_counters.md").read_text()
    found = re.findall(r"^\| (\w+) \|[ \d.|]*\| (?:model|card) \| (cuda|triton) \|$", text, re.M)
    return dict(found)


def test_operations_use_the_backend_that_the_table_prefers():
    found = committed()
    assert found and found.keys() <= OPERATIONS.keys()
    assert {name: backend for name, backend in found.items() if backend != PREFERENCE["cuda"][0]} == {}


def test_the_table_compares_every_operation_that_has_triton_kernels():
    compared = {form.operation for form in traffic.FORMS.values() if form.shapes.get("cuda")}
    assert {name for name in OPERATIONS if model.has_triton(name)} <= compared


@pytest.mark.slow
def test_the_model_predicts_the_kernels_of_the_extension(monkeypatch):
    if reason := emulation.why_unavailable():
        pytest.skip(reason)
    read = machine_code.kernels()
    monkeypatch.setattr(sass, "read_kernels", lambda path: read)
    kernels = model.read([])
    if not kernels:
        pytest.skip("the extension has no machine code for sm_90")
    found = list(model.rows(kernels, [traffic.FORMS["pixel_norm"]], torch.bfloat16, True, shapes=1))
    assert [(row.backend, row.direction) for row in found] == [
        (backend, direction) for backend in ("cuda", "triton") for direction in model.DIRECTIONS
    ]
    assert all(0.3 < row.share < 1 and row.launches == 1 for row in found)
