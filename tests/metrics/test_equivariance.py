"""Equivariance metrics: known errors of exact drawings, and the values that the networks' construction gives."""

import math

import pytest
import torch

from fastgan import models
from fastgan.metrics.equivariance import METRICS, draw_movements, psnr, rotated, squared_errors, translated
from fastgan.models.moving import moved_constant, rotation, synthesize_moved, translation

SIZE = 48
WAVES = 0.08  # cycles a pixel at most: far below what the interpolation filters cut off


def waves(transform, error=0.0, turn=0.0):
    """Images of sine waves in a scene that is moved by `transform`.

    error: added to each image of a moved scene. turn: angle by which the scene is rotated too far, if it is moved.
    """
    random = torch.Generator().manual_seed(0)
    angle, phase = 2 * math.pi * torch.rand(2, 30, generator=random)
    frequency = SIZE * WAVES * torch.stack([angle.cos(), angle.sin()], 1) * torch.rand(30, 1, generator=random)
    place = (torch.arange(SIZE) + 0.5) / SIZE - 0.5
    x, y = torch.meshgrid(place, place, indexing="xy")
    moves = (transform != torch.eye(3)).any(2).any(1)
    transform = transform @ rotation(turn * moves)
    found = torch.einsum("nij,yxj->nyxi", transform, torch.stack([x, y, torch.ones_like(x)], 2))[..., :2]
    values = torch.sin(2 * math.pi * found @ frequency.t() + phase).sum(3) / 30
    return (values + error * moves[:, None, None])[:, None].repeat(1, 3, 1, 1)


def measured(draw, count=4):
    errors = squared_errors(draw, draw_movements(count, 0), METRICS)
    return {name: psnr(each) for name, each in zip(METRICS, errors.unbind(1), strict=True)}


def test_an_exact_drawing_reaches_what_interpolation_allows():
    found = measured(waves)
    assert found["eqt"] > 120  # rounding of fp32
    assert found["eqt-frac"] > 60 and found["eqr"] > 70


def test_a_known_error_gives_its_psnr():
    for error in (0.1, 0.02):
        expected = 10 * math.log10(4 / error**2)
        assert all(value == pytest.approx(expected, abs=0.1) for value in measured(lambda t: waves(t, error)).values())  # noqa: B023


def test_a_scene_that_turns_too_far_is_not_equivariant():
    found = measured(lambda transform: waves(transform, turn=0.1))
    assert max(found.values()) < 40


def test_errors_are_those_of_each_sample():
    movements = draw_movements(3, 0)
    together = squared_errors(waves, movements, METRICS)
    alone = torch.cat([squared_errors(waves, each[None], METRICS) for each in movements])
    torch.testing.assert_close(together, alone)
    assert torch.equal(draw_movements(3, 1), draw_movements(3, 1)) and draw_movements(3, 1).abs().max() <= 1


def test_pixels_without_data_are_left_out():
    image = torch.randn(1, 10, 12)
    moved, inside = translated(image, 3, -2, reach=1)
    assert torch.equal(moved[:, inside].view(1, 8, 9), image[:, 2:, :9]) and inside.sum() == 72
    assert translated(image, 0.5, 0)[1].sum() == (10 - 4) * (12 - 5)
    assert not rotated(torch.ones(1, 12, 12), torch.eye(2))[1].any()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_quarter_turn_moves_pixels(turns):
    image = waves(torch.eye(3)[None])[0]
    moved, inside = rotated(image, rotation(torch.tensor([turns * math.pi / 2]))[0, :2, :2])
    torch.testing.assert_close(moved[:, inside], image.rot90(turns, (1, 2))[:, inside], rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------------ scenes of networks


def test_a_constant_that_moves_by_whole_pixels_is_rolled():
    for const in (torch.randn(2, 4, 4), torch.randn(2, 4, 5)):
        width = const.shape[2]
        moved = moved_constant(const, translation(torch.tensor([2 / width]), torch.tensor([-1 / width])))
        torch.testing.assert_close(moved[0], const.roll((-1, 2), (1, 2)), rtol=0, atol=1e-5)
    square = torch.randn(2, 4, 4)
    turned = moved_constant(square, rotation(torch.tensor([math.pi / 2])))
    torch.testing.assert_close(turned[0], square.rot90(1, (1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(moved_constant(square, torch.eye(3)), square, rtol=0, atol=1e-5)


def generator(arch, variant=""):
    torch.manual_seed(0)
    given = {"z_dim": 16, "channel_base": 1024, "channel_max": 16, "synthesis_layers": 6, "margin": 10}
    return models.build(models.ModelConfig(arch, resolution=64, variant=variant, **given))[0].eval()


@torch.no_grad()
def of_network(network):
    ws = network.styles(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    return measured(lambda transform: synthesize_moved(network, ws, transform))


def test_untrained_networks_have_the_equivariance_of_their_construction():
    found = {name: of_network(generator("stylegan3", name)) for name in ("t", "r")}
    found["stylegan2"] = of_network(generator("stylegan2"))
    assert found["t"]["eqt"] > 50 and found["t"]["eqt-frac"] > 40
    assert found["r"]["eqt"] > 50 and found["r"]["eqr"] > 40 > found["t"]["eqr"]
    assert max(found["stylegan2"].values()) < 25


def test_other_networks_cannot_move():
    network = generator("stylegan")
    with pytest.raises(TypeError, match=r"stylegan.Generator, whose input cannot move"):
        synthesize_moved(network, network.styles(torch.randn(1, 16)), torch.eye(3))
