"""Augmentation does what its parameters say, as often as p says, differentiably; its strength follows the
discriminator.

The reference for resampling is the paper's definition, in loops, with padding that is never too short.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan.augment.ada import GROUPS, ORIGIN, SYM6, AdaptiveStrength, Augment, Parameters
from fastgan.augment.augmented import Augmented
from fastgan.ops import use_backend
from fastgan.penalties import logits_and_squared_grad, one_pass, why_not_one_pass

SIZES = [(16, 16), (12, 7), (5, 9), (3, 2), (1, 4), (1, 1)]
EVERYTHING = {
    "flip": [0, 1, 1],
    "turns": [1, 0, 3],
    "shift_x": [0.125, -0.11, 0.06],
    "shift_y": [-0.125, 0.11, 0],
    "scale": [0.4, 1.3, 1],
    "angle_before": [0.5, -2, 3],
    "stretch": [1.2, 0.7, 1],
    "angle_after": [1, 0, -0.3],
    "move_x": [0.1, -2.3, 0.02],
    "move_y": [0.2, 1.7, -0.04],
    "resampled": [1, 1, 1],
    "brightness": [0.2, -0.3, 0],
    "contrast": [0.7, 1.5, 1],
    "luma_flip": [1, 0, 1],
    "hue": [1, -2, 0.3],
    "saturation": [0.5, 2, 1],
}


def only(**values) -> Parameters:
    """Parameters with an image for each entry of the given lists; all others are the identity."""
    identity = Parameters.identity(max(len(value) for value in values.values()))
    return identity._replace(
        **{name: torch.tensor(value).to(getattr(identity, name).dtype) for name, value in values.items()}
    )


def images(n=3, channels=3, height=16, width=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)


# The filter -------------------------------------------------------------------------------------------------------


def test_the_filter_is_orthogonal_to_its_even_shifts():
    h = np.array(SYM6)
    products = np.convolve(h, h[::-1])[len(h) - 1 :: 2]
    np.testing.assert_allclose(products, [1, 0, 0, 0, 0, 0], atol=1e-15)


def test_the_filter_passes_polynomials_up_to_the_fifth_degree():
    k = np.arange(12) - 5.5
    assert sum(SYM6) == pytest.approx(math.sqrt(2), abs=1e-15)
    for degree in range(6):
        assert np.sum((-1) ** np.arange(12) * (k / 5.5) ** degree * SYM6) == pytest.approx(0, abs=1e-14)
    assert abs(np.sum((-1) ** np.arange(12) * (k / 5.5) ** 6 * SYM6)) > 1e-3


# Nothing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_at_p_0_images_are_unchanged(size, channels):
    x = images(4, channels, *size)
    assert torch.equal(Augment(0.0)(x), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_results_are_fp32_or_fp64(dtype):
    x = images(dtype=dtype)
    wide = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    unchanged = Augment(0.0)(x)
    assert unchanged.dtype == wide.dtype and torch.equal(unchanged, wide)
    assert torch.equal(Augment().transform(x, only(**EVERYTHING)), Augment().transform(wide, only(**EVERYTHING)))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_autocast_changes_nothing(backend):
    x = images()
    with use_backend([backend, "torch"]):
        expected = Augment().transform(x, only(**EVERYTHING))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(Augment().transform(x, only(**EVERYTHING)), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("groups", [tuple(GROUPS), ("xflip",), ("geometry",), ("color",), ("xflip", "color")])
def test_the_memory_format_is_kept_and_does_not_change_values(groups, channels):
    augment, x = Augment(groups=groups), images(3, channels, 6, 10)
    # As networks make them: torch itself would not mark images of one channel
    x_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    y, y_last = (augment.transform(x, only(**EVERYTHING)) for x in (x, x_last))
    assert y.is_contiguous() and y_last.stride() == x_last.stride()
    torch.testing.assert_close(y, y_last)
    for whole, expected in ((x, y), (x_last, y_last)):
        part = torch.cat([whole, whole], 2)[:, :, :6]
        got = augment.transform(part, only(**EVERYTHING))
        assert torch.equal(got, expected) and got.stride() == expected.stride()


def test_a_batch_may_be_empty():
    x = torch.empty(0, 3, 8, 8, requires_grad=True)
    y = Augment(1.0)(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.shape == x.shape


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_is_kept(size, channels):
    torch.manual_seed(0)
    y = Augment(1.0)(images(64, channels, *size))
    assert y.shape == (64, channels, *size) and y.isfinite().all()


# Pixels that move -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_xflip_mirrors_left_and_right(size):
    x = images(2, 3, *size)
    y = Augment().transform(x, only(flip=[1, 0]))
    assert torch.equal(y, torch.stack([x[0].flip(2), x[1]]))


def test_turns_are_quarter_turns():
    x = images(4)
    y = Augment().transform(x, only(turns=[0, 1, 2, 3]))
    assert torch.equal(y, torch.stack([torch.rot90(x[k], k, (1, 2)) for k in range(4)]))


def test_an_oblong_image_is_rotated_within_its_frame():
    x = images(1, 3, 10, 6)
    turned = F.pad(torch.rot90(x, 1, (2, 3)), (0, 0, 2, 2), mode="reflect")  # 6 x 10, to 10 x 10
    assert torch.equal(Augment().transform(x, only(turns=[1])), turned[..., 2:-2])


def test_translation_rolls_the_mirrored_image():
    x = images(1, 3, 16, 24)
    y = Augment().transform(x, only(shift_x=[2.4 / 24], shift_y=[-1.6 / 16]))  # 2 to the right, 2 up
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    assert torch.equal(y, padded.roll((2, -2), (3, 2))[..., 4:-4, 4:-4])


def test_blits_are_applied_in_order():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:12, 4:12] = images(1, 1, 8, 8)
    y = Augment().transform(x, only(flip=[1], turns=[1], shift_x=[0.125], shift_y=[-0.0625]))
    assert torch.equal(y, torch.rot90(x.flip(3), 1, (2, 3)).roll((2, -1), (3, 2)))


# Resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_resampling_at_pixel_positions_changes_nothing(size):
    x = images(2, 3, *size)
    augment = Augment(groups=("geometry",))
    y = augment.transform(x, only(resampled=[1, 0]))
    torch.testing.assert_close(y[0], x[0], rtol=0, atol=2e-5)
    assert torch.equal(y[1], x[1])


def matrix_of(parameters, i, height, width):
    """Matrix that moves the image's content: the transformations in the paper's order."""
    value = {name: float(tensor[i]) for name, tensor in parameters._asdict().items()}

    def rotate(angle):  # counter-clockwise, y downwards
        return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])

    def scale(x, y):
        return np.diag([x, y, 1])

    def translate(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    g = scale(1 - 2 * value["flip"], 1)
    g = rotate(value["turns"] * np.pi / 2) @ g
    g = translate(np.round(value["shift_x"] * width), np.round(value["shift_y"] * height)) @ g
    g = scale(value["scale"], value["scale"]) @ g
    g = rotate(value["angle_before"]) @ g
    g = scale(value["stretch"], 1 / value["stretch"]) @ g
    g = rotate(value["angle_after"]) @ g
    return translate(value["move_x"] * width, value["move_y"] * height) @ g


def resampled_by_definition(image, matrix):
    """Reference for a channel [H, W]: reflect, upsample, sample bilinearly, filter, decimate."""
    h, w = image.shape
    taps = np.array(SYM6) / np.sqrt(2)
    center = np.array([(w - 1) / 2, (h - 1) / 2])
    y, x = np.meshgrid(np.arange(-5, 2 * h + 5), np.arange(-5, 2 * w + 5), indexing="ij")
    place = np.stack([(x - ORIGIN) / 2 - center[0], (y - ORIGIN) / 2 - center[1], np.ones(x.shape)])
    place = np.einsum("ij,jyx->iyx", np.linalg.inv(matrix), place)[:2] + center[:, None, None]
    pad = int(np.abs(place).max()) + 10 + max(h, w)
    padded = np.pad(image, pad, mode="reflect") if min(h, w) > 1 else np.pad(image, pad, mode="edge")
    large = np.zeros((2 * padded.shape[0], 2 * padded.shape[1]))
    large[::2, ::2] = 4 * padded
    for axis in (0, 1):  # the middle pair of taps about a pixel and its follower
        filtered = np.apply_along_axis(np.convolve, axis, large, taps)
        large = filtered[5:-6] if axis == 0 else filtered[:, 5:-6]
    column, row = 2 * (place + pad) + ORIGIN
    j, i = np.floor(column).astype(int), np.floor(row).astype(int)
    u, v = column - j, row - i
    warped = (1 - v) * ((1 - u) * large[i, j] + u * large[i, j + 1])
    warped += v * ((1 - u) * large[i + 1, j] + u * large[i + 1, j + 1])
    for axis in (0, 1):
        filtered = np.apply_along_axis(np.correlate, axis, warped, taps, mode="valid")
        warped = filtered[::2] if axis == 0 else filtered[:, ::2]
    return warped


@pytest.mark.parametrize("size", [(16, 16), (12, 7), (5, 9), (7, 7), (6, 8), (2, 3)])
def test_resampling_equals_the_papers_with_unlimited_padding(size):
    x = images(3, 2, *size, dtype=torch.float64)
    parameters = only(**EVERYTHING)
    y = Augment(groups=("xflip", "rotate90", "translate", "geometry")).transform(x, parameters)
    for i in range(3):
        for channel in range(2):
            expected = resampled_by_definition(x[i, channel].numpy(), matrix_of(parameters, i, *size))
            # Parameters are fp32, and so are the matrices
            np.testing.assert_allclose(y[i, channel], expected, rtol=0, atol=2e-5, err_msg=f"image {i}")


@pytest.mark.parametrize(
    "one",
    [
        {"scale": [1.5]},
        {"angle_before": [0.7]},
        {"stretch": [0.8]},
        {"angle_after": [-2.5]},
        {"move_x": [0.1]},
        {"move_y": [-0.15]},
    ],
    ids=lambda one: next(iter(one)),
)
def test_geometry_moves_a_ramp_exactly(one):
    """On a ramp, filters and interpolation are exact: the result tells where each pixel comes from."""
    size = 40
    c = (size - 1) / 2
    y, x = torch.meshgrid(torch.arange(size) - c, torch.arange(size) - c, indexing="ij")
    got = Augment(groups=("geometry",)).transform(torch.stack([x, y])[None], only(resampled=[1], **one))[0]
    matrix = np.linalg.inv(matrix_of(only(**one), 0, size, size))
    expected = torch.from_numpy(np.einsum("ij,jyx->iyx", matrix, np.stack([x, y, np.ones_like(x)])))[:2].float()
    inside = (expected.abs() < c - 7).all(0)  # away from the border, where the mirrored plane has a fold
    assert inside.sum() > 300
    torch.testing.assert_close(got[:, inside], expected[:, inside], rtol=0, atol=2e-4)


def test_a_half_turn_by_resampling_is_about_the_middle():
    x = torch.arange(48.0)
    smooth = (torch.sin(0.4 * x + 1) + torch.cos(0.3 * x[:, None] + 0.1 * x))[None, None]
    y = Augment(groups=("geometry",)).transform(smooth, only(resampled=[1], angle_before=[math.pi]))
    torch.testing.assert_close(y[..., 8:-8, 8:-8], smooth.flip(2, 3)[..., 8:-8, 8:-8], rtol=0, atol=0.01)


# Colour -----------------------------------------------------------------------------------------------------------


def recolored(x, **values):
    return Augment(groups=("color",)).transform(x, only(**values))


def test_brightness_is_added_and_contrast_multiplied():
    x = images(1)
    assert torch.equal(recolored(x, brightness=[0.25]), x + 0.25)
    torch.testing.assert_close(recolored(x, contrast=[1.5]), 1.5 * x)
    torch.testing.assert_close(recolored(x, brightness=[0.25], contrast=[1.5]), 1.5 * (x + 0.25))


def test_luma_flip_negates_the_mean_and_keeps_the_colour():
    x = images(1)
    mean = x.mean(1, keepdim=True)
    torch.testing.assert_close(recolored(x, luma_flip=[1]), x - 2 * mean)


def test_a_third_of_a_full_hue_rotation_exchanges_the_channels():
    x = images(1)
    torch.testing.assert_close(recolored(x, hue=[2 * math.pi / 3]), x.roll(1, 1))


def test_without_saturation_all_is_grey():
    x = images(1)
    torch.testing.assert_close(recolored(x, saturation=[0]), x.mean(1, keepdim=True).expand(x.shape))


def test_colour_equals_the_product_of_the_papers_matrices():
    x = images(3, dtype=torch.float64)
    parameters = only(**EVERYTHING)
    v = np.array([1, 1, 1, 0]) / np.sqrt(3)
    for i, image in enumerate(Augment(groups=("color",)).transform(x, parameters)):
        value = {name: float(tensor[i]) for name, tensor in parameters._asdict().items()}
        brighten = np.eye(4)
        brighten[:3, 3] = value["brightness"]
        contrast = np.diag([value["contrast"]] * 3 + [1])
        flip = np.eye(4) - 2 * np.outer(v, v) * value["luma_flip"]
        hue = np.eye(4)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # Rodrigues' formula
        hue[:3, :3] += np.sin(value["hue"]) * cross + (1 - np.cos(value["hue"])) * cross @ cross
        saturate = np.outer(v, v) + (np.eye(4) - np.outer(v, v)) * value["saturation"]
        saturate[3, 3] = 1
        matrix = saturate @ hue @ flip @ contrast @ brighten
        homogeneous = np.concatenate([x[i], np.ones((1, 16, 16))])
        expected = np.einsum("ij,jyx->iyx", matrix, homogeneous)[:3]
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_grey_images_get_brightness_contrast_and_luma_flip():
    x = images(1, 1)
    assert torch.equal(recolored(x, luma_flip=[1]), -x)
    assert torch.equal(recolored(x, brightness=[0.25], contrast=[2.0]), 2 * (x + 0.25))
    assert torch.equal(recolored(x, hue=[2.0], saturation=[3.0]), x)
    grey_in_colours = recolored(images(3, 1).expand(3, 3, 16, 16), **EVERYTHING)
    torch.testing.assert_close(grey_in_colours, recolored(images(3, 1), **EVERYTHING).expand(3, 3, 16, 16))


# Chance -----------------------------------------------------------------------------------------------------------


def test_each_transformation_is_applied_with_probability_p():
    torch.manual_seed(0)
    n, p = 2000, 0.3
    drawn = Augment(p).draw(n)
    p_rot = 1 - math.sqrt(1 - p)
    applied = {
        "flip": p / 2,  # half of the choices is not to
        "turns": p * 3 / 4,
        "luma_flip": p / 2,
        "angle_before": p_rot,
        "angle_after": p_rot,
        "resampled": 1 - (1 - p) ** 4,  # scale, stretch, translation, and one rotation of the two
    }
    identity = Parameters.identity(n)
    for name in Parameters._fields:
        share = (getattr(drawn, name) != getattr(identity, name)).double().mean().item()
        expected = applied.get(name, p)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n), name
    rotated = ((drawn.angle_before != 0) | (drawn.angle_after != 0)).double().mean().item()
    assert abs(rotated - p) < 4 * math.sqrt(p * (1 - p) / n)
    moved = drawn.scale.ne(1) | drawn.stretch.ne(1) | drawn.move_x.ne(0) | drawn.move_y.ne(0)
    assert torch.equal(drawn.resampled, moved | drawn.angle_before.ne(0) | drawn.angle_after.ne(0))


def test_transformations_are_drawn_from_their_distributions():
    torch.manual_seed(0)
    n = 4000
    drawn = Augment(1.0).draw(n)
    normal = {
        "move_x": drawn.move_x / 0.125,
        "move_y": drawn.move_y / 0.125,
        "scale": drawn.scale.log() / (0.2 * math.log(2)),
        "stretch": drawn.stretch.log() / (0.2 * math.log(2)),
        "brightness": drawn.brightness / 0.2,
        "contrast": drawn.contrast.log() / (0.5 * math.log(2)),
        "saturation": drawn.saturation.log() / math.log(2),
    }
    for name, value in normal.items():
        assert abs(value.mean()) < 4 / math.sqrt(n), name
        assert abs(value.square().mean() - 1) < 4 * math.sqrt(2 / n), name
        assert abs((value.abs() < 1).double().mean() - 0.6827) < 4 * math.sqrt(0.6827 * 0.3173 / n), name
    uniform = {
        "shift_x": drawn.shift_x * 8,
        "shift_y": drawn.shift_y * 8,
        "angle_before": drawn.angle_before / math.pi,
        "angle_after": drawn.angle_after / math.pi,
        "hue": drawn.hue / math.pi,
    }
    for name, value in uniform.items():
        assert value.abs().max() <= 1 and abs(value.mean()) < 4 / math.sqrt(3 * n), name
        assert abs((value.abs() < 0.5).double().mean() - 0.5) < 2 / math.sqrt(n), name
    for choice in range(4):
        assert abs((drawn.turns == choice).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    pairs = torch.corrcoef(torch.stack([*normal.values(), *uniform.values()]))
    assert (pairs - torch.eye(len(pairs))).abs().max() < 5 / math.sqrt(n), "two are not independent"


@pytest.mark.parametrize("group", GROUPS)
def test_a_single_group_leaves_other_parameters_at_the_identity(group):
    torch.manual_seed(0)
    drawn, identity = Augment(1.0, groups=(group,)).draw(64), Parameters.identity(64)
    changed = {name for name in Parameters._fields if not torch.equal(getattr(drawn, name), getattr(identity, name))}
    assert changed == set(GROUPS[group])


@pytest.mark.parametrize("group", GROUPS)
def test_a_single_group_equals_all_groups_with_the_others_at_the_identity(group):
    x = images(16)
    torch.manual_seed(0)
    augment = Augment(1.0, groups=(group,))
    parameters = augment.draw(16)
    assert not torch.equal(augment.transform(x, parameters), x)
    assert torch.equal(augment.transform(x, parameters), Augment().transform(x, parameters))


def test_results_are_bitwise_reproducible_by_seed():
    x = images(8)

    def run(seed):
        torch.manual_seed(seed)
        leaf = x.clone().requires_grad_()
        y = Augment(0.8)(leaf)
        y.square().sum().backward()
        return y.detach(), leaf.grad

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_p_changed_in_place_applies_to_the_next_batch():
    augment, x = Augment(0.0), images(64)
    augment.p.fill_(1.0)
    assert not torch.equal(augment(x), x)
    assert list(augment.state_dict()) == ["p"]
    restored = Augment()
    restored.load_state_dict(augment.state_dict())
    assert restored.p == 1


@pytest.mark.parametrize("size", [(16, 12), (4, 3)])
def test_no_device_synchronization(size):
    """Fake tensors have no values: whatever asks for one, or has a shape that depends on one, raises."""
    with FakeTensorMode(), use_backend("torch"):
        augment, strength = Augment(0.5), AdaptiveStrength()
        augment.p = torch.rand(())  # a constant would be known to fake tensors
        for name in ("r", "signs", "images", "steps"):
            setattr(strength, name, torch.rand(()))
        x = torch.randn(4, 3, *size, requires_grad=True)
        y = augment(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        strength.update(torch.randn(4), augment.p)
        with pytest.raises(RuntimeError):
            augment.p.item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_graph_draws_new_parameters_and_updates_p():
    augment, strength = Augment(0.0).cuda(), AdaptiveStrength(interval=1, adjust_kimg=0.001).cuda()
    x = images(64).cuda().requires_grad_()

    def step():
        y = augment(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        strength.update(torch.ones_like(y[:, 0, 0, 0]), augment.p)
        return y.detach(), gradient

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gradient = step()
    augment.p.zero_()
    graph.replay()
    assert torch.equal(y, x) and torch.equal(gradient, 2 * x)
    assert augment.p == 1
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(y.clone())
    assert not torch.equal(seen[0], x) and not torch.equal(seen[0], seen[1])


# Derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 3), (9, 7)])
def test_first_and_second_derivatives_agree_with_finite_differences(size, channels):
    x = images(3, channels, *size, dtype=torch.float64).requires_grad_()
    fast = size == (9, 7)  # random directions instead of all of them
    parameters = only(**EVERYTHING)
    parameters = parameters._replace(resampled=torch.tensor([True, False, True]))
    transform = lambda x: Augment().transform(x, parameters)
    torch.autograd.gradcheck(transform, x, fast_mode=fast)
    torch.autograd.gradgradcheck(transform, x, fast_mode=fast)


class SmoothDiscriminator(nn.Module):
    def __init__(self, inputs, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(torch.randn(8, inputs, generator=generator, dtype=dtype) / math.sqrt(inputs))
        self.second = nn.Parameter(torch.randn(8, generator=generator, dtype=dtype))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.first.T) @ self.second


def test_r1_equals_that_of_the_transformation_as_a_matrix():
    """Each image's transformation is written out as a matrix; then R1 is matrix products alone."""
    parameters = only(**EVERYTHING)
    augment, x = Augment(), images(3, 3, 5, 6, dtype=torch.float64)
    size = x[0].numel()

    def as_matrix(i):
        parameters_of_one = Parameters(*(value[i : i + 1].expand(size + 1) for value in parameters))
        basis = torch.cat([torch.eye(size), torch.zeros(1, size)]).double()
        columns = augment.transform(basis.reshape(-1, 3, 5, 6), parameters_of_one).flatten(1)
        return (columns[:-1] - columns[-1]).T, columns[-1]

    matrices, constants = map(torch.stack, zip(*(as_matrix(i) for i in range(3)), strict=True))

    discriminator = SmoothDiscriminator(size)
    logits, squares = logits_and_squared_grad(lambda x: discriminator(augment.transform(x, parameters)), x)
    (logits.sum() + 3 * squares.mean()).backward()
    got = [parameter.grad for parameter in discriminator.parameters()]

    discriminator.zero_grad()
    transformed = (matrices @ x.flatten(1)[:, :, None]).squeeze(2) + constants
    hidden = torch.tanh(transformed @ discriminator.first.T)
    slope = ((1 - hidden**2) * discriminator.second) @ discriminator.first  # of the logits, at the transformed images
    expected = (slope[:, None, :] @ matrices).square().sum((1, 2))
    torch.testing.assert_close(logits, hidden @ discriminator.second)
    torch.testing.assert_close(squares, expected)
    ((hidden @ discriminator.second).sum() + 3 * expected.mean()).backward()
    torch.testing.assert_close(got, [parameter.grad for parameter in discriminator.parameters()])


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_r1_of_a_random_augmentation_equals_that_of_its_parameters(backend):
    augment, x = Augment(0.7), images(6, 3, 12, 12)
    discriminator = SmoothDiscriminator(3 * 12 * 12, torch.float32)

    def gradients(call):
        torch.manual_seed(3)
        discriminator.zero_grad()
        _, squares = logits_and_squared_grad(call, x)
        squares.mean().backward()
        return squares.detach(), *(parameter.grad.clone() for parameter in discriminator.parameters())

    with use_backend([backend, "torch"]):
        torch.manual_seed(3)
        drawn = augment.draw(6)
        fixed = gradients(lambda x: discriminator(augment.transform(x, drawn)))
        drawn_anew = gradients(lambda x: discriminator(augment(x)))
        composed = gradients(nn.Sequential(augment, discriminator))
    assert all(torch.equal(a, b) for a, b in zip(fixed, drawn_anew, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fixed, composed, strict=True))


