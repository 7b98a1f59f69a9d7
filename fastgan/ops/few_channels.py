"""Convolutions to or from at most 4 channels, by our own CPU kernels.

The library's convolution takes as long to write one channel as sixteen. The last layer of a generator writes one or
three, and so does the backward pass of a discriminator's first layer. Measurements: docs/notes/convolutions.md,
"Convolutions to and from a few channels".
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops.backends import Replacement
from fastgan.ops.layout import channels_last, empty_nhwc, has_uniform_taps, is_channels_last
from fastgan_kernels.calls import FewChannelsCall

_MAX_FEW = 4  # channels
_MAX_VALUES = 48  # few channels times taps
_DTYPES = (torch.float32, torch.bfloat16)

kernel = Replacement("few_channels")


class FewChannels(NamedTuple):
    """A convolution between an image `few`, of few channels, and an image `many`, of many channels.

    Attributes:
        writes_few: whether few is the convolution's output; else it is the input.
        kernel: height, width, stride, and the rows and columns of zeros before the first of few.
        flipped: whether the kernels read the taps of the weight in reverse order.
        transposed: whether the convolution is transposed: its weight is [I, O, kh, kw] then.
    """

    writes_few: bool
    kernel: tuple[int, int, int, int, int]
    flipped: bool
    transposed: bool

    @staticmethod
    def of(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], transposed: bool) -> "FewChannels | None":
        """Describes a convolution of `x` by `weight`. None if the kernels do not take it or are not faster."""
        first, second, height, width = weight.shape
        few, many = sorted((first, second))
        if few > _MAX_FEW or few * height * width > _MAX_VALUES:
            return None
        outputs, inputs = (second, first) if transposed else (first, second)
        writes_few = outputs < inputs
        flipped = writes_few and not transposed
        if (
            many < 16
            or many % 2  # bf16 kernels read pairs of channels
            or x.dtype not in _DTYPES
            or weight.dtype != x.dtype
            or x.shape[1] != inputs
            or (flipped and stride > 1)
            or (transposed and not writes_few)
            or not (0 <= padding[0] < height and 0 <= padding[1] < width)
            or not is_channels_last(channels_last(x) if inputs == 1 else x)
            or x.numel() == 0
        ):
            return None
        before = (height - 1 - padding[0], width - 1 - padding[1]) if flipped else padding
        found = FewChannels(writes_few, (height, width, stride, *before), flipped, transposed)
        return found if min(found._output_size(x)) > 0 else None  # the library raises the error

    def forward(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """The convolution's output, in channels_last. None if the library is as fast."""
        if not self.writes_few and _is_large(x.shape[0] * weight.shape[0], self._output_size(x)):
            return None
        y = empty_nhwc(x, (len(x), weight.shape[1 if self.transposed else 0], *self._output_size(x)))
        return self._map(y, x, weight, writes_few=self.writes_few)

    def grad_input(self, dy: Tensor, weight: Tensor, like: Tensor) -> Tensor | None:
        """The gradient of an input of the shape of `like`, in channels_last. None if the library is as fast."""
        if self.writes_few and _is_large(like.shape[0] * like.shape[1], like.shape[2:]):
            return None
        dx = empty_nhwc(dy, like.shape)
        return self._map(dx, dy, weight, writes_few=not self.writes_few)

    def grad_weight(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight, in the weight's layout if the kernels take that, else contiguous."""
        dw = torch.empty_like(weight) if has_uniform_taps(weight) else weight.new_empty(weight.shape)
        few, many = (dy, x) if self.writes_few else (x, dy)
        self._launch("outer", many, few, dw)
        return dw

    def _map(self, output: Tensor, x: Tensor, weight: Tensor, writes_few: bool) -> Tensor:
        weight = weight if has_uniform_taps(weight) else weight.contiguous()
        if writes_few:
            self._launch("scatter", x, output, weight)
        else:
            self._launch("gather", output, x, weight)
        return output

    def _launch(self, map: str, many: Tensor, few: Tensor, weight: Tensor) -> None:
        """Runs one of the three maps; see `FewChannelsCall`."""
        first, second, step_row, step_column = weight.stride()
        step_few, step_many = (first, second) if self.writes_few != self.transposed else (second, first)
        step_tap = step_column if weight.shape[3] > 1 else step_row  # the stride of a single column is arbitrary
        many, few = _dense(many), _dense(few)
        n, c, h, w = many.shape
        _, o, few_h, few_w = few.shape
        kernel.run(
            FewChannelsCall(
                map, many.dtype, n, c, h, w, o, few_h, few_w, *self.kernel, self.flipped, step_few, step_tap, step_many,
                many, few, weight,
            )
        )  # fmt: skip

    def _output_size(self, x: Tensor) -> tuple[int, int]:
        kh, kw, stride, top, left = self.kernel
        h, w = x.shape[2:]
        if self.writes_few:
            return (h - 1) * stride + kh - 2 * top, (w - 1) * stride + kw - 2 * left
        return (h + 2 * top - kh) // stride + 1, (w + 2 * left - kw) // stride + 1


def _is_large(channels: int, size: Sequence[int]) -> bool:
    """Whether the library writes an image of many channels as fast, since the writing itself takes the time.

    `channels` counts those of all samples.
    """
    return channels * size[0] * size[1] > 1 << 20


def _dense(x: Tensor) -> Tensor:
    """`x` in channels_last, dense."""
    return x.contiguous() if x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)
