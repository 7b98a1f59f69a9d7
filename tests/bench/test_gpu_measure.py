"""The measurements of bench/gpu_measure.sh, on a CPU and a tiny network."""

import json
import sys
from functools import partial

import pytest

from bench import budget, forms, gpu_measure
from bench.official_step import OfficialStep

SMALL = budget.Case("stylegan2", 16, batch=8, network={"channel_base": 64, "channel_max": 8, "mapping_layers": 1})


@pytest.mark.slow
def test_the_step_is_timed_captured_and_launched_and_profiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_measure, "seconds_per_kind", partial(gpu_measure.seconds_per_kind, rounds=1))
    rows = gpu_measure.measure_step(SMALL, bf16=True)
    assert [row["what"] for row in rows] == [
        f"step {how}, cudnn.benchmark {choice}" for how in ("captured", "launched") for choice in ("off", "on")
    ]
    assert all(row["fastgan_ms"] > 0 and row["kinds_ms"].keys() == gpu_measure.KINDS.keys() for row in rows)
    shown = capsys.readouterr().out
    assert "images/s" in shown and "aten::" in shown  # the second is the profiler's table
    for _ in range(2):
        gpu_measure.add_rows(tmp_path / "rows.json", rows)
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [each["extra_info"]["what"] for each in content["benchmarks"]] == 2 * [row["what"] for row in rows]


@pytest.mark.slow
def test_every_convolution_of_the_step_is_timed(monkeypatch):
    monkeypatch.setattr(gpu_measure.measure, "alternate", lambda calls, *_, **__: {"": _Timing(calls[""]())})
    rows = gpu_measure.measure_convolutions(SMALL)
    names = "\n".join(row["what"] for row in rows)
    assert len(rows) > 10 and all(row["tflop_per_s"] > 0 for row in rows)
    assert "convolution, input 8x4x16x16, weight 4x4x3x3, stride 1" in names
    assert "gradient of input and weight" in names and "transposed stride 2" in names


class _Timing:
    seconds = 1.0

    def __init__(self, result):
        assert result is not None


def test_each_key_operation_runs_on_its_preferred_backend(monkeypatch, capsys):
    cases = [pair for pair in forms.key_cases() if pair[0].form.name == "pixel_norm"]
    monkeypatch.setattr(gpu_measure, "key_cases", lambda: cases)
    gpu_measure.run_kernels()
    assert capsys.readouterr().out.splitlines() == [f"{case}-{backend}" for case, backend in cases]


NETWORKS = """
from torch import nn
class Generator(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.mapping, self.synthesis = nn.Linear(1, 1), nn.Linear(1, 1)
class Discriminator(nn.Linear):
    def __init__(self, **options):
        super().__init__(1, 1)
"""
LOSS = """
class StyleGAN2Loss:
    phases = []
    def __init__(self, **options):
        self.networks = options["G_mapping"], options["D"]
    def accumulate_gradients(self, phase, real_img, gain, **rest):
        self.phases.append((phase, gain))
        network = self.networks["GD".index(phase[0])]
        network.weight.sum().backward()
"""


@pytest.fixture
def official_imports(monkeypatch):
    """Forgets the path and the modules of the official code afterwards: other tests have stand-ins of these names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("training", "torch_utils")]:
        del sys.modules[name]


def test_the_official_step_has_the_phases_of_its_training_loop(tmp_path, official_imports, capsys):
    for path, text in {
        "training/networks.py": NETWORKS, "training/loss.py": LOSS, "torch_utils/ops/bias_act.py": "_plugin = 1",
        "torch_utils/ops/upfirdn2d.py": "_plugin = None",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    step = OfficialStep(tmp_path, 16, 4)
    step.loss.phases.clear()
    for number in (1, 4, 16):
        step(number)
    main, path, r1 = ("Gmain", 1), ("Greg", 4), ("Dreg", 16)
    assert step.loss.phases == [main, ("Dmain", 1), main, path, ("Dmain", 1), main, path, ("Dmain", 1), r1]
    assert "plugins built: bias_act\n" in capsys.readouterr().out