def piecewise_linear_discriminator(channels):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 5, 3, stride=2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(5 * 20, 1))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("groups", [tuple(GROUPS), ("rotate90",), ("color",), ()])
def test_penalties_of_an_augmented_discriminator_take_one_pass(channels, groups):
    discriminator = Augmented(Augment(0.7, groups=groups), piecewise_linear_discriminator(channels)).double()
    x = images(4, channels, 12, 10, dtype=torch.float64).requires_grad_()
    assert why_not_one_pass(discriminator, x) is None
    one_pass.check(discriminator, x, tolerance=1e-10)

    def gradients(form):
        torch.manual_seed(3)
        logits, squares = logits_and_squared_grad(form, x)
        loss = logits.square().mean() + 3 * squares.mean()
        return logits, squares, *torch.autograd.grad(loss, [x, *discriminator.parameters()])

    one, double = gradients(discriminator), gradients(lambda x: discriminator(x))
    torch.testing.assert_close(one, double)


# Strength ---------------------------------------------------------------------------------------------------------


def after(strength, logits, steps, p=0.5):
    p = torch.full((), p)
    for _ in range(steps):
        strength.update(logits, p)
    return p.item()


def test_p_rises_with_overfitting_and_falls_without():
    step = 32 * 4 / 500_000
    assert after(AdaptiveStrength(), torch.rand(32) + 1, 4) == pytest.approx(0.5 + step, abs=1e-7)
    assert after(AdaptiveStrength(), -torch.rand(32), 4) == pytest.approx(0.5 - step, abs=1e-7)
    mixed = torch.tensor([1.0] * 25 + [-1.0] * 7)  # a mean sign of 0.5625, below the target
    assert after(AdaptiveStrength(), mixed, 4) < 0.5
    assert after(AdaptiveStrength(target=0.5), mixed, 4) > 0.5
    assert after(AdaptiveStrength(target=0.5625), mixed, 4) == 0.5


