"""Operations in plain PyTorch, as textbooks and code bases write them, in the dtype of x.

They are the eager contestants, and the code that `torch.compile` gets to fuse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def noise_bias_act(
    x: Tensor,
    *,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    post: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """`fastgan.ops.noise_bias_act` for a scalar `strength`, without its checks."""
    if scale is not None:
        x = x * _channels(scale, x)
    if noise is not None:
        x = x + noise.to(x.dtype) * strength.to(x.dtype)
    if bias is not None:
        x = x + _channels(bias, x)
    if act == "lrelu":
        x = F.leaky_relu(x, slope)
    elif act != "linear":
        x = {"relu": F.relu, "tanh": torch.tanh}[act](x)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    if post is not None:
        x = x * _channels(post, x)
    return x if residual is None else x + residual


def noise_bias_act_to_rgb(
    x: Tensor, to_rgb: Tensor, *, post: Tensor | None = None, **others
) -> tuple[Tensor | None, Tensor]:
    """`fastgan.ops.noise_bias_act_to_rgb`, for channels_last."""
    n, c, h, w = x.shape
    x = noise_bias_act(x, **others)
    rgb = torch.bmm(x.permute(0, 2, 3, 1).reshape(n, h * w, c), to_rgb.to(x.dtype).transpose(1, 2))
    return None if post is None else x * _channels(post, x), rgb.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def pixel_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def minibatch_stddev(x: Tensor) -> Tensor:
    """Groups of 4, one feature map."""
    n, c, h, w = x.shape
    y = x.reshape(4, n // 4, 1, c, h, w)
    y = (y - y.mean(0)).square().mean(0)  # [N/4, 1, C, H, W]
    y = (y + 1e-8).sqrt().mean((2, 3, 4))  # [N/4, 1]
    return torch.cat([x, y.repeat(4, 1).reshape(n, 1, 1, 1).expand(-1, -1, h, w)], 1)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    noise: Tensor,
    strength: Tensor,
    bias: Tensor,
    gain: float,
    post: Tensor | None = None,
    taps: Tensor | None = None,
    up: int = 1,
    down: int = 1,
) -> Tensor:
    """One weight per sample in a grouped convolution, as StyleGAN2 was published; leaky ReLU at the end."""
    n, c, h, w = x.shape
    weights = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    weights = (weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + 1e-8)).to(x.dtype)
    if down == 2:
        x = filtered(x, taps, 2)
    x = x.reshape(1, n * c, *x.shape[2:])
    if up == 2:
        y = F.conv_transpose2d(x, weights.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
    else:
        y = F.conv2d(x, weights.flatten(0, 1), padding=1 if down == 1 else 0, stride=down, groups=n)
    y = y.reshape(n, -1, *y.shape[2:])
    if up == 2:
        y = 4 * filtered(y, taps, 1)
    return noise_bias_act(y, noise=noise, strength=strength, bias=bias, post=post, gain=gain)


def scaled_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    noise: Tensor,
    strength: Tensor,
    bias: Tensor,
    gain: float,
    taps: Tensor | None = None,
    up: int = 1,
) -> Tensor:
    """The same function with one weight for all samples: activations are scaled before and after the convolution."""
    scale = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + 1e-8)  # [N, O]
    x, weight = x * _channels(style, x), weight.to(x.dtype)
    if up == 2:
        y = 4 * filtered(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), taps, 1)
    else:
        y = F.conv2d(x, weight, padding=1)
    return noise_bias_act(y, noise=noise, strength=strength, bias=bias, scale=scale, gain=gain)


def filtered_noise_bias_act(x: Tensor, taps: Tensor, *, fir_gain: float, **epilogue) -> Tensor:
    """End of StyleGAN2's layer that doubles the resolution. The result has one row and column less than `x`."""
    return noise_bias_act(filtered(x, taps, 1) * fir_gain, **epilogue)


