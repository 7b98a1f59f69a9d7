"""Perceptual path lengths: of generators whose paths are known, and of real ones."""

import math

import pytest
import torch
from torch import nn

from fastgan.metrics import path_length
from fastgan.metrics.path_length import METRICS, draw_paths, path_lengths, summary
from fastgan.metrics.perceptual import LPIPS, PerceptualDistance
from fastgan.models import ModelConfig, build

WIDTH = 6


class Linear(nn.Module):
    """Images [N, 1, 2, 3] that are linear in w, which is linear in z. In fp64: steps are short."""

    supports = frozenset({"noise"})
    num_ws = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mapping = lambda z, label: z.double() @ self.to_w
        self.to_w = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64), requires_grad=False)
        self.to_image = nn.Parameter(torch.randn(WIDTH, 6, dtype=torch.float64), requires_grad=False)

    def synthesize(self, ws, *, noise):
        assert noise == "const" and ws.shape[1] == self.num_ws
        return (ws[:, 0].double() @ self.to_image).view(-1, 1, 2, 3)

    def forward(self, z, label=None, *, noise):
        return self.synthesize(self.mapping(z, label)[:, None].expand(-1, self.num_ws, -1), noise=noise)


def squared(images, others):
    return (images - others).square().sum((1, 2, 3))


@pytest.mark.parametrize("metric", ["ppl-w", "ppl-w-end"])
def test_paths_in_w_of_a_linear_generator_are_as_long_as_the_difference_of_its_images(metric):
    generator = Linear()
    ends, places = draw_paths(50, WIDTH, seed=0)
    images = [generator(z, noise="const") for z in ends]
    found = path_lengths(generator, ends, places, None, metric, squared)
    torch.testing.assert_close(found, squared(*images).double(), rtol=0.05, atol=1e-3)  # w is rounded to fp32


def test_paths_in_z_of_a_linear_generator():
    """Latents move on a sphere of radius sqrt(D), by the angle between both: at right angles to where they are."""
    generator = Linear()
    generator.to_w.copy_(torch.eye(WIDTH)), generator.to_image.copy_(torch.eye(WIDTH))
    ends, places = draw_paths(50, WIDTH, seed=0)
    found = path_lengths(generator, ends, places, None, "ppl-z", squared)
    angle = torch.acos(nn.functional.cosine_similarity(*ends.double(), dim=1))
    torch.testing.assert_close(found, WIDTH * angle.square(), rtol=0.05, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["features", "lpips"])
def test_perceptual_paths_of_a_linear_generator(by, request):
    """They are as long as the features' derivative along the difference of the images."""
    distance = PerceptualDistance() if by == "features" else LPIPS(request.getfixturevalue("vgg_file"))
    generator = Linear()
    ends, places = draw_paths(3, WIDTH, seed=0)
    found = path_lengths(generator, ends, places, None, "ppl-w", distance)
    first, second = (generator(z, noise="const") for z in ends)
    images = torch.lerp(first, second, places.double()[:, None, None, None])
    features = lambda images: tuple(distance.features(images))
    _, slopes = torch.autograd.functional.jvp(features, images, second - first)
    expected = distance.between(list(slopes), [torch.zeros_like(each) for each in slopes])
    torch.testing.assert_close(found, expected.double(), rtol=0.05, atol=0)


def test_an_arc_begins_and_ends_at_the_latents_directions():
    (first, second), _ = draw_paths(5, WIDTH, seed=1)
    for t, end in ((0.0, first), (1.0, second)):
        expected = math.sqrt(WIDTH) * end / end.norm(dim=1, keepdim=True)
        torch.testing.assert_close(
            path_length.arc(first, second, torch.full((5, 1), t)), expected, rtol=1e-4, atol=1e-5
        )


def test_the_mean_leaves_out_a_hundredth_at_either_end():
    lengths = torch.arange(200.0)
    lengths[-2:], lengths[:2] = 1e9, -1e9
    assert summary(lengths) == pytest.approx(float(lengths[2:-2].mean()))


def make(arch="stylegan2", num_classes=3):
    torch.manual_seed(0)
    sizes = {"resolution": 16, "z_dim": 8, "channel_base": 128, "channel_max": 8}
    generator, _ = build(ModelConfig(arch=arch, channels=1, num_classes=num_classes, **sizes))
    return generator.eval().requires_grad_(False)


@pytest.mark.slow
def test_perceptual_paths_of_a_generator():
    """Longer for a generator of twice the contrast in w; a path does not depend on those beside it."""
    generator, distance = make(), PerceptualDistance()
    ends, places = draw_paths(4, 8, seed=0)
    label = torch.arange(4) % 3
    for metric in METRICS:
        found = path_lengths(generator, ends, places, label, metric, distance)
        alone = path_lengths(generator, ends[:, :1], places[:1], label[:1], metric, distance)
        assert (found > 0).all() and found[0] == pytest.approx(float(alone[0]), rel=0.1)


@pytest.mark.slow
def test_the_perceptual_distance():
    """Zero for equal images, symmetric, larger for other images than for slightly changed ones, and differentiable."""
    torch.manual_seed(0)
    distance = PerceptualDistance()
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    slightly = (images + 0.02 * torch.randn_like(images)).requires_grad_()
    others = images.flip(0)
    assert torch.equal(distance(images, images), torch.zeros(3))
    torch.testing.assert_close(distance(images, others), distance(others, images))
    found = distance(images, slightly)
    assert (found[0] < distance(images, others)[0]) and (found > 0).all()
    found.sum().backward()
    assert slightly.grad.abs().sum((1, 2, 3)).min() > 0
    grey, colour = distance(images, others), distance(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey, colour)
    opaque = torch.ones(3, 1, 32, 32)
    transparent = [torch.cat([each.expand(-1, 3, -1, -1), opaque], 1) for each in (images, others)]
    torch.testing.assert_close(distance(*transparent), grey)
