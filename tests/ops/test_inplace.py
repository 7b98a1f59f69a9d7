"""Results of every operation and layer may be modified in place, as PyTorch's."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import layers, ops
from tests.support import backends

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
# Shapes of x in one of the memory formats. Of one channel, one pixel or no sample, a result may be a view.
SHAPES = {
    "NCHW": ((2, 3, 5, 7), False),
    "NHWC": ((2, 3, 5, 7), True),
    "one channel": ((2, 1, 4, 4), True),
    "one pixel, NCHW": ((2, 32, 1, 1), False),
    "one pixel, NHWC": ((2, 32, 1, 1), True),
    "empty": ((0, 3, 4, 4), False),
}
# The derivative is computed from the result. If that was modified, autograd raises an error, as for torch.tanh.
KEEP_THEIR_RESULT = ("noise_bias_act", "EqualizedLinear of an activation")


class Draw:
    """Draws the tensors of a call, the same every time, and collects those that require a gradient."""

    def __init__(self, x: Tensor):
        self.x, self.leaves = x, [x]
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator).to(self.x.device).requires_grad_()
        self.leaves.append(drawn)
        return drawn

    def layer(self, make: Callable[..., nn.Module], *arguments, **options) -> nn.Module:
        torch.manual_seed(1)
        layer = make(*arguments, **options).to(self.x.device)
        self.leaves += layer.parameters()
        return layer


def c(x: Tensor) -> int:
    return x.shape[1]


def sampled(x: Tensor) -> tuple[int, int]:
    return x.shape[:2]


CASES: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "noise_bias_act": lambda x, t: ops.noise_bias_act(x, bias=t(c(x))),
    "noise_bias_act from x": lambda x, t: ops.noise_bias_act(x, bias=t(c(x)), act="silu"),
    "noise_bias_act with a residual": lambda x, t: ops.noise_bias_act(x, bias=t(c(x)), residual=t(*x.shape)),
    "noise_bias_act of nothing": lambda x, t: ops.noise_bias_act(x, act="linear"),
    "noise_bias_act_to_rgb": lambda x, t: ops.noise_bias_act_to_rgb(x, t(len(x), 3, c(x)), post=t(*sampled(x)))[0],
    "batch_norm_act": lambda x, t: ops.batch_norm_act(x, t(c(x)), t(c(x))),
    "batch_norm_act in evaluation": lambda x, t: layers.BatchNormAct(c(x)).to(x.device).eval()(x),
    "adain": lambda x, t: ops.adain(x, t(*sampled(x)), t(*sampled(x))),
    "style_epilogue": lambda x, t: ops.style_epilogue(x, bias=t(c(x)), style_scale=t(*sampled(x))),
    "modulated_conv2d": lambda x, t: ops.modulated_conv2d(x, t(5, c(x), 3, 3), t(*sampled(x))),
    "modulated_conv2d to few": lambda x, t: ops.modulated_conv2d(x, t(1, c(x), 1, 1), t(*sampled(x)), demodulate=False),
    "modulated_conv2d up": lambda x, t: ops.modulated_conv2d(x, t(5, c(x), 3, 3), t(*sampled(x)), up=2),
    "modulated_conv2d down": lambda x, t: ops.modulated_conv2d(x, t(5, c(x), 3, 3), t(*sampled(x)), down=2),
    "upfirdn2d": lambda x, t: ops.upfirdn2d(x, TAPS.to(x.device), up=2, padding=(2, 1, 2, 1)),
    "upfirdn2d of nothing": lambda x, t: ops.upfirdn2d(x, TAPS.new_ones(1).to(x.device)),
    "filtered_noise_bias_act": lambda x, t: ops.filtered_noise_bias_act(
        x, TAPS.to(x.device), padding=(2, 1, 2, 1), scale=t(*sampled(x))
    ),
    "bias_act_blur": lambda x, t: ops.bias_act_blur(x, TAPS.to(x.device), padding=(2, 2, 2, 2), bias=t(c(x))),
    "filtered_lrelu": lambda x, t: ops.filtered_lrelu(
        x, TAPS.to(x.device), TAPS.to(x.device), t(c(x)), up=2, down=2, padding=3
    ),
    "pixel_norm": lambda x, t: ops.pixel_norm(x),
    "squared_norm": lambda x, t: ops.squared_norm(x),
    "lerp_samples": lambda x, t: ops.lerp_samples(x, t(*x.shape), t(len(x)).detach()),
    "minibatch_stddev": lambda x, t: ops.minibatch_stddev(x),
    "conv2d": lambda x, t: ops.conv2d(x, t(5, c(x), 3, 3), t(5), padding=1),
    "conv2d to few": lambda x, t: ops.conv2d(x, t(2, c(x), 3, 3), padding=1),
    "conv2d to many": lambda x, t: ops.conv2d(x, t(64, c(x), 3, 3), padding=1),
    "conv2d to many, 1x1": lambda x, t: ops.conv2d(x, t(64, c(x), 1, 1)),
    "conv_transpose2d": lambda x, t: ops.conv_transpose2d(x, t(c(x), 3, 4, 4), stride=2, padding=1),
    "upsample_conv2d": lambda x, t: ops.upsample_conv2d(x, t(5, c(x), 3, 3), t(5)),
    "upsample_conv2d 1x1": lambda x, t: ops.upsample_conv2d(x, t(5, c(x), 1, 1)),
    "conv_downsample2d": lambda x, t: ops.conv_downsample2d(x, t(5, c(x), 3, 3), t(5)),
    "conv_downsample2d 1x1": lambda x, t: ops.conv_downsample2d(x, t(5, c(x), 1, 1)),
    "EqualizedLinear": lambda x, t: t.layer(layers.EqualizedLinear, c(x), 5)(x.mean((2, 3))),
    "EqualizedLinear of an activation": lambda x, t: t.layer(layers.EqualizedLinear, c(x), 5, act="lrelu")(
        x.mean((2, 3))
    ),
    "EqualizedConv2d": lambda x, t: t.layer(layers.EqualizedConv2d, c(x), 5, 3)(x),
    "EqualizedConv2d down": lambda x, t: t.layer(layers.EqualizedConv2d, c(x), 64, 3, down=2, bias=False)(x),
    "Blur2d": lambda x, t: t.layer(layers.Blur2d)(x),
    "Upsample2d": lambda x, t: t.layer(layers.Upsample2d)(x),
    "Downsample2d": lambda x, t: t.layer(layers.Downsample2d)(x),
    "AdaIN": lambda x, t: t.layer(layers.AdaIN, c(x), 5)(x, t(len(x), 5)),
    "StyleEpilogue": lambda x, t: t.layer(layers.StyleEpilogue, c(x), 5, noise=False)(x, t(len(x), 5)),
    "Conv2d": lambda x, t: t.layer(layers.Conv2d, c(x), 64, 3, padding=1, bias=False)(x),
    "ConvTranspose2d": lambda x, t: t.layer(layers.ConvTranspose2d, c(x), 3, 4, 2, 1, bias=False)(x),
    "UpsampleConv2d": lambda x, t: t.layer(layers.UpsampleConv2d, c(x), 64, bias=False)(x),
    "ConvDownsample2d": lambda x, t: t.layer(layers.ConvDownsample2d, c(x), 64, bias=False)(x),
    "PixelNorm": lambda x, t: t.layer(layers.PixelNorm)(x),
    "MinibatchStddev": lambda x, t: t.layer(layers.MinibatchStddev)(x),
}
HALVES = ("down", "Down")


def activations(size: tuple[int, ...], channels_last: bool, device: str) -> Tensor:
    n, channels, *rest = size
    x = torch.randn(n, channels, *rest, generator=torch.Generator().manual_seed(0)).to(device)
    return (
        x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).requires_grad_() if channels_last else x.requires_grad_()
    )


def derivatives(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """First and second derivatives of a function of the result."""
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True, allow_unused=True)
    second = sum((g.square().sum() for g in first if g is not None and g.requires_grad), y.new_zeros(()))
    if not second.requires_grad:
        return [*first]
    return [*first, *torch.autograd.grad(second, leaves, allow_unused=True)]


@pytest.mark.parametrize(("size", "channels_last"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", sorted({"torch", *backends.COMPILED}), indirect=True)  # others allocate as these do
def test_results_can_be_modified_in_place(name, size, channels_last, backend):
    if size[2] == 1 and any(part in name for part in HALVES):
        pytest.skip("no image is left of a single pixel")
    device = backends.device(backend)
    found = []
    for activate in (F.relu, F.relu_):
        t = Draw(activations(size, channels_last, device))
        y = CASES[name](t.x, t)
        kept = y.detach().clone()
        assert backend == "torch" or not y._is_view()  # PyTorch allows it for views that its own operations return
        assert y.untyped_storage().data_ptr() != t.x.untyped_storage().data_ptr() or not y.numel()
        z = activate(y)
        torch.testing.assert_close(z, F.relu(kept))
        if activate is F.relu_ and name in KEEP_THEIR_RESULT and backend != "torch":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                derivatives(z, t.leaves)
            return
        found.append(derivatives(z, t.leaves))
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected) if got is not None else expected is None
    t = Draw(activations(size, channels_last, device))
    for g in torch.autograd.grad(CASES[name](t.x, t).square().sum(), t.leaves, create_graph=True, allow_unused=True):
        if g is not None:
            g.mul_(1)  # gradients are results too
