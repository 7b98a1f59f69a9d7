"""noise_bias_act_to_rgb: the end of a layer whose activations are read by ToRGB and by the next layer, in one pass.

    z = clamp(gain * lrelu(scale[n,c] * x + strength * noise + bias[c]))
    y = z * post[n,c],   rgb[n,k] = sum over c of to_rgb[n,k,c] * z[n,c]

z itself is never written. `to_rgb` is the weight of StyleGAN2's ToRGB times its style, `post` the style of the
convolution after (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", figure 7).

Kernels serve channels_last. Elsewhere, and with other options than a generator's, the function calls noise_bias_act
and multiplies its result.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation, prepare
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import (
    channels,
    dense_like,
    empty_nhwc,
    is_channels_last,
    require_view,
    sum_over_positions,
)
from fastgan.ops.noise_bias_act import (
    NoiseBiasAct,
    launch_with_noise_gradient,
    noise_bias_act,
    prepare_small,
    resolve_options,
)
from fastgan.ops.noise_bias_act import Options as EpilogueOptions
from fastgan.ops.transforms import must_use_reference
from fastgan_kernels.calls import NoiseBiasActToRGBCall

IMAGE_CHANNELS = (1, 3, 4)  # of the kernels: gray, RGB, RGBA


class Options(NamedTuple):
    """The non-differentiable arguments."""

    slope: float
    gain: float
    clamp: float

    @property
    def epilogue(self) -> EpilogueOptions:
        return EpilogueOptions("lrelu", *self, from_x=True)


def noise_bias_act_to_rgb(
    x: Tensor,
    to_rgb: Tensor,
    *,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    post: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> tuple[Tensor | None, Tensor]:
    """`noise_bias_act`, and the image that ToRGB makes of its result before `post`; twice differentiable.

    Args:
        x: activations [N, C, ...]; fp32, bf16, fp16 or fp64.
        to_rgb: [N, K, C], the weight of an image of K channels for each sample.
        noise, strength, bias, scale, post, act, slope, gain, clamp: see `noise_bias_act`.

    Returns:
        The result of `noise_bias_act`, or None without `post`: then only the image is wanted; and the image
        [N, K, ...] in the precision of arithmetic, fp32 (fp64 for fp64 input), and the memory format of `x`.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    operation = "noise_bias_act_to_rgb"
    resolved = resolve_options(operation, act, slope, gain, clamp, x.dtype)
    check_activation(operation, x)
    n, c = x.shape[:2]
    k = to_rgb.shape[1] if to_rgb.dim() == 3 else 0
    to_rgb = cast(Tensor, prepare(operation, "to_rgb", to_rgb, ((n, k, c),), x))
    small = prepare_small(operation, x, x.shape, noise, strength, bias, scale, post)
    backend = backends.choose("noise_bias_act", x.device)
    if backends.has_kernels(backend, operation, x.device) and _fits(x, to_rgb, strength, resolved):
        return NoiseBiasActToRGB.apply(
            backend, (x, to_rgb, *small), Options(resolved.slope, resolved.gain, resolved.clamp)
        )
    parts = {"noise": noise, "strength": strength, "bias": bias, "scale": scale}
    z = noise_bias_act(x, **parts, act=act, slope=slope, gain=gain, clamp=clamp)
    y = None if post is None else noise_bias_act(z, scale=post, act="linear")
    return y, to_arithmetic(_project(z, to_rgb.to(z.dtype)))


def _fits(x: Tensor, to_rgb: Tensor, strength: Tensor | None, options: EpilogueOptions) -> bool:
    """Whether the kernels take this call: a generator's layer in channels_last."""
    return (
        x.dim() == 4
        and x.numel() > 0
        and is_channels_last(x)
        and to_rgb.shape[1] in IMAGE_CHANNELS
        and options.act == "lrelu"
        and (strength is None or strength.dim() == 0)
        and not must_use_reference((x, to_rgb))
    )


def _activated(x: Tensor, before: Sequence[Tensor | None], options: Options) -> Tensor:
    """z in the precision of arithmetic; `before` holds noise, strength, bias and scale."""
    return NoiseBiasAct.reference((to_arithmetic(x), *before, None), options.epilogue)


def _project(z: Tensor, to_rgb: Tensor) -> Tensor:
    """sum over c of to_rgb[n,k,c] * z[n,c], [N, K, ...] in the memory format of `z`."""
    n, c, *spatial = z.shape
    k, positions = to_rgb.shape[1], math.prod(spatial)
    with _without_autocast(z):
        if z.dim() == 4 and is_channels_last(z):
            rgb = torch.bmm(z.permute(0, 2, 3, 1).reshape(n, positions, c), to_rgb.transpose(1, 2))  # a view of NHWC
            return rgb.reshape(n, *spatial, k).permute(0, 3, 1, 2)
        return torch.bmm(to_rgb, z.reshape(n, c, positions)).reshape(n, k, *spatial)


