"""The calls of all kernels: one NamedTuple an operation, which every backend's launchers take.

A field stands here once for Python, and once in csrc/*/call.h for C++, with the same name and type and in the same
order; the two are compared when the extension is loaded. Fields that a kernel does not use keep their defaults.

Kernels allocate no results, and launchers check nothing but `device_of`. Tensors are dense. Activations, their
gradients and the gradients of those have `dtype` and the layout that the call says; all other tensors are fp32, or fp64
where the activations are. An input that is None is absent, an output that is None is not computed. dNAME is the
gradient of NAME, gNAME the gradient of dNAME (in a double backward).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """Sizes and layout of a dense activation [N, C, ...], whatever its number of spatial dimensions."""

    n: int  # samples
    c: int  # channels
    p: int  # positions
    channels_last: bool  # NHWC, else NCHW


class NoiseBiasActCall(NamedTuple):
    """A call of noise_bias_act: forward, backward and double_backward.

    A double backward computes `ddy` from gx, gstrength, ..., and writes the gradients of x, strength, ... to `dx`,
    `dstrength`, ...
    """

    n: int
    c: int
    p: int
    channels_last: bool
    dtype: torch.dtype
    act: str  # "lrelu" (any slope), "tanh", "sigmoid", "silu" or "softplus"
    slope: float
    gain: float
    clamp: float  # infinity for none
    noise_per_sample: bool
    strength_per_channel: bool
    noise: Tensor | None  # [N or 1, P]
    strength: Tensor | None  # [C] or []
    bias: Tensor | None  # [C]
    scale: Tensor | None  # [N, C]
    post: Tensor | None  # [N, C]
    x: Tensor | None = None
    y: Tensor | None = None
    from_output: bool = False  # the derivative is computed from y: `reference` is y, else x
    dy: Tensor | None = None
    reference: Tensor | None = None
    dx: Tensor | None = None
    dstrength: Tensor | None = None
    dbias: Tensor | None = None
    dscale: Tensor | None = None
    dpost: Tensor | None = None
    gx: Tensor | None = None
    gstrength: Tensor | None = None
    gbias: Tensor | None = None
    gscale: Tensor | None = None
    gpost: Tensor | None = None
    ddy: Tensor | None = None
    residual: Tensor | None = None  # forward: added to the result
    dnoise: Tensor | None = None  # backward: [N, P], also for a noise that samples share


class NoiseBiasActToRGBCall(NamedTuple):
    """A call of noise_bias_act_to_rgb, in channels_last: forward, backward and double_backward; fields as above.

    Without `post`, y and its gradients are absent.
    """

    n: int
    c: int
    p: int
    k: int  # channels of the image: 1, 3 or 4
    dtype: torch.dtype
    slope: float
    gain: float
    clamp: float  # infinity for none
    noise_per_sample: bool
    to_rgb: Tensor  # [N, K, C]
    noise: Tensor | None  # [N or 1, P]
    strength: Tensor | None  # []
    bias: Tensor | None  # [C]
    scale: Tensor | None  # [N, C]
    post: Tensor | None  # [N, C]
    x: Tensor
    y: Tensor | None = None
    rgb: Tensor | None = None  # [N, P, K], fp32 or fp64, as its gradients
    dy: Tensor | None = None
    drgb: Tensor | None = None
    dx: Tensor | None = None
    dto_rgb: Tensor | None = None
    dstrength: Tensor | None = None
    dbias: Tensor | None = None
    dscale: Tensor | None = None
    dpost: Tensor | None = None
    gx: Tensor | None = None
    gto_rgb: Tensor | None = None
    gstrength: Tensor | None = None
    gbias: Tensor | None = None
    gscale: Tensor | None = None
    gpost: Tensor | None = None
    ddy: Tensor | None = None
    ddrgb: Tensor | None = None
    dnoise: Tensor | None = None  # backward: [N, P], also for a noise that samples share


class NormCall(NamedTuple):
    """A call of instance_norm, the basis of adain and style_epilogue, or of batch_norm_act: forward and backward.

    `statistics`, an output of forward and an input of backward, holds mean and 1 / sqrt(var + eps), [2, N, C]. For
    batch_norm_act (`batch`) it is [3, C], with the unbiased variance as the third, and the style is weight and bias
    [C]. In NHWC the positions of all samples then count as those of one.
    """

    n: int
    c: int
    p: int
    channels_last: bool
    dtype: torch.dtype
    batch: bool
    slope: float  # slope of the activation below zero
    gain: float
    eps: float
    noise_per_sample: bool
    strength_per_channel: bool
    noise: Tensor | None  # [N or 1, P]
    strength: Tensor | None  # [C] or []
    bias: Tensor | None  # [C]
    style_scale: Tensor | None  # [N, C]
    style_bias: Tensor | None  # [N, C]
    x: Tensor
    statistics: Tensor
    y: Tensor | None = None
    dy: Tensor | None = None
    dx: Tensor | None = None
    dstrength: Tensor | None = None
    dbias: Tensor | None = None
    dstyle_scale: Tensor | None = None
    dstyle_bias: Tensor | None = None


class Upfirdn2dCall(NamedTuple):
    """A call of upfirdn2d: forward. See `fastgan.ops.upfirdn2d` for the options."""

    n: int
    c: int
    h: int  # height and width of x
    w: int
    oh: int  # height and width of y
    ow: int
    channels_last: bool
    dtype: torch.dtype
    up_x: int
    up_y: int
    down_x: int
    down_y: int
    left: int
    top: int
    kh: int
    kw: int
    separable: bool  # taps are [kw], for both axes; else [kh, kw]
    gain: float
    flip: bool
    taps: Tensor
    x: Tensor
    y: Tensor | None = None
    addend: Tensor | None = None  # added to the result


class FilteredNoiseBiasActCall(NamedTuple):
    """A call of filtered_noise_bias_act: forward and backward, on GPUs, in channels_last.

    Forward: x and y of `filter`, the small tensors and options of `epilogue`. Backward: `filter` is the adjoint filter,
    from dy to dx; of `epilogue` also `reference`, which is x or (`from_output`) y, dstrength, dbias, dscale and dpost.
    """

    filter: Upfirdn2dCall
    epilogue: NoiseBiasActCall


class FilteredLreluCall(NamedTuple):
    """A call of filtered_lrelu: the operation, or with `reads_signs` the map with given slopes, which has no bias.

    The image between the filters, z, has (oh - 1) * down + down_size rows and likewise columns. Taps are those that are
    correlated with the image. signs: int32 [N, ceil(C / 16), signs_h, signs_w], see `FilteredLreluSlopes`. dbias: [C],
    sums of y over samples and places, for the CPU's `backward` alone.
    """

    n: int
    c: int
    h: int
    w: int
    oh: int
    ow: int
    channels_last: bool
    dtype: torch.dtype
    up: int
    down: int
    left: int  # padding after zero insertion; negative crops
    top: int
    up_size: int
    up_separable: bool  # taps are [k], for both axes; else [k, k]
    down_size: int
    down_separable: bool
    up_gain: float
    slope: float
    gain: float
    clamp: float  # infinity for none
    writes_signs: bool
    reads_signs: bool
    signs_left: int  # column of the signs of the first column of z; outside of them z is zero
    signs_top: int
    signs_h: int
    signs_w: int
    up_taps: Tensor
    down_taps: Tensor
    bias: Tensor | None
    x: Tensor
    y: Tensor
    signs: Tensor | None
    dbias: Tensor | None


class BiasActBlurCall(NamedTuple):
    """A call of bias_act_blur: forward and backward, in channels_last, for rows of channels of whole 64 bytes.

    The filter is separable, has four taps, and neither up- nor downsamples. The activation is piecewise linear.

    Forward: x and y of `filter`; bias and options of `activation`. Backward: `filter` is the adjoint filter, from dy to
    dx; of `activation` also `reference`, which is x, and dbias.
    """

    filter: Upfirdn2dCall
    activation: NoiseBiasActCall


class PixelNormCall(NamedTuple):
    """A call of pixel_norm. `order` selects the pass: 0 forward, 1 backward, 2 double backward."""

    n: int
    c: int
    p: int
    channels_last: bool
    dtype: torch.dtype
    order: int
    eps: float
    x: Tensor
    first: Tensor  # order 0: y; 1: dx; 2: the gradient of dy
    second: Tensor | None = None  # order 2: the gradient of x
    dy: Tensor | None = None
    gx: Tensor | None = None


class MinibatchStddevCall(NamedTuple):
    """A call of minibatch_stddev. `order` selects the pass: 0 forward, 1 backward, 2 double backward."""

    n: int  # n to channels_last are those of x
    c: int
    p: int
    channels_last: bool
    dtype: torch.dtype
    order: int
    size: int  # samples of a group; divides n
    groups: int
    features: int  # maps appended
    share: float  # 1 / (size * elements of a feature in a sample)
    x: Tensor
    appended: Tensor | None = None  # order 0: y; 2: the gradient of dy; with `features` more channels, as dy
    dx: Tensor | None = None  # order 1: dx; 2: the gradient of x
    dy: Tensor | None = None
    gx: Tensor | None = None


class SamplesCall(NamedTuple):
    """A call of squared_norm or lerp_samples: forward and backward. A sample is a row of `size` elements.

    squared_norm:  sums[n] = sum of a[n]^2
                   first[n] = 2 * weight[n] * a[n]
    lerp_samples:  first[n] = a[n] + weight[n] * (b[n] - a[n])
                   first[n] = (1 - weight[n]) * a[n],   second[n] = weight[n] * a[n]
    """

    n: int
    size: int
    dtype: torch.dtype  # dtype of a, b, first and second
    a: Tensor
    b: Tensor | None = None
    weight: Tensor | None = None  # [N]
    first: Tensor | None = None
    second: Tensor | None = None
    sums: Tensor | None = None  # [N]


class ImageBatchCall(NamedTuple):
    """A call of image_batch. Indices must exist on a CPU; on a GPU, images that do not exist become NaN."""

    images: int  # number of images in `pixels`
    n: int  # n to c are the sizes of y
    h: int
    w: int
    c: int
    dtype: torch.dtype
    y: Tensor  # [N, C, H, W] in NHWC
    pixels: Tensor  # [images, H, W, C], uint8
    index: Tensor | None  # type: ignore[assignment]  # [N], int64; hides a tuple's method
    mirrored: Tensor | None  # [N], bool or uint8


class FewChannelsCall(NamedTuple):
    """A call of few_channels, on CPUs: a convolution between `many` [N, C, h, w] and `few` [N, O, H, W] channels.

    `map` is "gather" (writes many: the convolution of few), "scatter" (writes few: the transposed convolution of many)
    or "outer" (writes weight: its gradient). `few` is zero outside of its borders. Images are in channels_last, and C
    is even. All tensors are fp32, or all bf16; sums are fp32. At most 64 elements of few belong to a position of many.
    """

    map: str
    dtype: torch.dtype
    n: int
    c: int
    height: int  # height and width of many
    width: int
    o: int
    few_height: int
    few_width: int
    kh: int
    kw: int
    stride: int
    top: int
    left: int
    flipped: bool  # the taps of the weight are stored in reverse order
    step_o: int  # strides of the weight, in elements
    step_tap: int
    step_c: int
    many: Tensor
    few: Tensor
    weight: Tensor


class WeightGradientCall(NamedTuple):
    """A call of weight_gradient, on CPUs: the gradient `dw` [A, B, kh, kw] of a convolution's weight.

    It sums products of `small` [N, A, h, w] and `large` [N, B, H, W], which is zero outside of its borders. A step in
    small is `stride` steps in large, and the first tap lies `top` above and `left` of the first pixel of large. For a
    convolution, small is the gradient of the output and large the input; for a transposed one the reverse. All tensors
    are fp32, or all bf16, not empty, in channels_last; sums are fp32.
    """

    dtype: torch.dtype
    n: int
    a: int
    height: int
    width: int
    b: int
    large_height: int
    large_width: int
    kh: int
    kw: int
    stride: int
    top: int
    left: int
    dw: Tensor
    small: Tensor
    large: Tensor


class WinogradCall(NamedTuple):
    """A call of winograd, on CPUs: the 3x3 convolution `y` [N, O, H + 2 p - 2, W + 2 p - 2] of `x` [N, I, H, W].

    `weight` is the transformed weight, [36, ceil(O / 32), I, 32], contiguous. All tensors are fp32 and not empty, and
    images in channels_last. The `padding` p is 0, 1 or 2.
    """

    n: int
    height: int
    width: int
    inputs: int
    outputs: int
    padding: int
    y: Tensor
    x: Tensor
    weight: Tensor


def device_of(call: tuple) -> torch.device:
    """The device of all tensors of a call.

    Raises ValueError, naming the field, for a tensor that a kernel on a GPU cannot read: on another device than the
    others, or at an address that is no multiple of the size of its elements, as DLPack and buffers may have.
    """
    first = _first_of_readable(call, None)
    if first is None:
        raise ValueError(f"a {type(call).__name__} has no tensor")
    return first.device


def _first_of_readable(call: tuple, first: Tensor | None) -> Tensor | None:
    tensors, calls = _places(type(call))
    for i in tensors:
        tensor = call[i]
        if tensor is None:
            continue
        if first is None:
            first = tensor
        if tensor.get_device() != first.get_device():
            name = call._fields[i]  # type: ignore[attr-defined]
            raise ValueError(f"{name} is on {tensor.device}, other tensors of the call on {first.device}")
        address = tensor.data_ptr()
        if address & 15 and address % tensor.element_size():
            name, size = call._fields[i], tensor.element_size()  # type: ignore[attr-defined]
            raise ValueError(f"{name} lies at an address that is no multiple of its element's {size} bytes: clone it")
    for i in calls:
        first = _first_of_readable(call[i], first)
    return first


@cache
def _places(kind: type) -> tuple[list[int], list[int]]:
    """Which fields of a kind of call are tensors, and which are calls. (isinstance of a Tensor takes long.)"""
    kinds = list(kind.__annotations__.values())
    tensors = [i for i, each in enumerate(kinds) if each in (Tensor, Tensor | None)]
    return tensors, [i for i, each in enumerate(kinds) if each in (Upfirdn2dCall, NoiseBiasActCall)]


def fields() -> dict[str, list[str]]:
    """The fields of every call, "name: type" as the extension states them."""
    kinds: dict[object, str] = {
        int: "int",
        bool: "bool",
        float: "float",
        str: "str",
        torch.dtype: "dtype",
        Tensor: "Tensor",
    }
    kinds |= {Tensor | None: "Tensor", Upfirdn2dCall: "call", NoiseBiasActCall: "call"}
    calls = {name: call for name, call in globals().items() if name.endswith("Call")}
    return {
        name: [f"{field}: {kinds[kind]}" for field, kind in call.__annotations__.items()]
        for name, call in calls.items()
    }
