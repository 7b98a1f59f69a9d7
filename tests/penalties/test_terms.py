"""R1, R2 and WGAN-GP against the formulas of their papers."""

import pytest
import torch
from torch import nn

from fastgan import penalties
from fastgan.penalties import one_centered_penalty, zero_centered_penalty


def test_penalties_equal_the_papers_formulas():
    squares = torch.tensor([0.25, 4.0])
    torch.testing.assert_close(zero_centered_penalty(squares), torch.tensor(4.25 / 4))
    torch.testing.assert_close(one_centered_penalty(squares), torch.tensor((0.25 + 1) / 2))
    torch.testing.assert_close(one_centered_penalty(squares, one_sided=True), torch.tensor(0.5))


def test_a_gradient_norm_of_zero_has_a_finite_derivative():
    squares = torch.zeros(2, requires_grad=True)
    one_centered_penalty(squares).backward()
    assert torch.equal(squares.grad, torch.zeros(2))


def test_wgan_gp_of_a_linear_discriminator():
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    real, fake = torch.randn(2, 5, 3, 2, 2)
    expected = (discriminator[1].weight.norm() - 1).square()
    torch.testing.assert_close(penalties.wgan_gp(discriminator, real, fake), expected)


def test_interpolation_is_between_the_images_of_a_pair():
    real, fake = torch.zeros(64, 3, 2, 2), torch.ones(64, 3, 2, 2, requires_grad=True)
    between = penalties.interpolate(real, fake)
    assert not between.requires_grad
    share = between[:, 0, 0, 0]
    assert torch.equal(between, share[:, None, None, None].expand_as(between))
    assert 0 <= share.min() < 0.2
    assert 0.8 < share.max() <= 1
    with pytest.raises(ValueError, match="fake has shape"):
        penalties.interpolate(real, fake[:3])
