"""Convolutions to or from images of few channels, by kernels of our own.

A CPU's library convolution takes as long to make one channel as to make sixteen. The last layer of a generator makes
one or three, and so does the gradient that a discriminator's first layer hands back. Such a convolution is next to no
arithmetic, and could take as long as it takes to read or write its other image once (docs/performance.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor

import fastgan_kernels
from fastgan.ops.layout import channels_last, empty_nhwc, has_one_step, is_channels_last
from fastgan_kernels.calls import FewChannelsCall

_FEW = 4  # channels at most
_NUMBERS = 48  # of the image of few channels that go with a position of the other, at most
_DTYPES = (torch.float32, torch.bfloat16)


class FewChannels(NamedTuple):
    """A convolution between `thin`, of few channels, and `wide`, of many, as the kernels take it.

    Attributes:
        makes_thin: whether thin is the convolution's output, else it is its input.
        kernel: height, width, stride, and the rows and columns of zeros in front of thin.
        turned: whether the taps of the weight run backwards.
        transposed: as of the convolution: the weight is [I, O, kh, kw] then.
    """

    makes_thin: bool
    kernel: tuple[int, int, int, int, int]
    turned: bool
    transposed: bool

    @staticmethod
    def of(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], transposed: bool) -> "FewChannels | None":
        """What a convolution of `x` by `weight` is, or None if the kernels do not take it or are not faster."""
        first, second, height, width = weight.shape
        few = min(first, second)
        if few > _FEW or few * height * width > _NUMBERS:
            return None
        outputs, inputs = (second, first) if transposed else (first, second)
        makes_thin, wide = outputs < inputs, max(first, second)
        turned = makes_thin and not transposed
        if (
            wide < 16
            or wide % 2  # of bf16 channels are taken in pairs
            or x.dtype not in _DTYPES
            or weight.dtype != x.dtype
            or x.shape[1] != inputs
            or (turned and stride > 1)
            or (transposed and not makes_thin)
            or not (0 <= padding[0] < height and 0 <= padding[1] < width)
            or not is_channels_last(channels_last(x) if inputs == 1 else x)
            or x.numel() == 0
        ):
            return None
        before = (height - 1 - padding[0], width - 1 - padding[1]) if turned else tuple(padding)
        found = FewChannels(makes_thin, (height, width, stride, *before), turned, transposed)
        return found if min(found._output_size(x)) > 0 else None  # else the library says what is wrong

    def forward(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """The convolution's output, in channels_last; None if it is best left to the library."""
        if not self.makes_thin and _is_large(x.shape[0] * weight.shape[0], self._output_size(x)):
            return None
        y = empty_nhwc(x, (len(x), weight.shape[1 if self.transposed else 0], *self._output_size(x)))
        return self._map(y, x, weight, makes_thin=self.makes_thin)

    def back(self, dy: Tensor, weight: Tensor, like: Tensor) -> Tensor | None:
        """The gradient of the input, whose shape is that of `like`, in channels_last; None as for `forward`."""
        if self.makes_thin and _is_large(like.shape[0] * like.shape[1], like.shape[2:]):
            return None
        dx = empty_nhwc(dy, like.shape)
        return self._map(dx, dy, weight, makes_thin=not self.makes_thin)

    def outer(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight, in its layout if kernels take that, else contiguous."""
        dw = torch.empty_like(weight) if has_one_step(weight) else weight.new_empty(weight.shape)
        thin, wide = (dy, x) if self.makes_thin else (x, dy)
        self._launch("outer", wide, thin, dw)
        return dw

    def _map(self, to: Tensor, of: Tensor, weight: Tensor, makes_thin: bool) -> Tensor:
        weight = weight if has_one_step(weight) else weight.contiguous()
        if makes_thin:
            self._launch("scatter", of, to, weight)
        else:
            self._launch("gather", to, of, weight)
        return to

    def _launch(self, map: str, wide: Tensor, thin: Tensor, weight: Tensor) -> None:
        """Runs one of the three maps between wide and thin; see `FewChannelsCall`."""
        first, second, of_row, of_column = weight.stride()
        of_few, of_many = (first, second) if self.makes_thin != self.transposed else (second, first)
        of_tap = of_column if weight.shape[3] > 1 else of_row  # of a single column torch's stride may be anything
        wide, thin = _dense(wide), _dense(thin)
        fastgan_kernels.BACKENDS["cpp"].launchers("few_channels").run(
            FewChannelsCall(
                map, wide.dtype, *wide.shape, *thin.shape[1:], *self.kernel, self.turned, of_few, of_tap, of_many,
                wide, thin, weight,
            )
        )  # fmt: skip

    def _output_size(self, x: Tensor) -> tuple[int, int]:
        height, width, stride, top, left = self.kernel
        sizes = zip(x.shape[2:], (height, width), (top, left), strict=True)
        if self.makes_thin:
            return tuple((side - 1) * stride + k - 2 * before for side, k, before in sizes)
        return tuple((side + 2 * before - k) // stride + 1 for side, k, before in sizes)


def _is_large(channels: int, size: tuple[int, int]) -> bool:
    """Whether an image of many channels is so large that the library makes it as fast, or faster, of one of few: what
    takes time then is to write it. `channels` are those of all samples."""
    return channels * size[0] * size[1] > 1 << 20


def _dense(x: Tensor) -> Tensor:
    """An image in channels_last, without gaps."""
    return x.contiguous() if x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)
