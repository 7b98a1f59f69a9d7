"""The table of `bench.sampling`."""

import json

import pytest
import torch

from bench import measure, sampling
from fastgan.models import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_row_compares_the_sampler_with_loops(monkeypatch, tmp_path, capsys):
    tiny = ModelConfig(resolution=16, z_dim=8, channel_base=256, channel_max=16)
    monkeypatch.setattr(sampling, "configured", lambda size: tiny)
    monkeypatch.setattr(sampling, "SIZES", (64,))
    monkeypatch.setattr(sampling, "ROUNDS", (2, 2))
    monkeypatch.setattr(sampling, "NAIVE_BATCH", 3)
    monkeypatch.setattr(sampling, "FRAMES", 2)
    monkeypatch.setattr(measure, "matrix_rate", lambda dtype, clock: 1e9)
    monkeypatch.setattr(measure, "has_bf16", lambda: False)
    sampling.main(["--json", str(tmp_path / "rows.json"), "--cpu-time"])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["form"], row["dtype"], row["batch"]) == ("StyleGAN2, 3x64x64", "fp32", 64)
    figures = ("images_per_s", "vs_naive_1", "vs_naive_3", "vs_plain", "of_floor", "latency_ms", "frames_per_s")
    assert all(row[key] > 0 for key in figures)
    *_, heading, line = capsys.readouterr().out.splitlines()
    assert "images/s" in heading and "CPU time" not in heading and line.startswith("StyleGAN2, 3x64x64")


def test_a_sampler_that_draws_other_images_is_refused(monkeypatch):
    model = ModelConfig(resolution=8, z_dim=8, channel_base=64, channel_max=8)
    generator, other = sampling.network(model), sampling.network(model)
    chosen = sampling.precision.choose(False, measure.device())
    sampler = sampling.Sampler(other, model, [], chosen)
    sampling._require_agreement(sampler, generator)
    with torch.no_grad():
        other.synthesis.const.mul_(2)
        other.synthesis.first.conv.weight.neg_()
    with pytest.raises(AssertionError, match="images differ by"):
        sampling._require_agreement(sampler, generator)


def test_an_unknown_case_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        sampling.main(["stylegan2-63"])
    assert "there are: stylegan2-64, stylegan2-256" in capsys.readouterr().err
