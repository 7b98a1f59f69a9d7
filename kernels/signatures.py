"""The signature of every kernel launcher: what each backend offers under the same name."""

from typing import NamedTuple, Protocol

from torch import Tensor


class View(NamedTuple):
    """A dense activation as the kernels see it, whatever its number of spatial dimensions."""

    n: int
    c: int
    p: int
    pixels: bool  # channels are adjacent in memory (NHWC); otherwise positions are (NCHW)


class NoiseBiasAct(Protocol):
    """Launchers of noise_bias_act. `act` is "lrelu" with any slope, "tanh", "sigmoid", "silu" or "softplus".

    `reference` is y with `from_output`, else x. Outputs that are None are not made. All tensors but y, x, their
    gradients and cotangents are fp32, or fp64 where those are; all are dense, the activations in the layout of `view`.
    """

    def forward(
        self, view: View, y: Tensor, x: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor | None,
        scale: Tensor | None, post: Tensor | None, act: str, slope: float, gain: float, clamp: float,
    ) -> None: ...  # fmt: skip

    def backward(
        self, view: View, dx: Tensor, dstrength: Tensor | None, dbias: Tensor | None, dscale: Tensor | None,
        dpost: Tensor | None, dy: Tensor, reference: Tensor, from_output: bool, noise: Tensor | None,
        strength: Tensor | None, bias: Tensor | None, scale: Tensor | None, post: Tensor | None,
        act: str, slope: float, gain: float, clamp: float,
    ) -> None: ...  # fmt: skip

    def double_backward(
        self, view: View, ddy: Tensor, dx: Tensor | None, dstrength: Tensor | None, dbias: Tensor | None,
        dscale: Tensor | None, dpost: Tensor | None, dy: Tensor, reference: Tensor, from_output: bool,
        noise: Tensor | None, strength: Tensor | None, bias: Tensor | None, scale: Tensor | None, post: Tensor | None,
        gx: Tensor, gstrength: Tensor | None, gbias: Tensor | None, gscale: Tensor | None, gpost: Tensor | None,
        act: str, slope: float, gain: float, clamp: float,
    ) -> None: ...  # fmt: skip


class InstanceNorm(Protocol):
    """Launchers of instance_norm, the kernels of adain and style_epilogue.

    `statistics` [2, N, C] are mean and 1 / sqrt(var + eps) of what is normalised: written by the forward kernel, read
    by the backward kernel. Outputs of `backward` that are None are not made. All tensors but y, x and their gradients
    are fp32, or fp64 where those are; all are dense, the activations in the layout of `view`.
    """

    def forward(
        self, view: View, y: Tensor, statistics: Tensor, x: Tensor, noise: Tensor | None, strength: Tensor | None,
        bias: Tensor | None, style_scale: Tensor | None, style_bias: Tensor | None,
        slope: float, gain: float, eps: float,
    ) -> None: ...  # fmt: skip

    def backward(
        self, view: View, dx: Tensor | None, dstrength: Tensor | None, dbias: Tensor | None,
        dstyle_scale: Tensor | None, dstyle_bias: Tensor | None, dy: Tensor, x: Tensor, statistics: Tensor,
        noise: Tensor | None, strength: Tensor | None, bias: Tensor | None, style_scale: Tensor | None,
        slope: float, gain: float, eps: float,
    ) -> None: ...  # fmt: skip


class BatchNormAct(Protocol):
    """Launchers of batch_norm_act in training. `slope` is that of the activation below zero.

    `statistics` [3, C] are mean, 1 / sqrt(var + eps) and the unbiased variance: written by the forward kernel, the
    first two read by the backward kernel. Outputs of `backward` that are None are not made. All tensors but y, x and
    their gradients are fp32, or fp64 where those are; all are dense, the activations in the layout of `view`.
    """

    def forward(
        self, view: View, y: Tensor, statistics: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        slope: float, gain: float, eps: float,
    ) -> None: ...  # fmt: skip

    def backward(
        self, view: View, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, dy: Tensor, x: Tensor,
        statistics: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float, gain: float,
    ) -> None: ...  # fmt: skip


class Upfirdn2d(Protocol):
    """Launcher of upfirdn2d; the arguments are those of `fastgan.ops.upfirdn2d`.

    x and y are dense, in channels_last or contiguous; `taps` is [k] (separable) or [kh, kw], fp32, or fp64 where x is.
    """

    def forward(
        self, y: Tensor, x: Tensor, taps: Tensor, up_x: int, up_y: int, down_x: int, down_y: int, left: int,
        right: int, top: int, bottom: int, gain: float, flip: bool, channels_last: bool,
    ) -> None: ...  # fmt: skip


class PixelNorm(Protocol):
    """Launchers of pixel_norm. All tensors are of one dtype, dense, in the layout of `view`; `gx` is dx's cotangent."""

    def forward(self, view: View, y: Tensor, x: Tensor, eps: float) -> None: ...

    def backward(self, view: View, dx: Tensor, dy: Tensor, x: Tensor, eps: float) -> None: ...

    def double_backward(
        self, view: View, ddy: Tensor, dx: Tensor, dy: Tensor, x: Tensor, gx: Tensor, eps: float
    ) -> None: ...


