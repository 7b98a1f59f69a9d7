"""Images that are not square or are transparent, from the option to the grid, for every family."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import models
from fastgan.augment import Augment
from fastgan.data.images import parse_size
from fastgan.errors import UserError
from fastgan.penalties import logits_and_squared_grad
from fastgan.runs import config as configuration
from fastgan.runs.grid import Section, draw_grid
from fastgan.training import configure
from tests.support.image_sources import encode, make_image, prepare_images
from tests.support.tiny_run import WIDTHS, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.mark.parametrize(
    ("resolution", "square", "first"),
    [(32, 32, (4, 4)), ("64x32", 32, (4, 8)), ("32x64", 32, (8, 4)), ("1024x768", 512, (6, 8)), ("80x64", 64, (4, 5))],
)
def test_a_resolution_is_a_base_size_doubled(resolution, square, first):
    assert configuration.pyramid(resolution) == (square, first)
    height, width = models.ModelConfig(resolution=square, base_size=first).feature_size(square)
    assert f"{width}x{height}" == ("32x32" if resolution == 32 else resolution)


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan", "fastgan"])
@pytest.mark.parametrize("channels", [3, 4])
def test_generators_and_discriminators_of_any_shape(arch, channels):
    options = {"resolution": 16, "channel_base": 128, "channel_max": 16, "z_dim": 8, "channels": channels}
    torch.manual_seed(0)
    generator, discriminator = models.build(models.ModelConfig(arch=arch, base_size=[4, 6], **options))
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, channels, 16, 24)
    images = images.detach()
    logits, squares = logits_and_squared_grad(discriminator, images)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).reshape(4, -1).mean(1).sum(), images)
    torch.testing.assert_close(squares, gradient.square().sum((1, 2, 3)), rtol=1e-4, atol=1e-8)
    logits.sum().backward()
    assert gradient.flatten(2).abs().sum((0, 1)).min() > 0, "a pixel is not looked at"


def test_progressive_families_refuse_images_that_are_not_square():
    with pytest.raises(
        UserError, match=r"--resolution 64x32: must be a power of two for pggan, whose images are square"
    ):
        configure.resolve(configure.parse(["--arch", "pggan", "--resolution", "64x32"]))
    with pytest.raises(ValueError, match=r"base_size is \(4, 8\), must be \(4, 4\) for pggan"):
        models.build(models.ModelConfig(arch="pggan", base_size=(4, 8)))


@pytest.mark.parametrize("resolution", ["28", "48", "24x16"])
@pytest.mark.parametrize(
    "arch, variant",
    [
        ("mlp", ""),
        ("dcgan", "transposed"),
        ("dcgan", "upsample"),
        ("cgan", "conv"),
        ("cgan", "mlp"),
        ("stylegan2", ""),
        ("r3gan", ""),
        ("fastgan", ""),
    ],
)
def test_base_sizes_of_5_6_and_7(arch, variant, resolution):
    """MNIST's are 28 = 4 * 7."""
    options = ["--arch", arch, "--resolution", resolution, *(["--variant", variant] if variant else [])]
    config = configure.resolve(configure.parse(options))
    size, first = configuration.pyramid(config.data.resolution)
    model = models.ModelConfig(
        arch=arch, variant=variant, resolution=size, base_size=first, num_classes=3, z_dim=8, channel_base=512,
        channel_max=16,
    )  # fmt: skip
    generator, discriminator = models.build(model)
    label = torch.tensor([0, 1, 2, 0])
    images = generator(torch.randn(4, 8), label)
    width, height = parse_size(resolution)
    assert images.shape == (4, 1, height, width)
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images, label).sum(), images)
    assert gradient.abs().sum((0, 1)).min() > 0, "a pixel is not looked at"


@pytest.mark.parametrize("resolution", ["50", "36x36", "50x30", "8x9", "64x", "4x8"])
def test_a_shape_that_does_not_halve_is_refused(resolution):
    with pytest.raises(UserError, match=r"--resolution .*: must be"):
        configure.resolve(configure.parse(["--resolution", resolution]))


def test_equal_width_and_height_are_one_number():
    assert configure.resolve(configure.parse(["--resolution", "64x64"])).data.resolution == 64


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan", "fastgan"])
def test_training_on_transparent_images_that_are_not_square(tmp_path, arch):
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(encode(make_image(number, 24, 16, "RGBA")))
    assert (
        prepare_images(tmp_path / "in", "--resolution", "24x16", "--channels", "4", "--out", tmp_path / "out.zip") == 0
    )
    more = ["--resolution", "24x16", "--channels", "4", "--arch", arch, "--images", "8", "--augment", "fixed"]
    found = train(tmp_path / "out.zip", tmp_path / arch, *more, "--channel-base", "128", *WIDTHS[2:])
    from fastgan.runs.checkpoint import load_generator
    from fastgan.runs.drawing import draw

    generator, _ = load_generator(found)
    assert draw(generator, torch.randn(2, 8), None).shape == (2, 16, 24, 4)
    with Image.open(found / "grid-000000008.png") as grid:
        assert grid.mode == "RGB"


def test_colour_augmentation_leaves_transparency_alone():
    augment = Augment(1.0, groups=("color",))
    images, parameters = torch.rand(4, 4, 8, 8), augment.draw(4)
    changed = augment.transform(images, parameters)
    assert torch.equal(changed[:, 3], images[:, 3]) and not torch.allclose(changed[:, :3], images[:, :3])
    torch.testing.assert_close(changed[:, :3], augment.transform(images[:, :3], parameters))


def test_a_grid_shows_transparency_as_a_checkerboard():
    clear = np.zeros((1, 16, 16, 4), np.uint8)
    opaque = np.full((1, 16, 16, 4), 255, np.uint8)
    opaque[..., :3] = 7
    grid = np.asarray(draw_grid([Section("", [("", clear), ("", opaque)])], 16))
    colours = {tuple(colour) for colour in grid.reshape(-1, 3)}
    assert {(204, 204, 204), (255, 255, 255), (7, 7, 7)} <= colours
