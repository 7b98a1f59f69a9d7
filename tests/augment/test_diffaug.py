"""Differentiable augmentation does what its parameters say, drawn as published, and is twice differentiable.

The reference is the published definition, for one image at a time.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan.augment import Augmented, DiffAugment
from fastgan.augment.diffaug import Parameters
from fastgan.penalties import logits_and_squared_grad, one_pass, why_not_one_pass
from fastgan.transparency import premultiplied
from tests.augment.test_ada import piecewise_linear_discriminator

SIZES = [(16, 16), (12, 7), (5, 9), (3, 2), (1, 4), (1, 1)]


def images(n=4, channels=3, height=16, width=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def fixed(n=4, seed=0, **values):
    """Random parameters for n images, with the given values for all of them."""
    torch.manual_seed(seed)
    return DiffAugment.draw(n)._replace(**{name: torch.full((n,), float(value)) for name, value in values.items()})


STILL = {"shift_y": 0.5, "shift_x": 0.5}  # the middle of their ranges
SAME_COLOUR = {"brightness": 0, "saturation": 1, "contrast": 1}


def recolored_by_definition(image, brightness, saturation, contrast):
    """Image [C, H, W]: brightness, saturation, contrast, one after the other."""
    image = image + brightness
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * saturation + grey
    return (image - image.mean()) * contrast + image.mean()


def moved_by_definition(image, position_y, position_x, cut_y, cut_x, cutout, empty=0.0):
    """Image [C, H, W]: padded, cropped and cut."""
    _, h, w = image.shape
    most = [int(size / 8 + 0.5) for size in (h, w)]
    dy, dx = (int(u * (2 * m + 1)) - m for u, m in zip((position_y, position_x), most, strict=True))
    moved = torch.full_like(image, empty)
    for i in range(h):
        for j in range(w):
            if 0 <= i - dy < h and 0 <= j - dx < w:
                moved[:, i, j] = image[:, i - dy, j - dx]
    lengths = [int(size * cutout + 0.5) for size in (h, w)]
    starts = [
        int(u * (size + 1 - length % 2)) - length // 2
        for u, size, length in zip((cut_y, cut_x), (h, w), lengths, strict=True)
    ]
    rows, columns = (
        slice(max(start, 0), max(start + length, 0)) for start, length in zip(starts, lengths, strict=True)
    )
    moved[:, rows, columns] = empty
    return moved


@pytest.mark.parametrize("cutout", [0.5, 0.2, 0.0])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_changed_as_published(size, channels, cutout):
    x, parameters = images(8, channels, *size, dtype=torch.float64), fixed(8)
    expected = [
        moved_by_definition(recolored_by_definition(image, *values[:3]), *values[3:], cutout)
        for image, values in zip(x, torch.stack(parameters, 1).tolist(), strict=True)
    ]
    torch.testing.assert_close(DiffAugment(cutout=cutout).transform(x, parameters), torch.stack(expected))


def test_middle_values_without_a_cut_change_nothing():
    x = images()
    augment = DiffAugment(cutout=0)
    torch.testing.assert_close(augment.transform(x, fixed(**SAME_COLOUR, **STILL)), x)


class TestTransparency:
    def test_colours_change_as_those_of_the_straight_image(self):
        """Of equal coverage everywhere: the mean of what can be seen is that of all pixels."""
        straight = images(4, 4, dtype=torch.float64)
        straight[:, 3] = torch.tensor([1.0, 0.4, -0.2, -0.6])[:, None, None]
        parameters = fixed(**STILL)
        colours = DiffAugment(cutout=0).transform(straight[:, :3], parameters)
        got = DiffAugment(cutout=0).transform(premultiplied(straight), parameters)
        torch.testing.assert_close(got, premultiplied(torch.cat([colours, straight[:, 3:]], 1)))

    def test_an_opaque_image_changes_as_without_alpha(self):
        x, parameters = images(4, 3), fixed(**STILL)
        opaque = torch.cat([x, torch.ones(4, 1, 16, 16)], 1)
        changed = DiffAugment(cutout=0).transform(opaque, parameters)
        torch.testing.assert_close(changed[:, :3], DiffAugment(cutout=0).transform(x, parameters))

    def test_transparent_pixels_stay_transparent_and_do_not_count(self):
        """A square on a transparent background is recoloured as the square alone."""
        square, parameters = images(4, 3, 8, 8), fixed(**STILL)
        x = torch.full((4, 4, 16, 16), -1.0)
        x[:, :3, 4:12, 4:12], x[:, 3, 4:12, 4:12] = square, 1.0
        changed = DiffAugment(cutout=0).transform(x, parameters)
        alone = DiffAugment(cutout=0).transform(square, parameters)
        torch.testing.assert_close(changed[:, :3, 4:12, 4:12], alone)
        outside = torch.ones(16, 16, dtype=torch.bool)
        outside[4:12, 4:12] = False
        torch.testing.assert_close(changed[:, :, outside], torch.full((4, 4, 192), -1.0))

    def test_what_moves_away_or_is_cut_is_transparent(self):
        x = premultiplied(images(6, 4, 12, 10, dtype=torch.float64))
        parameters = fixed(6, **SAME_COLOUR)
        expected = [
            moved_by_definition(image, *values[3:], 0.5, empty=-1.0)
            for image, values in zip(x, torch.stack(parameters, 1).tolist(), strict=True)
        ]
        torch.testing.assert_close(DiffAugment().transform(x, parameters), torch.stack(expected))

    def test_an_empty_image_stays_empty(self):
        x = torch.full((2, 4, 8, 8), -1.0)
        torch.testing.assert_close(DiffAugment()(x), x)


def test_parameters_are_uniform_in_the_published_ranges():
    torch.manual_seed(0)
    drawn = DiffAugment.draw(20_000)
    ranges = {"brightness": (-0.5, 0.5), "saturation": (0, 2), "contrast": (0.5, 1.5)}
    for name, values in drawn._asdict().items():
        low, high = ranges.get(name, (0, 1))
        assert low <= values.min() and values.max() < high
        share = (values - low) / (high - low)
        assert share.mean() == pytest.approx(1 / 2, abs=0.01) and share.var() == pytest.approx(1 / 12, abs=0.003)
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.03


def test_all_shifts_and_cuts_are_as_frequent():
    """Of a bright column of 8 rows: a shift by -1, 0 or 1; a cut of 4 rows around each of 9 places."""
    torch.manual_seed(0)
    drawn = DiffAugment.draw(9_000)._replace(**{name: torch.full((9_000,), v) for name, v in SAME_COLOUR.items()})
    x = torch.arange(1.0, 9.0)[:, None].expand(9_000, 1, 8, 1)
    shifted = DiffAugment(cutout=0).transform(x, drawn)[:, 0, :, 0]
    assert (shifted[:, 3] - 4).unique(return_counts=True)[1].tolist() == pytest.approx([3_000] * 3, abs=200)
    cut = DiffAugment().transform(torch.ones(9_000, 1, 8, 1), drawn._replace(shift_y=torch.full((9_000,), 0.5)))
    starts = cut[:, 0, :, 0].unique(dim=0, return_counts=True)[1].tolist()
    assert starts == pytest.approx([1_000] * 9, abs=150)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_results_are_fp32_or_fp64(dtype):
    x, parameters = images(dtype=dtype), fixed()
    got = DiffAugment().transform(x, parameters)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(DiffAugment().transform(x, parameters), got)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_memory_format_is_kept_and_does_not_change_values(channels):
    x, parameters = images(channels=channels), fixed()
    flat = DiffAugment().transform(x, parameters)
    last = DiffAugment().transform(x.contiguous(memory_format=torch.channels_last), parameters)
    assert flat.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(flat, last)


def test_a_batch_may_be_empty():
    assert DiffAugment()(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_results_follow_the_seed_and_images_differ():
    x = images(1).expand(4, -1, -1, -1)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(DiffAugment()(x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(2, 3), (9, 7)])
def test_first_and_second_derivatives_agree_with_finite_differences(size, channels):
    x = images(3, channels, *size, dtype=torch.float64).requires_grad_()
    transform = lambda x: DiffAugment(cutout=0.3).transform(x, fixed(3))
    fast = size == (9, 7)  # random directions instead of all of them
    torch.autograd.gradcheck(transform, x, fast_mode=fast)
    torch.autograd.gradgradcheck(transform, x, fast_mode=fast)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_penalties_of_an_augmented_discriminator(channels):
    """In one pass, but for transparent images."""
    discriminator = Augmented(DiffAugment(), piecewise_linear_discriminator(channels)).double()
    x = images(4, channels, 12, 10, dtype=torch.float64).requires_grad_()
    if channels == 4:
        assert "is not linear in premultiplied images" in why_not_one_pass(discriminator, x)
    else:
        assert why_not_one_pass(discriminator, x) is None
        one_pass.check(discriminator, x, tolerance=1e-10)

    def gradients(form):
        torch.manual_seed(3)
        logits, squares = logits_and_squared_grad(form, x)
        loss = logits.square().mean() + 3 * squares.mean()
        return logits, squares, *torch.autograd.grad(loss, [x, *discriminator.parameters()])

    torch.testing.assert_close(gradients(discriminator), gradients(lambda x: discriminator(x)))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_have_the_layout_of_channels_last_images(channels):
    x = images(channels=channels).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(DiffAugment()(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_batches_of_gradients_and_transforms_of_functions():
    x, parameters = images(3, dtype=torch.float64), fixed(3)
    transform = lambda x: DiffAugment().transform(x, parameters)
    tangent, leaf = images(3, dtype=torch.float64, seed=1), x.clone().requires_grad_()
    moved = torch.func.jvp(transform, (x,), (tangent,))[1]
    torch.testing.assert_close(moved, transform(x + tangent) - transform(x))
    torch.testing.assert_close(torch.func.vmap(transform)(torch.stack([x, tangent]))[1], transform(tangent))
    cotangents = torch.stack([x, tangent])
    batched = torch.autograd.grad(transform(leaf), leaf, cotangents, is_grads_batched=True)[0]
    torch.testing.assert_close(batched[1], torch.func.vjp(transform, x)[1](tangent)[0])
    torch.testing.assert_close(batched[0], torch.autograd.grad(transform(leaf), leaf, x)[0])


def test_gradients_of_a_batch_are_deterministic():
    x, parameters = images(8).requires_grad_(), fixed(8)
    of = lambda: torch.autograd.grad(DiffAugment().transform(x, parameters).square().sum(), x)[0]
    assert torch.equal(of(), of())


@pytest.mark.parametrize("channels", [3, 4])
def test_no_device_synchronization(channels):
    """Fake tensors have no values: whatever asks for one, or has a shape that depends on one, raises."""
    with FakeTensorMode():
        x = torch.randn(4, channels, 12, 10, requires_grad=True)
        (gradient,) = torch.autograd.grad(DiffAugment()(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        with pytest.raises(RuntimeError):
            DiffAugment.draw(1).contrast.item()


def test_errors_name_the_argument_and_valid_values():
    with pytest.raises(ValueError, match="cutout is 2, must be from 0 to 1"):
        DiffAugment(cutout=2)
    with pytest.raises(ValueError, match=r"images have shape \[3, 8, 8\], must be \[N, C, H, W\]"):
        DiffAugment()(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"images have dtype torch.int64, must be fp32"):
        DiffAugment()(torch.ones(1, 3, 8, 8, dtype=torch.int64))


def test_there_is_no_state():
    assert not DiffAugment().state_dict() and len(Parameters._fields) == 7
