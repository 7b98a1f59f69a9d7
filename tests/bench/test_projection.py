"""The bench of projection, on networks so small that it takes a second."""

import pytest
import torch

from bench import projection
from bench.projection import Found
from tests.support.tiny_run import untrained


def test_images_of_a_run_are_projected_one_by_one(tmp_path, capsys):
    run = untrained(tmp_path / "run", "stylegan2", ("dark", "light"))
    status = projection.main(["--checkpoint", str(run), "--seeds", "2", "--steps", "3", "--distance", "pixels"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{run}: 3 steps, ")
    assert [line.partition(": PSNR ")[0] for line in lines[1:3]] == ["seed 100000", "seed 100001"]
    near = sum(float(line.partition("PSNR ")[2].partition(" dB")[0]) >= 30 for line in lines[1:3])
    assert lines[3].startswith(f"{near} of 2 reach 30 dB") and status == (near < 2)
    assert " CPU s, " in lines[4]


def test_nine_of_ten_must_reach_it():
    results = [Found(seed, 30.0 if seed else 29.9, 0.1, 2.0, 1.0) for seed in range(10)]
    lines, enough = projection.report(results)
    assert lines == ["9 of 10 reach 30 dB; mean 30.0 dB", "2.0 CPU s, 1.0 s an image"] and enough
    assert not projection.report([*results[:9], results[0]])[1]


def test_a_fresh_network_draws_with_its_noise():
    generator, classes = projection.open_generator("fresh:16")
    assert classes == 0 and generator.synthesis.layers[-1].size == (16, 16)
    (seed, image), *_ = projection.images_of(generator, classes, 1)
    assert seed == projection.FIRST_SEED and image.shape == (1, 3, 16, 16)
    quiet = generator.synthesize(generator.styles(torch.zeros(1, generator.z_dim)), noise="none")
    assert not torch.allclose(
        quiet, generator.synthesize(generator.styles(torch.zeros(1, generator.z_dim)), noise="const")
    )
    with pytest.raises(ValueError):
        projection.open_generator("fresh:x")