def test_p_changes_every_interval_steps():
    strength, p = AdaptiveStrength(interval=3, adjust_kimg=1), torch.full((), 0.5)
    seen = []
    for _ in range(7):
        strength.update(torch.ones(10), p)
        seen.append(round(p.item(), 4))
    assert seen == [0.5, 0.5, 0.53, 0.53, 0.53, 0.56, 0.56]


def test_r_is_the_mean_over_all_logits_since_the_last_adjustment():
    strength, p = AdaptiveStrength(interval=2, adjust_kimg=1), torch.full((), 0.5)
    strength.update(torch.ones(10), p)
    strength.update(-torch.ones(30), p)
    assert strength.r == -0.5
    assert p.item() == pytest.approx(0.5 - 40 / 1000)
    strength.update(torch.ones(10), p)
    strength.update(torch.ones(10), p)
    assert strength.r == 1
    assert p.item() == pytest.approx(0.5 - 40 / 1000 + 20 / 1000)


def test_p_stays_a_probability():
    strength = AdaptiveStrength(adjust_kimg=0.1)
    assert after(strength, -torch.ones(32), 8) == 0
    assert after(strength, torch.ones(32), 8) == 1


def test_fp16_logits_are_summed_without_rounding():
    assert after(AdaptiveStrength(interval=1, adjust_kimg=10), torch.ones(999, 1, dtype=torch.bfloat16), 1, p=0.0) == (
        pytest.approx(0.0999)
    )