class SquaredNorm(Protocol):
    """Launchers of squared_norm. `x` and `dx` [N, ...] are dense and lie alike; `sums`, `grad` [N] are fp32 or fp64."""

    def forward(self, sums: Tensor, x: Tensor) -> None: ...

    def backward(self, dx: Tensor, grad: Tensor, x: Tensor) -> None: ...


class LerpSamples(Protocol):
    """Launchers of lerp_samples. All but `t` [N], fp32 or fp64, are [N, ...], of one dtype, dense, and lie alike."""

    def forward(self, y: Tensor, a: Tensor, b: Tensor, t: Tensor) -> None: ...

    def backward(self, da: Tensor, db: Tensor | None, dy: Tensor, t: Tensor) -> None: ...


class MinibatchStddev(Protocol):
    """Launchers of minibatch_stddev. All tensors are of one dtype and dense, in one layout, that of `view`.

    `view` is that of `x`, `dx` and its cotangent `gx`; `y`, `dy` and `ddy` have `features` more channels. `size` is the
    number of samples of a group, which divides that of all.
    """

    def forward(self, view: View, y: Tensor, x: Tensor, size: int, features: int) -> None: ...

    def backward(self, view: View, dx: Tensor, dy: Tensor, x: Tensor, size: int, features: int) -> None: ...

    def double_backward(
        self, view: View, ddy: Tensor, dx: Tensor, dy: Tensor, x: Tensor, gx: Tensor, size: int, features: int
    ) -> None: ...


class ImageBatch(Protocol):
    """Launcher of image_batch; the arguments are those of `fastgan.ops.image_batch`.

    `pixels` [M, H, W, C], `index` and `mirrored` [N] are contiguous, `y` [N, C, H, W] is so in NHWC. What `index` names
    is there on a CPU; on a GPU, images that are not there become NaN.
    """

    def forward(self, y: Tensor, pixels: Tensor, index: Tensor | None, mirrored: Tensor | None) -> None: ...


class WeightGradient(Protocol):
    """Launcher of the gradient `dw` [A, B, kh, kw] of a convolution's weight, on CPUs only.

    It is a sum over products of `small` [N, A, h, w] and `large` [N, B, H, W], which is zero outside of itself. With
    one pixel of the former go `stride` of the latter, and those of the first begin `top` and `left` of it. Of a
    convolution `small` is the gradient of its output and `large` its input; of a transposed one it is the other way
    round. All are fp32, or all bf16; dense, in channels_last, and with elements. Sums are fp32.
    """

    def forward(self, dw: Tensor, small: Tensor, large: Tensor, stride: int, top: int, left: int) -> None: ...


class FewChannels(Protocol):
    """Launchers of convolutions between `wide` [N, C, h, w] and `thin` [N, O, H, W], of few channels, on CPUs only.

    `gather` makes wide, the convolution of thin; `scatter` makes thin, by the transposed convolution of wide; `outer`
    makes the gradient of the weight. `kernel` is height, width, stride, and how many rows and columns of zeros lie in
    front of thin, which is zero outside of itself. C * O weights have their taps in rows; `turned` says that the last
    is meant for the first; `steps` are the distances in memory from one O, tap and C to the next.

    All are fp32, or all bf16; the images are dense, in channels_last, and C is even. Sums are fp32. A position of wide
    goes with 64 numbers of thin at most.
    """

    def gather(
        self, wide: Tensor, thin: Tensor, weight: Tensor, kernel: tuple[int, int, int, int, int], turned: bool,
        steps: tuple[int, int, int],
    ) -> None: ...  # fmt: skip

    def scatter(
        self, thin: Tensor, wide: Tensor, weight: Tensor, kernel: tuple[int, int, int, int, int], turned: bool,
        steps: tuple[int, int, int],
    ) -> None: ...  # fmt: skip

    def outer(
        self, weight: Tensor, wide: Tensor, thin: Tensor, kernel: tuple[int, int, int, int, int], turned: bool,
        steps: tuple[int, int, int],
    ) -> None: ...  # fmt: skip


class FilteredNoiseBiasAct(Protocol):
    """Launchers of upfirdn2d without resampling and noise_bias_act behind it; activations are in channels_last.

    `taps` is [4], `slope` that of a leaky ReLU, `du` the gradient of what the filter hands to noise_bias_act. The
    object also has the launchers of the two operations on the same backend.
    """

    upfirdn2d: Upfirdn2d
    noise_bias_act: NoiseBiasAct

    def forward(
        self, y: Tensor, x: Tensor, taps: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor | None,
        scale: Tensor | None, post: Tensor | None, left: int, top: int, fir_gain: float, slope: float,
        gain: float, clamp: float,
    ) -> None: ...  # fmt: skip

    def backward(
        self, du: Tensor, dstrength: Tensor | None, dbias: Tensor | None, dscale: Tensor | None, dpost: Tensor | None,
        dy: Tensor, x: Tensor, taps: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor | None,
        scale: Tensor | None, post: Tensor | None, left: int, top: int, fir_gain: float, slope: float,
        gain: float, clamp: float,
    ) -> None: ...  # fmt: skip
