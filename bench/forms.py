"""Table of operations to time: every fused operation, in the forms and shapes in which models call it.

GPU shapes come from training StyleGAN2 at 256x256 with batch 32 (512 channels up to 32x32, 64 at the end) and at
1024x1024 with batch 4 (32 channels at the end), PGGAN at 64x64 and DCGAN at 32x32. CPU shapes are smaller, with a
million elements or more.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from bench import measure, textbook
from bench.operations import Case, Form, Normal, Shape
from fastgan import ops
from fastgan.ops.upfirdn2d import taps as bilinear_taps

SQRT2 = math.sqrt(2)
CPU = ((16, 128, 32, 32), (8, 128, 64, 64), (4, 64, 256, 256))
STYLEGAN2 = ((32, 512, 32, 32), (32, 128, 128, 128), (32, 64, 256, 256), (4, 128, 256, 256), (4, 32, 1024, 1024))
PGGAN = ((32, 512, 32, 32), (32, 256, 64, 64))
DCGAN = ((128, 128, 16, 16),)
SYNTHESIS = {"cpu": CPU, "cuda": STYLEGAN2}  # a generator's layers
DISCRIMINATOR = {"cpu": CPU, "cuda": (*STYLEGAN2, PGGAN[1], *DCGAN)}
BATCH_NORM = {"cpu": ((64, 128, 16, 16), (64, 64, 32, 32)), "cuda": ((128, 256, 8, 8), *DCGAN, (128, 64, 32, 32))}
FILTERED = {
    "cpu": ((16, 128, 32, 32), (8, 128, 64, 64), (4, 64, 128, 128)),
    "cuda": ((32, 128, 128, 128), (32, 64, 256, 256), (4, 32, 1024, 1024)),
}
IMAGES = {"cpu": ((16, 3, 256, 256),), "cuda": ((128, 3, 32, 32), (32, 3, 256, 256), (4, 3, 1024, 1024))}
CONVOLUTIONS = {"cpu": ((8, 128, 64, 64),), "cuda": ((32, 512, 32, 32), (32, 128, 128, 128), (4, 64, 512, 512))}
UP_CONVOLUTIONS = {"cpu": ((8, 128, 32, 32),), "cuda": ((32, 512, 16, 16), (32, 128, 64, 64), (4, 64, 256, 256))}


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


def _affine(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"weight": normal(shape[1]), "bias": normal(shape[1])}


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


def _modulated(shape: Shape, normal: Normal, up: int = 1, down: int = 1) -> dict[str, Tensor]:
    n, c, h, w = shape
    taps = {} if up == down else {"taps": bilinear_taps().to(normal().device)}
    small = _noise((n, c, h * up // down, w * up // down), normal)
    return {"weight": normal(c, c, 3, 3) / (3 * math.sqrt(c)), "style": 1 + 0.1 * normal(n, c)} | small | taps


def _modulated_for_next(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return _modulated(shape, normal) | {"post": 1 + 0.1 * normal(*shape[:2])}


def _up_end(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    """Tensors after a transposed convolution, whose result has one row and column more than the filter's."""
    n, c, h, w = shape
    return {"taps": bilinear_taps().to(normal().device)} | _synthesis((n, c, h - 1, w - 1), normal)


def _other_images(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"b": normal(*shape), "t": normal(shape[0]).sigmoid()}


