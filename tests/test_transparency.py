"""Transparent images: premultiplied for networks and metrics, drawn on a checkerboard."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck, gradgradcheck

from fastgan import studies
from fastgan.cli.generate import main as generate
from fastgan.runs import checkpoint
from fastgan.runs.grid import draw_grid
from fastgan.training import loop
from fastgan.training.step import Step
from fastgan.transparency import premultiplied
from tests.support.tiny_run import train

pytestmark = pytest.mark.usefixtures("one_cache")

OPTIONS = ["--channels", "4", "--images", "16"]
NOISY = ["--arch", "stylegan", "--grow-from", "8"]


@pytest.fixture(scope="module")
def stickers(tmp_path_factory):
    """8x8 images, opaque in the middle; transparent pixels have random colours."""
    where = tmp_path_factory.mktemp("stickers")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        pixels[..., 3] = 0
        pixels[2:6, 2:6, 3] = 255
        Image.fromarray(pixels).save(where / f"{number}.png")
    return where


@pytest.fixture(scope="module")
def run(stickers, tmp_path_factory):
    return train(stickers, tmp_path_factory.mktemp("run") / "run", *NOISY, *OPTIONS)


def test_premultiplied_is_colour_times_coverage():
    rgba = torch.tensor([[0.2, 0.4, 1.0, 0.0], [0.5, 0.0, 1.0, 0.5], [0.5, 0.0, 1.0, 1.0]]).t()
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.25, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0]]).t()
    as_image = lambda x: x[None, :, :, None] * 2 - 1
    torch.testing.assert_close(premultiplied(as_image(rgba)), as_image(expected))


def test_coverage_is_clamped():
    images = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [-1.5, 1.5]])[None, :, :, None]
    *colours, alpha = premultiplied(images)[0, :, :, 0]
    assert torch.equal(torch.stack(colours), torch.tensor([[-1.0, 0.5]]).expand(3, 2))
    torch.testing.assert_close(alpha, torch.tensor([-1.05, 1.05]))


def test_noise_past_the_ends_of_alpha_hardly_counts():
    images = torch.zeros(1, 4, 3, 1)
    images[0, 3, :, 0] = torch.tensor([-1.2, 0.0, 1.2])
    images.requires_grad_()
    (grad,) = torch.autograd.grad(premultiplied(images)[:, 3].sum(), images)
    torch.testing.assert_close(grad[0, 3, :, 0], torch.tensor([0.1, 1.0, 0.1]))


def test_opaque_images_and_images_without_alpha_are_unchanged():
    for channels in (1, 3):
        images = torch.randn(2, channels, 4, 4)
        assert premultiplied(images) is images
    images = torch.rand(2, 4, 4, 4) * 2 - 1
    images[:, 3] = 1
    torch.testing.assert_close(premultiplied(images), images)


def test_memory_format_and_derivatives():
    images = torch.randn(2, 4, 5, 3).contiguous(memory_format=torch.channels_last)
    assert premultiplied(images).is_contiguous(memory_format=torch.channels_last)
    images = (torch.rand(2, 4, 2, 3, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    assert gradcheck(premultiplied, images, fast_mode=True) and gradgradcheck(premultiplied, images, fast_mode=True)


@pytest.mark.parametrize("arch", ["stylegan2", "pggan"])
def test_a_discriminator_sees_no_colours_of_transparent_pixels(stickers, tmp_path, monkeypatch, arch):
    seen = []
    judge = Step._judge

    def record(self, images, *rest):
        seen.append(images.detach())
        return judge(self, images, *rest)

    monkeypatch.setattr(Step, "_judge", record)
    shown = []
    monkeypatch.setattr(loop, "fade_reals", lambda images, *_: shown.append(images) or images)
    train(stickers, tmp_path / "run", "--arch", arch, *OPTIONS, "--grow-from", "8" if arch == "pggan" else "0")
    assert len(seen) > 2 and bool(shown) == (arch == "pggan")
    for images in (*seen, *shown):
        clear = (images[:, 3:] <= -1).expand(-1, 3, -1, -1)
        assert (images[:, :3][clear] == -1).all()
    real = next(images for images in seen if (images[:, 3].abs() == 1).all())
    assert (real[:, 3, 0, 0] == -1).all() and (real[:, :3, 2:6, 2:6] > -1).any()


def test_stylegan2_has_no_noise_to_dither_alpha_with(stickers, tmp_path, capsys):
    own = train(stickers, tmp_path / "run", *OPTIONS)
    generator, _ = checkpoint.load_generator(own)
    assert "noise" not in generator.supports
    assert not [name for name, _ in generator.named_parameters() if "strength" in name]
    capsys.readouterr()
    assert generate(["noise", "--checkpoint", str(own)]) == 2
    assert capsys.readouterr().err.strip() == "error: noise: stylegan2 has no noise: its layers have no random input"


def test_the_deviation_by_noise_is_of_visible_colours(run):
    generator, _ = checkpoint.load_generator(run)
    colours = torch.randn(9, 3, 8, 8)
    drawn = iter(colours)

    def synthesize(ws, noise):
        image = torch.full((1, 4, 8, 8), -1.0)
        image[:, :3] = next(drawn)
        return image

    generator.synthesize = synthesize
    assert (studies.noise_deviation(generator, [0], draws=9) == 0).all()


def test_the_picture_of_noise_is_opaque_where_it_shows_a_deviation(run, tmp_path, monkeypatch):
    generator, config = checkpoint.load_generator(run)
    for module in generator.modules():
        if getattr(module, "strength", None) is not None:
            torch.nn.init.constant_(module.strength, 0.5)
    monkeypatch.setattr(checkpoint, "load_generator", lambda *_: (generator, config))
    drawn = []
    monkeypatch.setattr("fastgan.cli.generate.draw_grid", lambda *given: drawn.extend(given[0]) or draw_grid(*given))
    argv = ["noise", "--checkpoint", str(run), "--draws", "4", "--seeds", "0-1", "--out", str(tmp_path / "noise.png")]
    assert generate(argv) == 0
    (section,) = drawn
    deviations = np.stack([images[4] for _, images in section.rows])
    assert (deviations[..., 3] == 255).all() and deviations[..., :3].max() == 255
    assert (deviations[..., :1] == deviations[..., :3]).all()
    assert any((images[:4, ..., 3] < 255).any() for _, images in section.rows)  # others keep their transparency