@register
class NoiseBiasActToRGB(FusedOperation[tuple[Tensor | None, Tensor]]):
    """Saved for backward: all inputs."""

    name = "noise_bias_act_to_rgb"
    inputs = ("x", "to_rgb", "noise", "strength", "bias", "scale", "post")
    Options = Options
    num_outputs = 2

    @staticmethod
    def reference(inputs, options):
        x, to_rgb, *before, post = inputs
        z = _activated(x, before, options)
        return None if post is None else (z * channels(post, x)).to(x.dtype), _project(z, to_rgb)

    @staticmethod
    def has_outputs(inputs):
        return inputs[-1] is not None, True

    @staticmethod
    def allocate_output(inputs, options):
        x, to_rgb, *_, post = inputs
        return None if post is None else torch.empty_like(x), _empty_rgb(x, to_rgb)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        x, *small = inputs
        y, rgb = output
        launchers.forward(NoiseBiasActToRGBCall(*_shared_fields(x, small, options), x, y, rgb))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        dy, drgb = grad
        x, to_rgb, *before, post = saved
        z = _activated(x, before, options)
        dz = torch.zeros_like(z)
        if dy is not None:
            dy = to_arithmetic(dy)
            dz = dz + dy * channels(post, x)
        if drgb is not None:
            dz = dz + _project(drgb, to_rgb.transpose(1, 2))
        needed = True, *needs_grad[2:6], False
        dx, *dbefore, _ = NoiseBiasAct.reference_backward(dz, (x, *before, None), options.epilogue, needed)
        return (
            dx.to(x.dtype),
            _products(drgb, z) if needs_grad[1] and drgb is not None else None,
            *dbefore,
            sum_over_positions(dy * z) if needs_grad[6] and dy is not None else None,
        )

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        x, *small = saved
        dy, drgb = grad
        wanted = needs_grad[1] and drgb is not None, *needs_grad[2:6], needs_grad[6] and dy is not None
        sums = [torch.empty_like(t) if need else None for t, need in zip(small, wanted, strict=True)]
        return torch.empty_like(x, memory_format=torch.channels_last), *sums

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        x, *small = saved
        dx, dto_rgb, dnoise, *sums = grads
        if grad[1] is None:
            arguments = (dx, dnoise, *sums), grad[0], (x, *small[1:]), options.epilogue
            return NoiseBiasAct.launch_backward(launchers.of("noise_bias_act"), *arguments)
        dy, drgb = _incoming(grad, dx)
        call = NoiseBiasActToRGBCall(
            *_shared_fields(dx, small, options), dense_like(x, dx), None, None, dy, drgb, dx, dto_rgb, *sums
        )
        launch_with_noise_gradient(launchers.backward, call, dnoise)

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        x, *small = saved
        gx, gto_rgb, gnoise, *gsums = grad_grads
        if gnoise is not None or needs_grad[4]:
            return None  # about the noise: left to autograd
        if gx is None or not hasattr(launchers, "double_backward"):  # Triton has none
            return None
        ddy, dx = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
        ddrgb = _empty_rgb(x, small[0])
        dto_rgb, _, *sums = (
            torch.empty_like(t) if need else None for t, need in zip(small, needs_grad[3:], strict=True)
        )
        dy, drgb = _incoming(grad, dx)
        # A sum or a transposition after the backward pass gives expanded or strided gradients.
        gto_rgb, *gsums = [None if g is None else to_arithmetic(g).contiguous() for g in (gto_rgb, *gsums)]
        ddy = None if dy is None else ddy
        call = NoiseBiasActToRGBCall(
            *_shared_fields(dx, small, options), dense_like(x, dx), None, None, dy, drgb, dx, dto_rgb, *sums,
            dense_like(gx, dx), gto_rgb, *gsums, ddy, ddrgb,
        )  # fmt: skip
        launchers.double_backward(call)
        return ddy, ddrgb, dx, dto_rgb, None, *sums


def _empty_rgb(x: Tensor, to_rgb: Tensor) -> Tensor:
    n, _, *spatial = x.shape
    return empty_nhwc(x, (n, to_rgb.shape[1], *spatial), arithmetic_dtype(x.dtype))


def _products(drgb: Tensor, z: Tensor) -> Tensor:
    """The gradient of `to_rgb`: sum over positions of drgb[n,k] * z[n,c]."""
    n, c, *spatial = z.shape
    positions = math.prod(spatial)  # `flatten` has no rule for batches of gradients
    with _without_autocast(z):
        return torch.bmm(drgb.reshape(n, -1, positions), z.reshape(n, c, positions).transpose(1, 2))


def _without_autocast(like: Tensor):
    """A context in which matrix products keep the dtype of their inputs. Tensors without data have no autocast."""
    kind = like.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def _incoming(grad, like: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradients of y and of the image in the layouts that kernels take."""
    dy, drgb = grad
    return None if dy is None else dense_like(dy, like), drgb.permute(0, 2, 3, 1).contiguous()


def _shared_fields(x: Tensor, small, options: Options) -> tuple:
    """The fields of a call up to `post`, which are the same for all passes over an activation `x`."""
    to_rgb, noise, *others = small
    n, c, p, _ = require_view(x)
    noise_per_sample = noise is not None and noise.shape[0] > 1
    return n, c, p, to_rgb.shape[1], x.dtype, *options, noise_per_sample, to_rgb, noise, *others
