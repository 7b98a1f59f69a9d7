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
from fastgan.models.alias_free import low_pass
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


def _bias_and_residual(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"bias": normal(shape[1]), "residual": normal(*shape)}


def _bias_and_taps(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"bias": normal(shape[1]), "taps": bilinear_taps().to(normal().device)}


def _synthesis(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {
        "bias": normal(c),
        "noise": normal(n, 1, h, w),
        "strength": normal(),
        "scale": normal(n, c),
        "post": normal(n, c),
    }


def _last(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, _, _ = shape
    tensors = _synthesis(shape, normal) | {"to_rgb": normal(n, 3, c) / math.sqrt(c)}
    del tensors["post"]
    return tensors


def _to_rgb(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return _last(shape, normal) | {"post": 1 + 0.1 * normal(*shape[:2])}


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


def _low_pass(shape: Shape, normal: Normal, up: int = 2, radial: bool = False) -> dict[str, Tensor]:
    """Filters of a StyleGAN3 layer, and a bias."""
    device = normal().device
    up_taps, down_taps = low_pass(6 * up, 16.0, 20.0, 64.0 * up), low_pass(12, 16.0, 20.0, 64.0 * up, radial=radial)
    return {"up_taps": up_taps.to(device), "down_taps": down_taps.to(device), "bias": normal(shape[1])}


def _alias_free(name: str, note: str, shapes: dict[str, tuple[Shape, ...]], up: int = 2, **filters) -> Form:
    """The end of a StyleGAN3 layer; the result has `up` / 2 times the size."""
    before = (6 * up + 12 - 3 + up) // 2
    options = {"up": up, "down": 2, "padding": (before, 6 * up + 9 - before) * 2, "gain": SQRT2, "clamp": 256.0}
    return Form(
        operation="filtered_lrelu",
        name=name,
        label=f"`filtered_lrelu`: {note}",
        fused=partial(ops.filtered_lrelu, **options),
        textbook=partial(textbook.filtered_lrelu, **options),
        tensors=partial(_low_pass, up=up, **filters),
        shapes=shapes,
        fixed=("up_taps", "down_taps"),
        saved=None,
        faster=6.0,
        compile=False,
    )


def _taps(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    return {"taps": normal(4)}


def _own(
    name: str,
    tensors: Callable,
    shapes: dict[str, tuple[Shape, ...]],
    operation: str | None = None,
    note: str = "",
    **options,
) -> Form:
    """A form whose operation and textbook have its name."""
    fused, plain = getattr(ops, name), getattr(textbook, name)
    return Form(operation or name, name, f"`{name}`{note}", fused, plain, tensors, shapes, **options)


def _layer_end(
    name: str, parts: str, tensors: Callable, shapes: dict[str, tuple[Shape, ...]], saved: str, **options
) -> Form:
    """noise_bias_act after a convolution; `saved` is the tensor that its backward reads."""
    fused, plain = (partial(each.noise_bias_act, gain=SQRT2) for each in (ops, textbook))
    label = f"`noise_bias_act`: {parts}"
    return Form("noise_bias_act", name, label, fused, plain, tensors, shapes, saved=saved, bare_loop=True, **options)


def _resampling(name: str, effect: str, options: dict, shapes: dict[str, tuple[Shape, ...]], **factors: int) -> Form:
    fused, plain = partial(ops.upfirdn2d, **options, **factors), partial(textbook.resample2d, **factors)
    return Form("upfirdn2d", name, f"`upfirdn2d`: {effect}", fused, plain, _taps, shapes, fixed=("taps",), saved="")


def _modulated_form(
    name: str, label: str, tensors: Callable, shapes: dict[str, tuple[Shape, ...]], compile: bool = True, **factors: int
) -> Form:
    """A convolution with StyleGAN2's whole epilogue; as many output channels as input channels."""
    fused = partial(ops.modulated_conv2d, act="lrelu", gain=SQRT2, **factors)
    plain = partial(textbook.modulated_conv2d, gain=SQRT2, **factors)
    options = {"fixed": ("noise", "taps"), "saved": None, "faster": 2.0, "compile": compile}
    return Form("noise_bias_act", name, label, fused, plain, tensors, shapes, **options)


def _convolution(
    name: str,
    label: str,
    fused: Callable,
    plain: Callable,
    tensors: Callable,
    shapes: dict[str, tuple[Shape, ...]],
    faster: float,
) -> Form:
    """A convolution in another form than the textbook's. torch.compile would call the textbook's."""
    return Form(None, name, label, fused, plain, tensors, shapes, saved=None, faster=faster, compile=False)


FORMS = (
    # A discriminator's layer: bias, leaky ReLU, gain.
    _layer_end("bias", "bias, leaky ReLU", _bias, DISCRIMINATOR, saved="y"),
    # The last layer of a discriminator's residual block.
    _layer_end("residual", "bias, leaky ReLU, residual", _bias_and_residual, DISCRIMINATOR, saved="x"),
    # A generator's layer whose convolution demodulates: noise as well.
    _layer_end("noise", "noise, bias, leaky ReLU", _noise, SYNTHESIS, saved="y", fixed=("noise",)),
    # A generator's layer: demodulation, noise, bias, leaky ReLU, gain, next style.
    _layer_end("synthesis", "all parts, as in a StyleGAN2 layer", _synthesis, SYNTHESIS, saved="x", fixed=("noise",)),
    # The layer before ToRGB and the next level; the last layer, before ToRGB alone.
    *(
        Form(
            operation="noise_bias_act_to_rgb",
            name=name,
            label=f"`noise_bias_act_to_rgb`{note}",
            fused=partial(ops.noise_bias_act_to_rgb, gain=SQRT2),
            textbook=partial(textbook.noise_bias_act_to_rgb, gain=SQRT2),
            tensors=tensors,
            shapes=SYNTHESIS,
            fixed=("noise",),
        )
        for name, note, tensors in (("to_rgb", "", _to_rgb), ("last_to_rgb", ": the image alone", _last))
    ),
    # Images in a generator; skip connections of a discriminator; before its strided convolutions.
    _resampling(
        "upsample",
        "up by 2",
        {"padding": (2, 1, 2, 1), "gain": 4.0},
        {"cpu": FILTERED["cpu"], "cuda": ((32, 128, 64, 64), (32, 3, 128, 128), (4, 3, 512, 512))},
        up=2,
    ),
    _resampling(
        "downsample",
        "down by 2",
        {"padding": (1, 1, 1, 1)},
        {"cpu": ((16, 128, 64, 64), (8, 128, 128, 128), (4, 64, 256, 256)), "cuda": FILTERED["cuda"]},
        down=2,
    ),
    _resampling("blur", "blur", {"padding": (2, 1, 2, 1)}, FILTERED),
    # End of a generator's layer that doubles the resolution.
    Form(
        operation="filtered_noise_bias_act",
        name="filtered",
        label="`filtered_noise_bias_act`",
        fused=partial(ops.filtered_noise_bias_act, padding=(1, 1, 1, 1), fir_gain=4.0, gain=SQRT2),
        textbook=partial(textbook.filtered_noise_bias_act, fir_gain=4.0, gain=SQRT2),
        tensors=_up_end,
        shapes={"cpu": ((8, 128, 65, 65),), "cuda": ((32, 512, 33, 33), (32, 64, 257, 257), (4, 32, 1025, 1025))},
        fixed=("taps", "noise"),
    ),
    # End of a StyleGAN3 layer: at the same size, at twice the size, and both with a filter that allows for rotation.
    _alias_free("alias_free", "same size", {"cpu": ((8, 128, 84, 84),), "cuda": ((32, 512, 84, 84),)}),
    _alias_free("alias_free_up", "up by 2", {"cpu": ((4, 64, 138, 138),), "cuda": ((32, 256, 84, 84),)}, up=4),
    _alias_free(
        "alias_free_radial", "radial filter", {"cpu": ((8, 128, 84, 84),), "cuda": ((32, 512, 84, 84),)}, radial=True
    ),
    _alias_free(
        "alias_free_radial_up",
        "up by 2, radial filter",
        {"cpu": ((4, 64, 138, 138),), "cuda": ((32, 256, 84, 84),)},
        up=4,
        radial=True,
    ),
    # Between the two convolutions of a discriminator's block. On a CPU models call the two operations.
    Form(
        operation="bias_act_blur",
        name="act_blur",
        label="`bias_act_blur`",
        fused=partial(ops.bias_act_blur, padding=(2, 2, 2, 2), gain=SQRT2),
        textbook=partial(textbook.bias_act_blur, gain=SQRT2),
        tensors=_bias_and_taps,
        shapes={"cpu": ((8, 128, 64, 64),), "cuda": FILTERED["cuda"]},
        fixed=("taps",),
        faster=1.0,
    ),
    # Between DCGAN's convolutions. PyTorch's batch norm is itself a fused operation.
    _own("batch_norm_act", _affine, BATCH_NORM, note="; eager is PyTorch's fused batch norm", faster=1.5),
    _own("adain", _style, SYNTHESIS, operation="instance_norm"),
    _own("style_epilogue", _style_epilogue, SYNTHESIS, operation="instance_norm", fixed=("noise",)),
    _own("pixel_norm", _nothing, {"cpu": CPU, "cuda": PGGAN}),
    _own("minibatch_stddev", _nothing, {"cpu": ((32, 512, 4, 4), (64, 128, 16, 16)), "cuda": ((32, 512, 4, 4),)}),
    # Gradient penalties: points between images, and norms of gradients.
    Form(
        operation="lerp_samples",
        name="lerp_samples",
        label="`lerp_samples`",
        fused=lambda x, b, t: ops.lerp_samples(x, b, t),
        textbook=textbook.lerp_samples,
        tensors=_other_images,
        shapes=IMAGES,
        fixed=("t",),
        saved="",
    ),
    _own("squared_norm", _nothing, IMAGES),
    _modulated_form("modulated_conv2d", "`modulated_conv2d` and its epilogue", _modulated, CONVOLUTIONS),
    _modulated_form(
        "modulated_conv2d_post", "the same, with the next layer's style", _modulated_for_next, CONVOLUTIONS
    ),
    # On a CPU, torch.compile needs minutes for the backward of a grouped transposed convolution.
    _modulated_form(
        "modulated_conv2d_up", "the same, up by 2", partial(_modulated, up=2), UP_CONVOLUTIONS, compile=False, up=2
    ),
    _modulated_form("modulated_conv2d_down", "the same, down by 2", partial(_modulated, down=2), CONVOLUTIONS, down=2),
    _convolution(
        "upsample_conv2d", "`upsample_conv2d`", ops.upsample_conv2d, textbook.upsample_conv2d, _weight,
        {"cpu": ((16, 128, 32, 32),), "cuda": ((32, 512, 16, 16), (32, 256, 32, 32), (128, 256, 8, 8))}, faster=1.8,
    ),
    _convolution(
        "conv_downsample2d", "`conv_downsample2d`", ops.conv_downsample2d, textbook.conv_downsample2d, _weight,
        {"cpu": ((16, 128, 64, 64),), "cuda": (PGGAN[1], (32, 512, 32, 32), *DCGAN)}, faster=1.8,
    ),
    # A generator's last convolution and a discriminator's first; on a GPU they are the library's.
    _convolution(
        "conv2d_to_one_channel", "`conv2d` to 1 channel", _conv2d, textbook.conv2d, _weight_to_one,
        {"cpu": ((64, 64, 32, 32), (16, 128, 64, 64)), "cuda": ()}, faster=1.5,
    ),
    _convolution(
        "conv2d_from_few_channels", "`conv2d` from 1 and 3 channels",
        partial(_conv2d, stride=2), partial(textbook.conv2d, stride=2), _weight_from_few,
        {"cpu": ((64, 1, 32, 32), (16, 3, 64, 64)), "cuda": ()}, faster=1.0,
    ),
)  # fmt: skip

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
