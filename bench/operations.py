"""Every fused operation, in the forms and at the shapes that models call it in.

Shapes on a GPU are those of StyleGAN2 at 256x256 and 1024x1024, PGGAN at 64x64 and DCGAN at 32x32; on a CPU smaller
ones of a million elements and more.
"""

import math
from functools import partial

from torch import Tensor

from bench import textbook
from bench.operation import Form, Normal, Shape
from fastgan import ops

SQRT2 = math.sqrt(2)
ELEMENTWISE = {
    "cpu": ((16, 128, 32, 32), (8, 128, 64, 64), (4, 64, 256, 256)),
    "cuda": ((32, 512, 32, 32), (32, 256, 128, 128), (16, 128, 256, 256), (4, 32, 1024, 1024)),
}
FILTERED = {
    "cpu": ((16, 128, 32, 32), (8, 128, 64, 64), (4, 64, 128, 128)),
    "cuda": ((32, 512, 32, 32), (32, 256, 64, 64), (4, 32, 512, 512)),
}
CONVOLUTIONS = {"cpu": ((8, 128, 64, 64),), "cuda": ((32, 512, 32, 32), (16, 128, 128, 128))}
SMALL_CONVOLUTIONS = {"cpu": ((16, 128, 32, 32),), "cuda": ((64, 128, 32, 32),)}


def _bias(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"bias": normal(shape[1])}


def _noise(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {"bias": normal(c), "noise": normal(n, 1, h, w), "strength": normal()}


def _synthesis(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {
        "bias": normal(c),
        "noise": normal(n, 1, h, w),
        "strength": normal(),
        "scale": normal(n, c),
        "post": normal(n, c),
    }


def _style(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, _, _ = shape
    return {"scale": normal(n, c), "bias": normal(n, c)}


def _style_epilogue(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {
        "noise": normal(n, 1, h, w),
        "strength": normal(c),
        "bias": normal(c),
        "style_scale": normal(n, c),
        "style_bias": normal(n, c),
    }


def _nothing(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {}


def _modulated(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    small = {name: t for name, t in _synthesis(shape, normal).items() if name not in ("scale", "post")}
    return {"weight": normal(c, c, 3, 3) / (3 * math.sqrt(c)), "style": 1 + 0.1 * normal(n, c), **small}


def _weight(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    c = shape[1]
    return {"weight": normal(c, c, 3, 3) / (3 * math.sqrt(c))}


def _taps(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"taps": normal(4)}


def _resampling(name: str, options: dict, grown: int, **factors: int) -> Form:
    """Of the images that are `grown` times as wide as those of the other operations."""
    shapes = {device: tuple((n, c, h * grown, w * grown) for n, c, h, w in FILTERED[device]) for device in FILTERED}
    return Form(
        operation="upfirdn2d",
        name=name,
        fused=partial(ops.upfirdn2d, **options, **factors),
        textbook=partial(textbook.resample2d, **factors),
        tensors=_taps,
        shapes=shapes,
        fixed=("taps",),
        kept="",
    )


FORMS = (
    # A critic's layer: bias, leaky ReLU, gain. The backward pass reads y.
    Form(
        operation="noise_bias_act",
        name="bias",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_bias,
        shapes=ELEMENTWISE,
        kept="y",
        bare_loop=True,
    ),
    # The same with noise, as a generator's layer calls it whose convolution does the demodulation. Reads y as well.
    Form(
        operation="noise_bias_act",
        name="noise",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_noise,
        shapes=ELEMENTWISE,
        fixed=("noise",),
        kept="y",
        bare_loop=True,
    ),
    # A generator's: demodulation, noise, bias, leaky ReLU, gain, next style. The backward pass reads x.
    Form(
        operation="noise_bias_act",
        name="synthesis",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_synthesis,
        shapes=ELEMENTWISE,
        fixed=("noise",),
        bare_loop=True,
    ),
    _resampling("upsample", {"padding": (2, 1, 2, 1), "gain": 4.0}, 1, up=2),
    _resampling("downsample", {"padding": (1, 1, 1, 1)}, 2, down=2),
    _resampling("blur", {"padding": (2, 1, 2, 1)}, 1),
    Form(
        operation="instance_norm",
        name="adain",
        fused=ops.adain,
        textbook=textbook.adain,
        tensors=_style,
        shapes=ELEMENTWISE,
    ),
    Form(
        operation="instance_norm",
        name="style_epilogue",
        fused=ops.style_epilogue,
        textbook=textbook.style_epilogue,
        tensors=_style_epilogue,
        shapes=ELEMENTWISE,
        fixed=("noise",),
    ),
    Form(
        operation="pixel_norm",
        name="pixel_norm",
        fused=ops.pixel_norm,
        textbook=textbook.pixel_norm,
        tensors=_nothing,
        shapes=ELEMENTWISE,
    ),
    Form(
        operation="minibatch_stddev",
        name="minibatch_stddev",
        fused=ops.minibatch_stddev,
        textbook=textbook.minibatch_stddev,
        tensors=_nothing,
        shapes={"cpu": ((32, 512, 4, 4), (64, 128, 16, 16)), "cuda": ((64, 512, 4, 4), (64, 512, 8, 8))},
    ),
    Form(
        operation="noise_bias_act",
        name="modulated_conv2d",
        fused=partial(ops.modulated_conv2d, act="lrelu", gain=SQRT2),
        textbook=partial(textbook.modulated_conv2d, gain=SQRT2),
        tensors=_modulated,
        shapes=CONVOLUTIONS,
        fixed=("noise",),
        kept=None,
        faster=2.0,
    ),
    Form(
        operation=None,
        name="upsample_conv2d",
        fused=ops.upsample_conv2d,
        textbook=textbook.upsample_conv2d,
        tensors=_weight,
        shapes=SMALL_CONVOLUTIONS,
        kept=None,
        faster=1.8,
        compile=False,  # it calls the same convolution
    ),
    Form(
        operation=None,
        name="conv_downsample2d",
        fused=ops.conv_downsample2d,
        textbook=textbook.conv_downsample2d,
        tensors=_weight,
        shapes={"cpu": ((16, 128, 64, 64),), "cuda": ((64, 128, 64, 64),)},
        kept=None,
        faster=1.8,
        compile=False,
    ),
)
