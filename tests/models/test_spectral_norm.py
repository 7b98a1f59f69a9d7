"""Spectral normalization: the estimate of sigma, gradients, and that forward passes change nothing."""

import copy

import pytest
import torch
from torch import nn

from fastgan.layers import Conv2d, UpsampleConv2d
from fastgan.models.spectral_norm import merge_spectral_norm, normalized_layers, power_iteration, spectral

LAYERS = {
    "convolution": lambda: Conv2d(5, 7, 3, bias=False),
    "convolution after upsampling": lambda: UpsampleConv2d(5, 7, bias=False),
    "transposed convolution": lambda: nn.ConvTranspose2d(5, 7, 4, bias=False),
    "embedding": lambda: nn.Embedding(6, 5),
}


def matrix(name, weight):
    """[O, rest], in any order of the rest."""
    return (weight.transpose(0, 1) if name == "transposed convolution" else weight).flatten(1)


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    made = LAYERS[request.param]().double().to(memory_format=torch.channels_last)
    return request.param, copy.deepcopy(made.weight.detach()), spectral(made)


def test_the_largest_singular_value_becomes_one(layer):
    name, weight, normalized = layer
    for _ in range(100):
        power_iteration(normalized_layers(normalized))
    sigma = torch.linalg.matrix_norm(matrix(name, weight), 2)
    torch.testing.assert_close(normalized.weight, weight / sigma)


def test_only_power_iterations_change_the_estimate(layer):
    _, _, normalized = layer
    before = normalized.weight.detach().clone()
    for each in (normalized.train(), normalized.eval()):
        assert torch.equal(each.weight, before)
    power_iteration(normalized_layers(normalized))
    assert not torch.equal(normalized.weight, before)


def test_weights_of_a_network_in_channels_last_are_not_copied(layer):
    name, _, normalized = layer
    normalized.to(memory_format=torch.channels_last)
    ((norm, original),) = normalized_layers(normalized)
    assert norm._matrix(original).data_ptr() == original.data_ptr()
    assert normalized.weight.stride() == original.stride()
    if name == "convolution after upsampling":
        assert normalized.weight.transpose(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_those_of_the_formula(layer):
    """sigma = u^T W v with constant u and v (Miyato et al. 2018, equation 12)."""
    _, _, normalized = layer
    ((norm, original),) = normalized_layers(normalized)
    torch.autograd.gradcheck(norm, (original,), fast_mode=True)
    torch.autograd.gradgradcheck(norm, (original,), fast_mode=True)


def test_autocast_does_not_reach_the_estimate():
    torch.manual_seed(0)
    layer = spectral(Conv2d(8, 8, 3))
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_merged_weights_are_the_effective_ones(layer):
    _, _, normalized = layer
    expected = normalized.weight.detach().clone()
    merge_spectral_norm(nn.Sequential(normalized))
    assert not normalized_layers(normalized) and [*normalized.state_dict()] == ["weight"]
    assert torch.equal(normalized.weight, expected)
