"""LPIPS, beside torchmetrics, with VGG weights that are random: the real ones are never downloaded."""

import pytest
import torch
from PIL import Image

from fastgan.cli.project import main as project
from fastgan.errors import UserError
from fastgan.metrics import perceptual, registry
from fastgan.metrics.perceptual import LPIPS
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file that is laid out like torchvision's."""
    torch.manual_seed(0)
    tensors, before = {}, 3
    for number, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6, strict=True
    ):
        tensors[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(width)
        before = width
    path = tmp_path_factory.mktemp("vgg") / registry.VGG_FILE
    torch.save(tensors | {"classifier.0.bias": torch.zeros(3)}, path)
    return path


def test_it_is_lpips_of_torchmetrics_and_has_a_gradient(file, monkeypatch):
    distance = LPIPS(file)
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


def test_images_are_projected_by_it(file, tmp_path, capsys):
    """Of a network of 8x8 images, which are enlarged for VGG."""
    run = untrained(tmp_path / "run", "stylegan2")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    argv = [str(tmp_path / "red.png"), "--checkpoint", str(run), "--steps", "1"]
    assert project([*argv, "--distance", "lpips", "--vgg-weights", str(file)]) == 0
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
