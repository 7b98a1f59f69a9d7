"""upfirdn2d: pad, insert zeros, filter, decimate: resampling as StyleGAN2 does it.

The plain definition serves every device so far; its gradient is itself, so any order comes from autograd.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BILINEAR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's resampling filter, separable


def taps(weights: tuple[float, ...] = BILINEAR) -> Tensor:
    """The normalised 2-D filter [k, k] of a separable one: its entries sum to 1."""
    row = torch.tensor(weights, dtype=torch.float32)
    return torch.outer(row, row) / row.sum().square()


def upfirdn2d(
    x: Tensor,
    taps: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """Upsamples by zero insertion, pads, convolves with a filter and decimates, each channel alone.

    Args:
        x: [N, C, H, W].
        taps: the filter [k, k], symmetric (as all of StyleGAN's are).
        up, down: factors of zero insertion and decimation.
        padding: (left, right, top, bottom), of the upsampled image, at least zero.
        gain: factor of the result; up * up keeps the brightness of an upsampled image.

    Returns:
        [N, C, (H * up + padding - k) // down + 1, ...], in the dtype and memory format of `x`.
    """
    n, c, h, w = x.shape
    left, right, top, bottom = padding
    kernel = (taps * gain).to(x.dtype).expand(c, 1, *taps.shape)
    if up > 1:
        # Zero insertion and filter in one transposed convolution, cropped to what the padding asks for.
        full = F.conv_transpose2d(x, kernel, stride=up, groups=c)  # [N, C, (H-1)*up + k, ...]
        k = taps.shape[0]
        crop = (left - (k - 1), right + up - 1 - (k - 1), top - (k - 1), bottom + up - 1 - (k - 1))
        full = F.pad(full, crop)
        return full if down == 1 else full[:, :, ::down, ::down]
    if left == right and top == bottom:
        return F.conv2d(x, kernel, stride=down, padding=(top, left), groups=c)
    return F.conv2d(F.pad(x, padding), kernel, stride=down, groups=c)
