"""StyleGAN3's generator: sizes and filters by the paper's formulas, equivariance of an untrained network."""

import math

import pytest
import torch

from fastgan import models
from fastgan.models.alias_free import bands, low_pass

OFFICIAL = {  # sides of the published networks' layers, by resolution
    256: [36, 36, 36, 52, 52, 84, 84, 148, 148, 148, 276, 276, 276, 256, 256],
    1024: [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024],
}


def config(resolution=32, variant="t", **options):
    given = {"z_dim": 16, "channel_base": 1024, "channel_max": 16, "margin": 10, "conv_clamp": 256.0}
    return models.ModelConfig("stylegan3", resolution=resolution, variant=variant, **(given | options))


@pytest.mark.parametrize("resolution", OFFICIAL)
def test_sizes_are_those_of_the_published_networks(resolution):
    found = bands(config(resolution, channel_base=32768, channel_max=512))
    assert [band.size for band in found] == OFFICIAL[resolution]


@pytest.mark.parametrize(
    ("taps", "cutoff", "width", "rate"), [(12, 2.0, 12.0, 32), (24, 5.5, 20.0, 128), (12, 16, 9, 64)]
)
def test_a_filter_is_that_of_scipy(taps, cutoff, width, rate):
    signal = pytest.importorskip("scipy.signal")
    expected = signal.firwin(taps, cutoff, width=width, fs=rate)
    torch.testing.assert_close(low_pass(taps, cutoff, width, rate).double(), torch.from_numpy(expected))


def test_a_radial_filter_is_symmetric_and_keeps_the_mean():
    filter = low_pass(12, 8.0, 10.0, 64, radial=True)
    assert torch.equal(filter, filter.t()) and torch.allclose(filter, filter.flip(0))
    assert math.isclose(filter.sum().item(), 1, rel_tol=1e-5)


def translated(image, x, y):
    """The image moved right by x and down by y pixels, and where both images have content."""
    h, w = image.shape[2:]
    moved = torch.zeros_like(image)
    rows, columns = slice(max(y, 0), h + min(y, 0)), slice(max(x, 0), w + min(x, 0))
    moved[:, :, rows, columns] = image[:, :, max(-y, 0) : h + min(-y, 0), max(-x, 0) : w + min(-x, 0)]
    return moved[:, :, rows, columns], (rows, columns)


@torch.no_grad()
def equivariance_to_translation(generator, resolution, x, y):
    """PSNR in dB between moving the input and moving the image, for images of range [-1, 1]."""
    ws = generator.styles(torch.randn(4, generator.z_dim))
    plain = generator.synthesize(ws)
    generator.synthesis.input.transform.copy_(
        torch.tensor([[1.0, 0.0, -x / resolution], [0.0, 1.0, -y / resolution], [0.0, 0.0, 1.0]])
    )
    moved = generator.synthesize(ws)
    expected, (rows, columns) = translated(plain, x, y)
    error = (moved[:, :, rows, columns] - expected).square().mean().item()
    return 10 * math.log10(4 / error)


@pytest.mark.parametrize("variant", ["t", "r"])
def test_an_untrained_network_moves_with_its_input(variant):
    torch.manual_seed(0)
    generator, _ = models.build(config(64, variant, synthesis_layers=6))
    assert equivariance_to_translation(generator.eval(), 64, 5, -3) > 50
