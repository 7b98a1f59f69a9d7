"""LPIPS, beside torchmetrics, with VGG weights that are random: the real ones are never downloaded."""

import json
import re

import pytest
import torch
from PIL import Image

from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.project import main as project
from fastgan.errors import UserError
from fastgan.metrics import path_length, perceptual, registry
from fastgan.metrics.perceptual import LPIPS
from fastgan.runs.networks import open_networks
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.slow


def test_it_is_lpips_of_torchmetrics_and_has_a_gradient(vgg_file, monkeypatch):
    distance = LPIPS(vgg_file)
    images, others = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    expected = distance.network(images, others).flatten()
    torch.testing.assert_close(distance(images, others), expected, rtol=1e-4, atol=1e-6)
    assert (expected > 0).all() and not distance(images, images).any()
    grey = images[:, :1]
    assert torch.equal(distance(grey, others), distance(grey.expand(-1, 3, -1, -1), others))
    halves = [torch.nn.functional.avg_pool2d(each, 2) for each in (images, others)]
    of_halves = distance(*halves)
    monkeypatch.setattr(perceptual, "LARGEST", 16)
    torch.testing.assert_close(distance(images, others), of_halves)
    images.requires_grad_()
    distance(images, others).sum().backward()
    assert images.grad.isfinite().all() and images.grad.any()


def test_path_lengths_by_it(vgg_file, tmp_path, capsys):
    """The report names the distance, and weights that are not the published ones."""
    run = untrained(tmp_path / "run", "stylegan2")
    out, names = tmp_path / "metrics.json", "ppl-w-lpips,ppl-z-end-lpips"
    argv = ["--checkpoint", str(run), "--samples", "4", "--json", str(out), "--metrics"]
    assert evaluate([*argv, names, "--vgg-weights", str(vgg_file)]) == 0
    found = json.loads(out.read_text())
    generator = open_networks(run).load(torch.device("cpu"))
    ends, places = path_length.draw_paths(4, generator.z_dim, seed=0)
    for metric in names.split(","):
        values = registry.METRICS[metric].values
        of = metric.removesuffix("-lpips")
        lengths = path_length.path_lengths(generator, ends, places, None, of, LPIPS(vgg_file))
        assert found["samples"][values[0]] == pytest.approx(path_length.summary(lengths), rel=1e-3)
    text, weights = capsys.readouterr().out, found["features"][registry.VGG]
    assert re.search(r"\npath length, by LPIPS with VGG:\n  PPL in w +[\d.]+\n  PPL in z, ends +[\d.]+\n", text)
    assert f"\n{weights} is not the network of published numbers" in text and weights.startswith("vgg16-")
    error = error_of(evaluate, [*argv, "ppl-w", "--vgg-weights", str(vgg_file)], capsys)
    assert error == f"--vgg-weights {vgg_file}: no metric of --metrics needs it; leave it out"


def test_path_lengths_by_it_can_be_had_with_its_weights(vgg_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    metrics = "ppl-w-lpips", "ppl-z-end-lpips"
    assert {*metrics} <= {*registry.available("stylegan2", 16, {registry.VGG: str(vgg_file)})[0]}
    found, missing = registry.available("stylegan2", 16, {registry.VGG: None})
    assert not {*metrics} & {*found}
    why = f"put {registry.VGG_URL} into {tmp_path}, or give the file with --vgg-weights"
    assert all(why in missing[metric] for metric in metrics)


def test_images_are_projected_by_it(vgg_file, tmp_path, capsys):
    """Of a network of 8x8 images, which are enlarged for VGG."""
    run = untrained(tmp_path / "run", "stylegan2")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    argv = [str(tmp_path / "red.png"), "--checkpoint", str(run), "--steps", "1"]
    assert project([*argv, "--distance", "lpips", "--vgg-weights", str(vgg_file)]) == 0
    assert "red.png: PSNR " in capsys.readouterr().out and (run / "projected.safetensors").exists()


def test_a_file_of_something_else(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_text("no tensors")
    for name in ("x.pth", "y.pth"):
        with pytest.raises(UserError, match=f"{name} has no weights of VGG-16 as torchvision's file has"):
            LPIPS(tmp_path / name)


def test_weights_that_are_not_there_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    argv = ["x.png", "--checkpoint", "example:digits", "--distance", "lpips"]
    assert f"put {registry.VGG_URL} into " in error_of(project, argv, capsys)
    error = error_of(project, [*argv, "--vgg-weights", str(tmp_path / "none.pth")], capsys)
    assert f"--vgg-weights {tmp_path / 'none.pth'}: no such file; download {registry.VGG_URL}" in error
