"""StyleGAN3's generator: sizes and filters by the paper's formulas, equivariance of an untrained network."""

import math
from pathlib import Path

import pytest
import torch
from scipy.signal import firwin

from fastgan import models
from fastgan.models.alias_free import bands, low_pass
from fastgan.training import configure

OFFICIAL = {  # sides of the published networks' layers, by resolution
    256: [36, 36, 36, 52, 52, 84, 84, 148, 148, 148, 276, 276, 276, 256, 256],
    1024: [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024],
}


def config(resolution=32, variant="t", **options):
    given = {
        "z_dim": 16,
        "channel_base": 1024,
        "channel_max": 16,
        "synthesis_layers": 14,
        "margin": 10,
        "conv_clamp": 256.0,
    }
    return models.ModelConfig("stylegan3", resolution=resolution, variant=variant, **(given | options))


@pytest.mark.parametrize("resolution", OFFICIAL)
def test_sizes_are_those_of_the_published_networks(resolution):
    found = bands(config(resolution, channel_base=32768, channel_max=512))
    assert [band.size for band in found] == OFFICIAL[resolution]


@pytest.mark.parametrize(
    ("taps", "cutoff", "width", "rate"), [(12, 2.0, 12.0, 32), (24, 5.5, 20.0, 128), (12, 16, 9, 64)]
)
def test_a_filter_is_that_of_scipy(taps, cutoff, width, rate):
    expected = firwin(taps, cutoff, width=width, fs=rate)
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


PUBLISHED = {  # parameters of the generator with the published widths
    ("t", 256): 28_472_133, ("t", 512): 24_873_519, ("t", 1024): 22_313_167,
    ("r", 256): 18_816_387, ("r", 512): 16_665_594, ("r", 1024): 15_093_151,
}  # fmt: skip


@pytest.mark.parametrize(("variant", "resolution"), PUBLISHED)
def test_published_networks_have_the_sizes_of_the_page(variant, resolution):
    options = ["--arch", "stylegan3", "--variant", variant, "--resolution", str(resolution), "--channels", "3"]
    network = vars(configure.resolve(configure.parse(options)).network)
    with torch.device("meta"):
        generator, discriminator = models.build(models.ModelConfig(**network, resolution=resolution, channels=3))
    count = lambda network: sum(parameter.numel() for parameter in network.parameters())
    assert count(generator) == PUBLISHED[variant, resolution]
    row = f"| `stylegan3`, {variant}, {resolution}x{resolution} | {count(generator):,} | {count(discriminator):,} |"
    assert row in (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_magnitudes_are_those_of_the_inputs_of_the_layers():
    torch.manual_seed(0)
    generator, _ = models.build(config(synthesis_layers=4))
    inputs = []
    for layer in generator.synthesis.layers:
        layer.register_forward_hook(lambda layer, given, result: inputs.append(given[0].square().mean()))
    z = torch.randn(4, 16)
    with torch.no_grad():
        generator(z)  # of the discriminator's phase, which does not count
    generator(z)
    generator.synthesis.update_magnitudes(0.25, lambda sums: sums)
    found = [layer.magnitude_ema for layer in generator.synthesis.layers]
    torch.testing.assert_close(found, [0.75 + 0.25 * square for square in inputs[:5]])
    generator.synthesis.update_magnitudes(0.25, lambda sums: sums)  # no pass since then
    assert found == [layer.magnitude_ema for layer in generator.synthesis.layers]


def test_images_keep_their_contrast_once_magnitudes_are_known():
    """With 14 layers an untrained network is almost grey at first."""
    torch.manual_seed(0)
    generator, _ = models.build(config(synthesis_layers=14, tanh=False))
    z, spread = torch.randn(4, 16), []
    for _ in range(15):
        spread.append(generator(z).std())
        generator.synthesis.update_magnitudes(1.0, lambda sums: sums)
    assert spread[0] < 0.05 < 0.1 < spread[-1]


def test_layers_of_low_rates_compute_in_fp32():
    generator, _ = models.build(config(256, synthesis_layers=5, channel_max=4))
    dtypes = []
    for layer in generator.synthesis.layers:
        layer.register_forward_hook(lambda layer, given, result: dtypes.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        generator.eval()(torch.randn(1, 16))
    low = [band.rate <= 16 for band in bands(config(256, synthesis_layers=5))]
    assert dtypes == [torch.float32 if each else torch.bfloat16 for each in low]
    assert any(low) and not all(low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synthesis_layers": 2}, "synthesis_layers is 2, must be more than critical_layers 2"),
        ({"margin": -1}, "margin is -1, must be 0 at least"),
        ({"base_size": (4, 8)}, "must be \\(4, 4\\) for stylegan3: its images are square"),
        ({"variant": "x"}, "variant is 'x', must be t or r for stylegan3"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(config(**options))