def bias_act_blur(x: Tensor, taps: Tensor, bias: Tensor, gain: float) -> Tensor:
    """What lies between the two convolutions of StyleGAN2's discriminator block."""
    return filtered(noise_bias_act(x, bias=bias, gain=gain), taps, 2)


def filtered_lrelu(
    x: Tensor, up_taps: Tensor, down_taps: Tensor, bias: Tensor, *, up: int, down: int, padding: tuple, **activation
) -> Tensor:
    """StyleGAN3's activation as its reference implementation computes it: five operations, the middle ones large."""
    n, c, h, w = x.shape
    x = x + _channels(bias, x)
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    x = _correlated(F.pad(x, padding), up_taps * up**2 if up_taps.dim() > 1 else up_taps * up)
    x = noise_bias_act(x, **activation)
    return _correlated(x, down_taps)[:, :, ::down, ::down]


def _correlated(x: Tensor, taps: Tensor) -> Tensor:
    """Correlates each channel with taps [k], along both axes, or [k, k]."""
    c, taps = x.shape[1], taps.to(x.dtype)
    shapes = [taps.shape] if taps.dim() == 2 else [(1, len(taps)), (len(taps), 1)]
    for shape in shapes:
        x = F.conv2d(x, taps.reshape(1, 1, *shape).expand(c, -1, -1, -1), groups=c)
    return x


def squared_norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), dtype=torch.float32)


def lerp_samples(x: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points between samples, as WGAN-GP is usually written."""
    t = t.to(x.dtype).reshape(-1, 1, 1, 1)
    return (1 - t) * x + t * b


def image_batch(pixels: Tensor, index: Tensor | None, mirrored: Tensor | None, dtype: torch.dtype) -> Tensor:
    """uint8 [M, H, W, C] to a batch [N, C, H, W] in channels_last, as loaders write it."""
    x = pixels if index is None else pixels[index]
    if mirrored is not None:
        x = torch.where(mirrored[:, None, None, None], x.flip(2), x)
    return x.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1


def batch_norm_act(x: Tensor, weight: Tensor, bias: Tensor, slope: float = 0.2) -> Tensor:
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, training=True), slope)


def adain(x: Tensor, scale: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean((2, 3), keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + eps)
    return normal * _channels(scale, x) + _channels(bias, x)


def style_epilogue(
    x: Tensor, *, noise: Tensor, strength: Tensor, bias: Tensor, style_scale: Tensor, style_bias: Tensor
) -> Tensor:
    x = x + noise.to(x.dtype) * _channels(strength, x)
    x = F.leaky_relu(x + _channels(bias, x), 0.2)
    return adain(x, style_scale, style_bias)


def conv2d(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), padding=1, stride=stride)


def upsample_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight.to(x.dtype), padding=1)


def conv_downsample2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight.to(x.dtype), padding=1), 2)


def resample2d(x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1) -> Tensor:
    """StyleGAN2's resampling by a separable filter of four taps, as a depthwise convolution."""
    c = x.shape[1]
    kernel = (torch.outer(taps, taps) * up * up).to(x.dtype).expand(c, 1, -1, -1)
    if up == 2:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=c)
    if down == 2:
        return F.conv2d(x, kernel.flip(2, 3), stride=2, padding=1, groups=c)
    return F.conv2d(F.pad(x, (2, 1, 2, 1)), kernel.flip(2, 3), groups=c)


def filtered(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """Separable filter as a depthwise convolution of the padded image."""
    c = x.shape[1]
    kernel = torch.outer(taps, taps).to(x.dtype).expand(c, 1, -1, -1)
    return F.conv2d(F.pad(x, (padding,) * 4), kernel.flip(2, 3), groups=c)


def _channels(t: Tensor, x: Tensor) -> Tensor:
    """[C] or [N, C], reshaped to broadcast against x [N, C, ...]."""
    return t.to(x.dtype).reshape(-1, x.shape[1], *[1] * (x.dim() - 2))
