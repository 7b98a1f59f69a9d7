"""The drop-in layers, against what they are defined to be."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastgan import layers, models
from fastgan.losses import critic_with_grad_norm
from fastgan.ops.upfirdn2d import taps, upfirdn2d
from tests import backends


def direct_upfirdn2d(x, kernel, up, down, padding, gain):
    """Zero insertion, padding (or cropping), full convolution, decimation: step by step."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, padding)
    flipped = kernel.flip(0, 1).to(x.dtype).expand(c, 1, *kernel.shape)
    return (F.conv2d(spread, flipped, groups=c) * gain)[:, :, ::down, ::down]


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 2, 1), (1, 1, 1, 1), (3, 2, 0, 1)])
def test_upfirdn2d_is_pad_insert_filter_decimate(up, down, padding):
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    kernel = taps().double()
    expected = direct_upfirdn2d(x, kernel, up, down, padding, 1.7)
    torch.testing.assert_close(upfirdn2d(x, kernel, up=up, down=down, padding=padding, gain=1.7), expected)
    function = lambda x: upfirdn2d(x, kernel, up=up, down=down, padding=padding)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_upsampling_keeps_the_brightness():
    flat = torch.ones(1, 1, 8, 8)
    up = upfirdn2d(flat, taps(), up=2, padding=(2, 1, 2, 1), gain=4.0)
    assert up.shape == (1, 1, 16, 16)
    torch.testing.assert_close(up[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


def modulated_by_weights(x, weight, style, up, demodulate, gain):
    """The definition: a weight of its own for each sample (Karras et al. 2020, equations 1 and 3)."""
    outputs = []
    for sample, s in zip(x, style, strict=True):
        w = weight * gain * s[None, :, None, None]
        if demodulate:
            w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if up == 2:
            y = F.conv_transpose2d(sample[None], w.transpose(0, 1), stride=2)
            pad = 2 - weight.shape[-1] // 2
            y = direct_upfirdn2d(y, taps().to(x.dtype), 1, 1, (pad,) * 4, 4.0)
        else:
            y = F.conv2d(sample[None], w, padding=weight.shape[-1] // 2)
        outputs.append(y)
    return torch.cat(outputs)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_conv_equals_one_with_modulated_weights(kernel_size, up, demodulate):
    layer = layers.ModulatedConv2d(4, 6, kernel_size, up=up, demodulate=demodulate).double()
    x = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    style = torch.randn(3, 4, dtype=torch.float64)
    expected = modulated_by_weights(x, layer.weight, style, up, demodulate, layer.weight_gain)
    assert expected.shape[2:] == (5 * up, 7 * up)
    # The demodulation factor is computed in fp32.
    torch.testing.assert_close(layer(x, style), expected, rtol=1e-5, atol=1e-6)


def test_styles_applied_by_the_layer_before_change_nothing():
    first, second = layers.ModulatedConv2d(4, 6, 3), layers.ModulatedConv2d(6, 5, 3)
    between = layers.NoiseBiasLeakyReLU(6, noise=False)
    x, s1, s2 = torch.randn(2, 4, 5, 5), torch.randn(2, 4), torch.randn(2, 6)
    apart = second(between(first(x, s1)), s2)
    fused = between(first.convolve(x, s1), scale=first.demodulation(s1), post=s2)
    fused = second(fused, s2, scaled=True)
    torch.testing.assert_close(fused, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_downsampling_convolution_filters_first(kernel_size):
    layer = layers.EqualizedConv2d(4, 6, kernel_size, down=2, act="lrelu")
    x = torch.randn(2, 4, 8, 8)
    pad = 1 + kernel_size // 2
    filtered = direct_upfirdn2d(x, taps(), 1, 1, (pad,) * 4, 1.0)
    y = F.conv2d(filtered, layer.weight / math.sqrt(4 * kernel_size**2), stride=2)
    torch.testing.assert_close(layer(x), F.leaky_relu(y, 0.2) * math.sqrt(2), rtol=1e-5, atol=1e-5)
    assert layer(x).shape == (2, 6, 4, 4)


def test_equalized_linear_scales_weight_and_bias():
    layer = layers.EqualizedLinear(8, 5, lr_multiplier=0.01, bias_init=1.0, act="lrelu")
    x = torch.randn(3, 8)
    expected = F.leaky_relu(x @ (layer.weight * 0.01 / math.sqrt(8)).t() + layer.bias * 0.01, 0.2) * math.sqrt(2)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.bias.detach() * 0.01, torch.ones(5))


@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (6, 512)])
def test_pixel_norm_leaves_a_mean_square_of_one(shape):
    x = 5 * torch.randn(shape)
    y = layers.PixelNorm()(x)
    torch.testing.assert_close(y.square().mean(1), torch.ones_like(y[:, 0]))
    torch.testing.assert_close(F.normalize(y, dim=1), F.normalize(x, dim=1))


def test_minibatch_stddev_is_that_of_groups():
    x = torch.randn(8, 3, 4, 4)
    y = layers.MinibatchStddev(4)(x)
    torch.testing.assert_close(y[:, :3], x)
    for i in range(8):
        group = x[i % 2 :: 2]  # samples i, i+2, i+4, i+6
        expected = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[i, 3], expected.expand(4, 4))
    with pytest.raises(ValueError, match="batch of 6"):
        layers.MinibatchStddev(4)(torch.randn(6, 3, 4, 4))


@pytest.mark.parametrize("arguments", [{"kernel_size": 2}, {"kernel_size": 3, "down": 4}])
def test_a_convolution_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        layers.EqualizedConv2d(3, 4, **arguments)


def test_noise_is_drawn_where_none_is_given_and_counts_once_strength_is_learned():
    layer = layers.NoiseBiasLeakyReLU(4)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(layer(x), layer(x))
    torch.nn.init.ones_(layer.strength)
    assert not torch.equal(layer(x), layer(x))
    layer(x).sum().backward()
    assert layer.strength.grad is not None


def test_r1_through_a_critic_has_the_gradients_of_plain_pytorch(backend):
    """The penalty end to end: first derivatives by the kernels' backward, second by their double backward."""
    device = backends.device(backend)
    torch.manual_seed(0)
    config = models.ModelConfig(resolution=8, channel_base=64, channel_max=16, num_classes=3)
    _, critic = models.build(config)
    critic = critic.to(device, torch.float64)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64, device=device)
    labels = torch.tensor([0, 1, 2, 0], device=device)

    def gradients():
        critic.zero_grad()
        logits, squares = critic_with_grad_norm(critic, images, labels)
        (F.softplus(-logits).mean() + 5 * squares.mean()).backward()
        return squares.detach(), [p.grad.clone() for p in critic.parameters()]

    squares, got = gradients()
    with backends.forced("torch"):
        expected_squares, expected = gradients()
    torch.testing.assert_close(squares, expected_squares, rtol=1e-6, atol=1e-8)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