def test_the_state_between_adjustments_is_saved():
    strength, p = AdaptiveStrength(adjust_kimg=1), torch.full((), 0.5)
    for _ in range(6):
        strength.update(torch.ones(10), p)
    resumed, p_resumed = AdaptiveStrength(adjust_kimg=1), p.clone()
    resumed.load_state_dict(strength.state_dict())
    for _ in range(2):
        strength.update(-torch.ones(10), p)
        resumed.update(-torch.ones(10), p_resumed)
    assert p_resumed == p and resumed.r == strength.r == 0


# Errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument_and_valid_values():
    with pytest.raises(ValueError, match=r"p is 1\.5, must be from 0 to 1"):
        Augment(1.5)
    with pytest.raises(ValueError, match="groups has 'cutout', must be of xflip, "):
        Augment(groups=("cutout",))
    with pytest.raises(ValueError, match=r"shape \[3, 8, 8\], must be \[N, C, H, W\]"):
        Augment()(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"dtype torch\.uint8"):
        Augment()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 channels, must have 1, 3 or 4"):
        Augment()(torch.zeros(1, 2, 8, 8))
    assert Augment(1.0, groups=("geometry",))(torch.zeros(1, 2, 8, 8)).shape == (1, 2, 8, 8)
    with pytest.raises(ValueError, match="images are on meta, p is on cpu"):
        Augment()(torch.zeros(1, 3, 8, 8, device="meta"))
    for arguments in ({"target": 2}, {"adjust_kimg": 0}, {"interval": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            AdaptiveStrength(**arguments)
