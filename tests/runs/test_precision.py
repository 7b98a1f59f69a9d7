"""The dtype of `--amp`, by what the CPU can do."""

import pytest
import torch
from torch import nn

from fastgan.runs import precision


@pytest.mark.parametrize(
    "features, dtype", [([], torch.float32), (["AVX512-BF16"], torch.bfloat16), (["AMX"], torch.bfloat16)]
)
def test_amp_on_a_cpu_is_bf16_if_it_has_bf16_instructions(monkeypatch, features, dtype):
    monkeypatch.setattr(precision, "cpu_bf16_features", lambda: features)
    chosen = precision.choose(True, torch.device("cpu"))
    assert chosen.dtype == dtype
    assert all(name in chosen.reason for name in features or ["--amp does nothing here"])
    layer = nn.Linear(2, 2)
    with chosen.autocast():
        assert layer(torch.zeros(1, 2)).dtype == dtype
    assert precision.choose(False, torch.device("cpu")).dtype == torch.float32


def test_amp_is_fp32_if_torch_does_not_report_the_cpu_s_features(monkeypatch):
    """The checks are private functions of torch; without them fp32 is always right."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert precision.cpu_bf16_features() == []
    assert precision.choose(True, torch.device("cpu")).dtype == torch.float32


def test_settings_of_a_training_on_a_gpu_are_those_that_the_doctor_prints():
    before = precision.GpuSettings(
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )
    try:
        precision.GPU_TRAINING.apply()
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        before.apply()
    assert "cudnn.benchmark" in str(precision.GPU_TRAINING)
    assert "convolutions in TF32, matrix products in fp32" in str(precision.GPU_TRAINING)