def _weight(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    c = shape[1]
    return {"weight": normal(c, c, 3, 3) / (3 * math.sqrt(c))}


def _weight_to_one(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"weight": normal(1, shape[1], 3, 3) / (3 * math.sqrt(shape[1]))}


def _weight_from_few(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"weight": normal(64, shape[1], 3, 3) / (3 * math.sqrt(shape[1]))}


def _conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return ops.conv2d(x, weight.to(x.dtype), padding=1, stride=stride)


def _taps(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"taps": normal(4)}


def _resampling(name: str, options: dict, shapes: dict[str, tuple[Shape, ...]], **factors: int) -> Form:
    return Form(
        operation="upfirdn2d",
        name=name,
        fused=partial(ops.upfirdn2d, **options, **factors),
        textbook=partial(textbook.resample2d, **factors),
        tensors=_taps,
        shapes=shapes,
        fixed=("taps",),
        saved="",
    )


def _modulated_form(
    name: str, tensors: Callable, shapes: dict[str, tuple[Shape, ...]], compile: bool = True, **factors: int
) -> Form:
    """A convolution with StyleGAN2's whole epilogue; as many output channels as input channels."""
    return Form(
        operation="noise_bias_act",
        name=name,
        fused=partial(ops.modulated_conv2d, act="lrelu", gain=SQRT2, **factors),
        textbook=partial(textbook.modulated_conv2d, gain=SQRT2, **factors),
        tensors=tensors,
        shapes=shapes,
        fixed=("noise", "taps"),
        saved=None,
        faster=2.0,
        compile=compile,
    )


FORMS = (
    # A discriminator's layer: bias, leaky ReLU, gain. Backward reads y.
    Form(
        operation="noise_bias_act",
        name="bias",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_bias,
        shapes=DISCRIMINATOR,
        saved="y",
        bare_loop=True,
    ),
    # A generator's layer whose convolution demodulates: noise as well. Backward reads y.
    Form(
        operation="noise_bias_act",
        name="noise",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_noise,
        shapes=SYNTHESIS,
        fixed=("noise",),
        saved="y",
        bare_loop=True,
    ),
    # A generator's layer: demodulation, noise, bias, leaky ReLU, gain, next style. Backward reads x.
    Form(
        operation="noise_bias_act",
        name="synthesis",
        fused=partial(ops.noise_bias_act, gain=SQRT2),
        textbook=partial(textbook.noise_bias_act, gain=SQRT2),
        tensors=_synthesis,
        shapes=SYNTHESIS,
        fixed=("noise",),
        bare_loop=True,
    ),
    # Images in a generator; skip connections of a discriminator; before its strided convolutions.
    _resampling(
        "upsample",
        {"padding": (2, 1, 2, 1), "gain": 4.0},
        {"cpu": FILTERED["cpu"], "cuda": ((32, 128, 64, 64), (32, 3, 128, 128), (4, 3, 512, 512))},
        up=2,
    ),
    _resampling(
        "downsample",
        {"padding": (1, 1, 1, 1)},
        {"cpu": ((16, 128, 64, 64), (8, 128, 128, 128), (4, 64, 256, 256)), "cuda": FILTERED["cuda"]},
        down=2,
    ),
    _resampling("blur", {"padding": (2, 1, 2, 1)}, FILTERED),
    # End of a generator's layer that doubles the resolution.
    Form(
        operation="filtered_noise_bias_act",
        name="filtered",
        fused=partial(ops.filtered_noise_bias_act, padding=(1, 1, 1, 1), fir_gain=4.0, gain=SQRT2),
        textbook=partial(textbook.filtered_noise_bias_act, fir_gain=4.0, gain=SQRT2),
        tensors=_up_end,
        shapes={"cpu": ((8, 128, 65, 65),), "cuda": ((32, 512, 33, 33), (32, 64, 257, 257), (4, 32, 1025, 1025))},
        fixed=("taps", "noise"),
    ),
    # Between DCGAN's convolutions. PyTorch's batch norm is itself a fused operation.
    Form(
        operation="batch_norm_act",
        name="batch_norm_act",
        fused=ops.batch_norm_act,
        textbook=textbook.batch_norm_act,
        tensors=_affine,
        shapes=BATCH_NORM,
        faster=1.5,
    ),
    Form(
        operation="instance_norm",
        name="adain",
        fused=ops.adain,
        textbook=textbook.adain,
        tensors=_style,
        shapes=SYNTHESIS,
    ),
    Form(
        operation="instance_norm",
        name="style_epilogue",
        fused=ops.style_epilogue,
        textbook=textbook.style_epilogue,
        tensors=_style_epilogue,
        shapes=SYNTHESIS,
        fixed=("noise",),
    ),
    Form(
        operation="pixel_norm",
        name="pixel_norm",
        fused=ops.pixel_norm,
        textbook=textbook.pixel_norm,
        tensors=_nothing,
        shapes={"cpu": CPU, "cuda": PGGAN},
    ),
    Form(
        operation="minibatch_stddev",
        name="minibatch_stddev",
        fused=ops.minibatch_stddev,
        textbook=textbook.minibatch_stddev,
        tensors=_nothing,
        shapes={"cpu": ((32, 512, 4, 4), (64, 128, 16, 16)), "cuda": ((32, 512, 4, 4),)},
    ),
    # Gradient penalties: points between images, and norms of gradients.
    Form(
        operation="lerp_samples",
        name="lerp_samples",
        fused=lambda x, b, t: ops.lerp_samples(x, b, t),
        textbook=textbook.lerp_samples,
        tensors=_other_images,
        shapes=IMAGES,
        fixed=("t",),
        saved="",
    ),
    Form(
        operation="squared_norm",
        name="squared_norm",
        fused=ops.squared_norm,
        textbook=textbook.squared_norm,
        tensors=_nothing,
        shapes=IMAGES,
    ),
    _modulated_form("modulated_conv2d", _modulated, CONVOLUTIONS),
    _modulated_form("modulated_conv2d_post", _modulated_for_next, CONVOLUTIONS),
    # On a CPU, torch.compile needs minutes for the backward of a grouped transposed convolution.
    _modulated_form("modulated_conv2d_up", partial(_modulated, up=2), UP_CONVOLUTIONS, compile=False, up=2),
    _modulated_form("modulated_conv2d_down", partial(_modulated, down=2), CONVOLUTIONS, down=2),
    Form(
        operation=None,
        name="upsample_conv2d",
        fused=ops.upsample_conv2d,
        textbook=textbook.upsample_conv2d,
        tensors=_weight,
        shapes={"cpu": ((16, 128, 32, 32),), "cuda": ((32, 512, 16, 16), (32, 256, 32, 32), (128, 256, 8, 8))},
        saved=None,
        faster=1.8,
        compile=False,  # would call the same convolution
    ),
    Form(
        operation=None,
        name="conv_downsample2d",
        fused=ops.conv_downsample2d,
        textbook=textbook.conv_downsample2d,
        tensors=_weight,
        shapes={"cpu": ((16, 128, 64, 64),), "cuda": (PGGAN[1], (32, 512, 32, 32), *DCGAN)},
        saved=None,
        faster=1.8,
        compile=False,
    ),
    # A generator's last convolution and a discriminator's first; on a GPU they are the library's.
    Form(
        operation=None,
        name="conv2d_to_one_channel",
        fused=_conv2d,
        textbook=textbook.conv2d,
        tensors=_weight_to_one,
        shapes={"cpu": ((64, 64, 32, 32), (16, 128, 64, 64)), "cuda": ()},
        saved=None,
        faster=1.5,
        compile=False,
    ),
    Form(
        operation=None,
        name="conv2d_from_few_channels",
        fused=partial(_conv2d, stride=2),
        textbook=partial(textbook.conv2d, stride=2),
        tensors=_weight_from_few,
        shapes={"cpu": ((64, 1, 32, 32), (16, 3, 64, 64)), "cuda": ()},
        saved=None,
        faster=1.0,
        compile=False,
    ),
)

# A case of each of the twelve forms that cost a StyleGAN or StyleGAN2 step most: form, and which of its shapes.
KEY = {
    "bias": 1, "noise": 2, "synthesis": 2, "upsample": 0, "downsample": 1, "blur": 1, "filtered": 1, "adain": 1,
    "style_epilogue": 2, "pixel_norm": 1, "modulated_conv2d": 1, "modulated_conv2d_up": 1,
}  # fmt: skip


def key_cases() -> list[tuple[Case, str]]:
    """The cases of `KEY` for this device, in bf16, each with every backend to time."""
    device = measure.device().type
    found = []
    for form in FORMS:
        if form.name in KEY:
            shapes = form.shapes[device]
            case = Case(form, device, shapes[min(KEY[form.name], len(shapes) - 1)], "bf16")
            found += [(case, backend) for backend in form.backend_names]
    return found
