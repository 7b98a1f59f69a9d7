"""Drop-in layers against their definitions in plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgan import layers, models
from fastgan.ops.upfirdn2d import taps
from fastgan.penalties import logits_and_squared_grad
from tests.support import backends


def direct_upfirdn2d(x, kernel, up, down, padding, gain):
    """Reference of upfirdn2d with a separable filter: zero insertion, padding or cropping, convolution, decimation."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, padding)
    flipped = torch.outer(kernel, kernel).flip(0, 1).to(x.dtype).expand(c, 1, -1, -1)
    return (F.conv2d(spread, flipped, groups=c) * gain)[:, :, ::down, ::down]


@pytest.mark.parametrize("weights", [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 5, 10, 10, 5, 1)])
def test_resampling_keeps_constants_and_positions(weights):
    """A constant image stays constant, and a ramp is not shifted."""
    x = torch.ones(1, 2, 16, 24)
    inner = lambda t: t[:, :, 6:-6, 6:-6]
    for layer, factor in ((layers.Blur2d(weights), 1), (layers.Upsample2d(weights), 2)):
        assert layer(x).shape == (1, 2, 16 * factor, 24 * factor)
        torch.testing.assert_close(inner(layer(x)), torch.ones_like(inner(layer(x))))
    down = layers.Downsample2d(weights)
    assert down(x).shape == (1, 2, 8, 12)
    torch.testing.assert_close(down(x)[:, :, 3:-3, 3:-3], torch.ones(1, 2, 2, 6))
    if len(weights) % 2 == 0:  # others are off by half a pixel, as everywhere
        ramp = torch.arange(24.0).expand(1, 1, 16, 24) + 0.5  # of pixel centres
        expected = (torch.arange(12.0) * 2 + 1).expand(1, 1, 8, 12)
        torch.testing.assert_close(down(ramp)[:, :, 3:-3, 3:-3], expected[:, :, 3:-3, 3:-3])
        expected = ((torch.arange(48.0) + 0.5) / 2).expand(1, 1, 32, 48)
        if weights != (1, 1):  # nearest
            torch.testing.assert_close(inner(layers.Upsample2d(weights)(ramp)), inner(expected))


def test_resampling_equals_the_reference():
    x = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(layers.Upsample2d()(x), direct_upfirdn2d(x, taps(), 2, 1, (2, 1, 2, 1), 4.0))
    torch.testing.assert_close(layers.Downsample2d()(x), direct_upfirdn2d(x, taps(), 1, 2, (1, 1, 1, 1), 1.0))
    torch.testing.assert_close(layers.Blur2d()(x), direct_upfirdn2d(x, taps(), 1, 1, (2, 1, 2, 1), 1.0))
    behind = layers.Blur2d(padding=(1, 1), gain=4.0)
    torch.testing.assert_close(behind(x), direct_upfirdn2d(x, taps(), 1, 1, (1, 1, 1, 1), 4.0))
    assert behind(x).shape == (2, 3, 5, 7) and not behind.state_dict()


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
def test_pixel_norm_makes_the_mean_square_one(shape):
    x = 5 * torch.randn(shape)
    y = layers.PixelNorm()(x)
    torch.testing.assert_close(y.square().mean(1), torch.ones_like(y[:, 0]))
    torch.testing.assert_close(F.normalize(y, dim=1), F.normalize(x, dim=1))


def test_minibatch_stddev_is_computed_within_groups():
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
def test_invalid_convolutions_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        layers.EqualizedConv2d(3, 4, **arguments)


def styled_by_hand(layer, x, w):
    """Reference: PyTorch's instance norm, and a style by the layer's affine layer."""
    scale, bias = (w @ layer.affine.weight.t() / math.sqrt(w.shape[1]) + layer.affine.bias).chunk(2, 1)
    return (scale[..., None, None] + 1) * F.instance_norm(x, eps=layer.eps) + bias[..., None, None]


