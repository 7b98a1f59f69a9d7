"""noise_bias_act as textbooks and code bases have it: one PyTorch operation after another, in the dtype of x.

This is the eager contestant, and what `torch.compile` gets to fuse.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import layers
from fastgan.models import dcgan, stylegan2


def noise_bias_act(
    x: Tensor,
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
) -> Tensor:
    """The function of `fastgan.ops` for a scalar `strength`, without its checks."""
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
    return x


def _channels(t: Tensor, x: Tensor) -> Tensor:
    """[C] or [N, C] against [N, C, ...]."""
    return t.to(x.dtype).reshape(-1, x.shape[1], *[1] * (x.dim() - 2))


@contextmanager
def in_models() -> Iterator[None]:
    """Within the block, layers and models call the textbook function instead of the fused one."""
    with ExitStack() as stack:
        modulated_conv2d = sys.modules["fastgan.ops.modulated_conv2d"]  # the function hides the module
        for module in (layers, modulated_conv2d, stylegan2, dcgan):
            stack.enter_context(mock.patch.object(module, "noise_bias_act", noise_bias_act))
        yield
