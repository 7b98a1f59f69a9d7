"""modulated_conv2d and the resampled convolutions, against their definitions."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan import layers
from fastgan.ops import conv_downsample2d, modulated_conv2d, upsample_conv2d
from tests.support.accuracy import assert_as_good_as_plain

modulated = sys.modules[modulated_conv2d.__module__]
RESAMPLING = [(1, 1), (2, 1), (1, 2)]


def filtered(x, up, down, pads):
    """Zero insertion, padding, StyleGAN2's bilinear filter and decimation in separate steps, in the dtype of x."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    kernel = torch.outer(row, row).expand(c, 1, 4, 4)
    return F.conv2d(F.pad(spread, pads), kernel * up**2, groups=c)[:, :, ::down, ::down]


def by_weights(x, weight, style, demodulate=True, up=1, down=1):
    """The definition (Karras et al. 2020, equations 1 and 3): a weight for each sample, in one grouped convolution.

    Resampling filters the image at the larger size. Then it convolves by the flipped weight to upsample (a true
    convolution, as a transposed one is), or by the weight to downsample.
    """
    n, i, h, w = x.shape
    weights = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    k = weight.shape[-1]
    if up == 2:
        weights = weights.flip(3, 4)
        x = filtered(x, 2, 1, (2 + k // 2, 1 + k // 2) * 2)
    elif down == 2:
        x = filtered(x, 1, 1, (1 + k // 2,) * 4)
    else:
        x = F.pad(x, (k // 2,) * 4)
    y = F.conv2d(x.reshape(1, n * i, *x.shape[2:]), weights.flatten(0, 1), groups=n, stride=down)
    return y.reshape(n, -1, *y.shape[2:])


def tensors(dtype=torch.float64, n=3, i=4, o=6, size=(6, 8), k=3):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    return normal(n, i, *size), normal(o, i, k, k), normal(n, i)


@pytest.mark.parametrize("size", [(6, 8), (2, 10), (1, 1)])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize(("up", "down"), RESAMPLING)
@pytest.mark.parametrize("demodulate", [True, False])
def test_it_equals_a_convolution_with_modulated_weights(size, k, up, down, demodulate):
    if down == 2 and size == (1, 1):
        size = (2, 2)
    x, weight, style = tensors(size=size, k=k)
    got = modulated_conv2d(x, weight, style, demodulate=demodulate, up=up, down=down)
    assert got.shape == (3, 6, size[0] * up // down, size[1] * up // down)
    torch.testing.assert_close(got, by_weights(x, weight, style, demodulate, up, down), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 3.0, 2.0, 1.0)])
@pytest.mark.parametrize(("k", "padding"), [(1, 1), (3, 0), (3, None), (5, None), (7, None)])
def test_upsampling_is_exact_at_the_borders_for_any_filter(weights, k, padding):
    x, weight, style = tensors(size=(5, 6), k=k)
    taps = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    got = modulated_conv2d(x, weight, style, demodulate=False, up=2, taps=taps, padding=padding)
    # Zero insertion, then the filter at the larger size, then the convolution with the flipped weight.
    spread = x.new_zeros(3, 4, 10, 12)
    spread[:, :, ::2, ::2] = x * style[:, :, None, None]
    pad = k // 2 if padding is None else padding
    front, back = pad + (len(taps) + 1) // 2, pad + (len(taps) - 2) // 2
    kernel = torch.outer(taps, taps).flip(0, 1).expand(4, 1, -1, -1) * 4
    image = F.conv2d(F.pad(spread, (front, back, front, back)), kernel, groups=4)
    torch.testing.assert_close(got, F.conv2d(image, weight.flip(2, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 1), (1, 4)])
def test_kernels_may_be_even_or_not_square(kernel):
    x, weight, style = tensors(k=4)
    weight = weight[:, :, : kernel[0], : kernel[1]].contiguous()
    got = modulated_conv2d(x, weight, style)
    expected = [
        F.conv2d(x[n : n + 1], weight * style[n][:, None, None], padding=(kernel[0] // 2, kernel[1] // 2))
        for n in range(3)
    ]
    energy = (weight * style[:, None, :, None, None]).square().sum((2, 3, 4)) + 1e-8
    torch.testing.assert_close(got, torch.cat(expected) * energy.rsqrt()[:, :, None, None])


@pytest.mark.parametrize(("up", "down"), RESAMPLING)
def test_it_is_twice_differentiable_in_all_tensors(up, down):
    x, weight, style = tensors(n=2, i=2, o=3, size=(2, 4))
    bias, post = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, style, bias, post)]

    def function(x, weight, style, bias, post):
        return modulated_conv2d(x, weight, style, up=up, down=down, bias=bias, post=post, act="tanh")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("up", "down"), RESAMPLING)
def test_it_is_as_accurate_as_modulated_weights(dtype, up, down):
    x, weight, style = tensors(dtype, n=2, i=16, o=8)
    x = x.contiguous(memory_format=torch.channels_last)
    reference = by_weights(x.double(), weight.double(), style.double(), True, up, down)
    plain = by_weights(x, weight, style, True, up, down)
    got = modulated_conv2d(x, weight.float(), style.float(), up=up, down=down)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_plain(got, plain, reference, dtype, "y")


@pytest.mark.parametrize("demodulate", [True, False])
def test_fp16_intermediates_do_not_overflow_if_the_result_does_not(demodulate):
    x, weight, style = tensors(torch.float32, i=64, o=8)
    x, weight, style = x * 100, weight * 1e-3, style * 2000
    if demodulate:
        weight = weight * 1e5  # cancels
    reference = by_weights(x.double(), weight.double(), style.double(), demodulate)
    got = modulated_conv2d(x.half(), weight, style, demodulate=demodulate)
    assert reference.abs().max() < 60000 and (x * style[:, :, None, None]).abs().max() > 65504
    error = (got.double() - reference).norm() / reference.norm()
    assert error < 2e-3
    if not demodulate:
        return  # gradients may overflow then: the gradient scaler's concern
    inputs = [t.requires_grad_() for t in (weight, style)]
    grads = torch.autograd.grad(modulated_conv2d(x.half(), *inputs, demodulate=demodulate).double().sum(), inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(by_weights(x.half().double(), *wide, demodulate).sum(), wide)
    for g, e in zip(grads, expected, strict=True):
        assert (g.double() - e).norm() / e.norm() < 0.02


def first_and_second(function, inputs, dy):
    """The result, its gradients, and second derivatives: of the image gradient alone, as for R1, and of all."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*inputs)
    first = torch.autograd.grad(y, inputs, dy.to(y.dtype), create_graph=True)
    draw = torch.Generator().manual_seed(2)
    products = [(g.double() * torch.randn(g.shape, generator=draw, dtype=torch.float64)).sum() for g in first]
    of_image = torch.autograd.grad(products[0], inputs[1:], retain_graph=True)
    return [g.double() for g in (y, *first, *of_image, *torch.autograd.grad(sum(products), inputs))]


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("up", "down"), RESAMPLING)
def test_fp16_intermediates_do_not_overflow_if_the_gradients_do_not(up, down, demodulate, scale):
    """The gradient scaler scales a loss until its gradients nearly overflow. Weights have no gain, or a small one."""
    x, weight, style = tensors(torch.float32, n=4, i=64, o=8, size=(16, 16))
    weight = weight if scale > 1 else weight * 0.04
    x = x.half()
    options = {"demodulate": demodulate, "up": up, "down": down}
    y = by_weights(x.double(), weight.double(), style.double(), **options)
    dy = scale * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = [t.double() for t in (x, weight, style)]
    reference = first_and_second(lambda *t: by_weights(*t, **options), wide, dy.half().double())
    got = first_and_second(lambda *t: modulated_conv2d(*t, **options), (x, weight, style), dy.half())
    assert max(r.abs().max() for r in reference) < 65504
    for g, r in zip(got, reference, strict=True):
        assert (g - r).norm() < 1e-3 * r.norm()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_in_fp16_the_convolutions_output_is_no_larger_than_the_result(demodulate, scaled, monkeypatch):
    """Nothing overflows unless the result does, for weights and styles of any size."""
    made = []
    convolve = modulated.conv2d
    monkeypatch.setattr(modulated, "conv2d", lambda *args, **named: made.append(convolve(*args, **named)) or made[-1])
    x, weight, style = tensors(torch.float32, i=16, o=8)
    for of_weight in (1e-3, 1.0, 100.0):
        for of_style in (0.01, 1.0, 50.0):
            w, s = weight * of_weight, style * of_style
            given = x * s[:, :, None, None] / of_style if scaled else x
            y = modulated_conv2d(given.half(), w, s, demodulate=demodulate, scaled=scaled)
            largest = made.pop().abs().max()
            assert largest.isfinite() and largest <= 1.01 * y.abs().max()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns, in fp32 elements."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.nbytes // 4)
        return result


@pytest.mark.parametrize(("up", "down"), RESAMPLING)
@pytest.mark.parametrize("demodulate", [True, False])
def test_no_tensor_holds_a_weight_for_each_sample(up, down, demodulate):
    n, i, o = 16, 64, 48
    x, weight, style = (t.requires_grad_() for t in tensors(torch.float32, n, i, o, size=(2, 2)))
    assert weight.numel() < n * o * i and n * max(i, o) * 5 * 5 < n * o * i  # so no other tensor is as large
    with Largest() as seen:
        modulated_conv2d(x, weight, style, demodulate=demodulate, up=up, down=down).sum().backward()
    assert 0 < seen.elements < n * o * i


def test_consecutive_layers_fuse():
    """One pass applies demodulation, noise, bias, activation and the style of the next layer."""
    first, second = layers.ModulatedConv2d(4, 6, 3, up=2).double(), layers.ModulatedConv2d(6, 5, 3).double()
    end = layers.NoiseBiasLeakyReLU(6).double()
    torch.nn.init.normal_(end.strength)
    x, _, s1 = tensors()
    s2, noise = torch.randn(3, 6).double(), torch.randn(3, 1, 12, 16).double()
    apart = second(end(first(x, s1), noise), s2)
    arguments = end.arguments((3, 6, 12, 16), x.device, noise)
    fused = second(first(x, s1, post=s2, **arguments), s2, scaled=True)
    torch.testing.assert_close(fused, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4)}, "x has shape"),
        ({"weight": torch.zeros(6, 5, 3, 3)}, r"weight has shape \[6, 5, 3, 3\], must be \[O, 4"),
        ({"style": torch.zeros(2, 4)}, r"style has shape \[2, 4\], must be \[3, 4\]"),
        ({"up": 2, "down": 2}, "up and down are 2 and 2"),
        ({"padding": -1}, "padding is -1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(change, message):
    x, weight, style = tensors(torch.float32)
    with pytest.raises(ValueError, match=message):
        modulated_conv2d(**{"x": x, "weight": weight, "style": style, **change})


# Resampled convolutions ------------------------------------------------------------------------------------------


def upsampled_then_convolved(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=weight.shape[-1] // 2)


def convolved_then_pooled(x, weight, bias):
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2), 2)


PAIRS = [(upsample_conv2d, upsampled_then_convolved), (conv_downsample2d, convolved_then_pooled)]
pairs = pytest.mark.parametrize(("fused", "two_steps"), PAIRS, ids=["up", "down"])


@pairs
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("size", [(2, 2), (6, 9), (7, 4)])
def test_resampled_convolutions_equal_their_two_steps_everywhere(fused, two_steps, k, size):
    x, weight, _ = (t.requires_grad_() for t in tensors(size=size, k=k))
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    got, expected = fused(x, weight, bias), two_steps(x, weight, bias)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    dy = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), dy) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pairs
def test_resampled_convolutions_keep_the_memory_format(fused, two_steps):
    x, weight, _ = tensors(torch.float32)
    assert fused(x.contiguous(memory_format=torch.channels_last), weight).is_contiguous(
        memory_format=torch.channels_last
    )


@pairs
def test_resampled_convolutions_name_arguments_that_do_not_fit(fused, two_steps):
    x, weight, _ = tensors(torch.float32, k=4)
    with pytest.raises(ValueError, match="kernel size must be odd"):
        fused(x, weight)
    with pytest.raises(ValueError, match=r"must be \[O, 4, k, k\]"):
        fused(x, weight[:, :3])


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (layers.UpsampleConv2d, lambda conv: torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), conv)),
        (layers.ConvDownsample2d, lambda conv: torch.nn.Sequential(conv, torch.nn.AvgPool2d(2))),
    ],
)
def test_resampling_layers_stand_in_for_two_plain_ones(layer, plain):
    conv = torch.nn.Conv2d(4, 6, 3, padding=1)
    fused = layer(4, 6)
    fused.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fused(x), plain(conv)(x), rtol=1e-4, atol=1e-5)
    activated = layer(4, 6, act="lrelu", gain=1.0)
    activated.load_state_dict(conv.state_dict())
    torch.testing.assert_close(activated(x), F.leaky_relu(plain(conv)(x), 0.2), rtol=1e-4, atol=1e-5)


def test_equalized_resampling_layers_start_at_the_variance_of_their_two_steps():
    """A convolution keeps the variance of its input. The mean of 4 pixels has a quarter of the variance."""
    x = torch.randn(4, 64, 16, 16)
    pooled = layers.ConvDownsample2d(64, 128, equalized=True)(x)[..., 1:-1, 1:-1]
    assert pooled.std().item() == pytest.approx(0.5, rel=0.05)
    enlarged = layers.UpsampleConv2d(64, 128, equalized=True)(x)[..., 2:-2, 2:-2]
    assert enlarged.std().item() == pytest.approx(1.0, rel=0.05)