def block_of(backend):
    """The layers of a residual block, which downsample, and images."""
    torch.manual_seed(0)
    options = {"down": 2, "act": "lrelu", "clamp": 1.5}
    conv = layers.EqualizedConv2d(16, 16, 3, act="lrelu", clamp=0.5)
    down = layers.EqualizedConv2d(16, 8, 3, gain=1.0, **options)
    skip = layers.EqualizedConv2d(16, 8, 1, bias=False, down=2)
    block = nn.ModuleList([conv, down, skip]).to(backends.device(backend), torch.float64)
    for layer in (conv, down):
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 16, 8, 6, dtype=torch.float64, device=backends.device(backend))
    return block, x.contiguous(memory_format=torch.channels_last).requires_grad_()


def test_layers_of_a_residual_block_in_fewer_passes_are_the_same_function(backend):
    (conv, down, skip), x = block_of(backend)
    parameters = [x, *conv.parameters(), *down.parameters(), *skip.parameters()]

    def derivatives(y):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, gradient, *torch.autograd.grad(gradient.square().sum() + y.sum(), parameters)

    same, residual = skip.beside(x)
    got = derivatives(down.after(conv, same, residual=residual))
    for a, b in zip(got, derivatives(down(conv(x)) + skip(x)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weights", [(1, 2, 1), (1, 3, 3, 1), (1, 2, 3, 4, 5)])
def test_a_blur_after_an_activation_in_fewer_passes_is_the_same_function(weights, backend):
    (conv, *_), x = block_of(backend)
    blur = layers.Blur2d(weights).to(x.device, x.dtype)

    def derivatives(y):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, gradient, *torch.autograd.grad(gradient.square().sum() + y.sum(), [x, *conv.parameters()])

    for a, b in zip(derivatives(blur.after(conv, x)), derivatives(blur(conv(x))), strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_of_layers_that_could_be_fused_run(backend):
    (conv, down, skip), x = block_of(backend)
    blur, seen = layers.Blur2d().to(x.device, x.dtype), []
    for layer in (conv, down, skip, blur):
        layer.register_forward_hook(lambda module, _, y: seen.append((module, y.shape)))
    down.after(conv, *skip.beside(x)[:1])
    assert seen == [(skip, (2, 8, 4, 3)), (conv, (2, 16, 8, 6)), (down, (2, 8, 4, 3))]
    blur.after(conv, x)
    assert seen[3:] == [(conv, (2, 16, 8, 6)), (blur, (2, 16, 8, 6))]


def test_adain_equals_the_reference(backend):
    device = backends.device(backend)
    layer = layers.AdaIN(6, 5).to(device)
    torch.nn.init.normal_(layer.affine.bias)
    x, w = torch.randn(3, 6, 7, 5, device=device), torch.randn(3, 5, device=device)
    torch.testing.assert_close(layer(x, w), styled_by_hand(layer, x, w), rtol=1e-4, atol=1e-5)
    assert layer.affine.weight.shape == (12, 5) and layer.eps == 1e-5


@pytest.mark.parametrize("with_noise", [True, False])
def test_style_epilogue_equals_the_reference(backend, with_noise):
    device = backends.device(backend)
    layer = layers.StyleEpilogue(6, 5, noise=with_noise, gain=math.sqrt(2)).to(device)
    assert layer.eps == 1e-8
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, w = torch.randn(3, 6, 7, 5, device=device), torch.randn(3, 5, device=device)
    noise = torch.randn(3, 1, 7, 5, device=device)
    u = x + layer.bias[:, None, None]
    if with_noise:
        assert layer.strength.shape == (6,)  # one a channel
        u = u + layer.strength[:, None, None] * noise
    expected = styled_by_hand(layer, F.leaky_relu(u, 0.2) * math.sqrt(2), w)
    torch.testing.assert_close(layer(x, w, noise), expected, rtol=1e-4, atol=1e-4)
    layer(x, w, noise).pow(3).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_style_epilogue_draws_noise_if_none_is_given():
    layer = layers.StyleEpilogue(4, 5)
    x, w = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    assert torch.equal(layer(x, w), layer(x, w))  # its strength is zero so far
    torch.nn.init.ones_(layer.strength)
    assert not torch.equal(layer(x, w), layer(x, w))


def test_one_plus_style_is_computed_in_fp32_under_autocast():
    layer = layers.AdaIN(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        scale, _ = layer.style(torch.randn(2, 5))
        y = layer(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16), torch.randn(2, 5))
    assert scale.dtype == torch.float32 and y.dtype == torch.bfloat16


def test_noise_is_drawn_if_none_is_given_and_scaled_by_strength():
    layer = layers.NoiseBiasLeakyReLU(4)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(layer(x), layer(x))
    torch.nn.init.ones_(layer.strength)
    assert not torch.equal(layer(x), layer(x))
    layer(x).sum().backward()
    assert layer.strength.grad is not None


def test_r1_gradients_equal_plain_pytorch(backend):
    """End to end through backward and double backward kernels."""
    device = backends.device(backend)
    torch.manual_seed(0)
    config = models.ModelConfig(resolution=8, channel_base=64, channel_max=16, num_classes=3)
    _, discriminator = models.build(config)
    discriminator = discriminator.to(device, torch.float64)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64, device=device)
    labels = torch.tensor([0, 1, 2, 0], device=device)

    def gradients():
        discriminator.zero_grad()
        logits, squares = logits_and_squared_grad(discriminator, images, labels)
        (F.softplus(-logits).mean() + 5 * squares.mean()).backward()
        return squares.detach(), [p.grad.clone() for p in discriminator.parameters()]

    squares, got = gradients()
    with backends.forced("torch"):
        expected_squares, expected = gradients()
    torch.testing.assert_close(squares, expected_squares, rtol=1e-6, atol=1e-8)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1, "bias": False},
        {"stride": (2, 1), "padding": (1, 0)},
        {"groups": 2, "dilation": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("channels", [1, 16])
def test_convolutions_equal_pytorch(options, channels):
    """Values, first and second derivatives; 16 channels to 2 is a matrix product on a CPU."""
    channels = channels * options.get("groups", 1)
    pairs = [(layers.Conv2d(channels, 2, 3, **options), torch.nn.Conv2d(channels, 2, 3, **options))]
    if isinstance(options.get("padding"), int | tuple | None) and "padding_mode" not in options:
        pairs.append(
            (layers.ConvTranspose2d(channels, 2, 3, **options), torch.nn.ConvTranspose2d(channels, 2, 3, **options))
        )
    for ours, theirs in pairs:
        ours, theirs = (each.double().to(memory_format=torch.channels_last) for each in (ours, theirs))
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(3, channels, 7, 8, dtype=torch.double).to(memory_format=torch.channels_last)
        results = []
        for conv in (ours, theirs):
            image = x.clone().requires_grad_()
            y = conv(image)
            (dx,) = torch.autograd.grad(y.square().sum(), image, create_graph=True)
            dx.square().sum().backward()
            results.append((y, dx, image.grad, conv.weight.grad))
        torch.testing.assert_close(*results)


def test_transposed_convolution_supports_output_size():
    ours, theirs = (kind(4, 2, 3, stride=2, padding=1) for kind in (layers.ConvTranspose2d, torch.nn.ConvTranspose2d))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(ours(x, output_size=[10, 10]), theirs(x, output_size=[10, 10]))


@pytest.mark.parametrize(
    "layer",
    [layers.UpsampleConv2d(4, 6), layers.ConvDownsample2d(4, 6), layers.ModulatedConv2d(4, 6, 3, up=2)],
    ids=lambda layer: type(layer).__name__,
)
def test_weights_have_the_memory_format_that_their_convolution_reads(layer):
    before = layer.weight.detach().clone()
    layer.to(memory_format=torch.channels_last).to(torch.float64).to(memory_format=torch.channels_last)
    read = layer.weight.transpose(0, 1) if layer.reads_transposed else layer.weight
    assert read.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight.float(), before)
    layer.to(memory_format=torch.contiguous_format)
