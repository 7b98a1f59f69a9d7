"""Blur of the images that the discriminator sees early in a training."""

import pytest
import torch
import torch.nn.functional as F

from fastgan.augment import Blur
from tests.support.tiny_training import TinyTraining


def test_it_is_a_gaussian():
    image, width = torch.zeros(1, 1, 31, 31), 2.5
    image[0, 0, 15, 15] = 1
    found = Blur(width)(image)[0, 0]
    assert found.sum().item() == pytest.approx(1, abs=1e-3)
    places = torch.arange(-7.0, 8)
    expected = found[15, 15] * (-(places / width).square()).exp2()
    torch.testing.assert_close(found[15, 8:23], expected)
    torch.testing.assert_close(found, found.t())


def test_at_width_zero_images_stay_as_they_are():
    images, blur = torch.randn(2, 3, 16, 16), Blur(2.0)
    for width in (0.0, torch.zeros(())):
        blur.width = width
        assert torch.equal(blur(images), images)


def test_it_fades_out_in_a_training():
    """Widths of the first steps, of 8 images each; then the discriminator sees the images themselves."""
    training = TinyTraining("stylegan2", {"blur": 2.0, "blur_images": 16})
    seen, blur = [], training.step._blur
    blur.register_forward_hook(lambda *_: seen.append(blur.width))
    calls = []
    for _ in range(3):
        training.run(1)
        calls.append(len(seen))
    assert set(seen[: calls[0]]) == {2.0} and set(seen[calls[0] :]) == {1.0}
    assert 0 < calls[0] < calls[1] == calls[2]


def test_borders_are_black_as_of_a_zero_padded_image():
    images = torch.ones(1, 1, 9, 9)
    blur = Blur(1.0)
    taps = torch.tensor([0.5 ** (x * x) for x in range(-3, 4)])
    taps = taps / taps.sum()
    expected = F.conv2d(images, (taps[:, None] * taps)[None, None], padding=3)
    torch.testing.assert_close(blur(images), expected)
