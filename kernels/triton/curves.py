"""The activations of noise_bias_act and their derivatives in Triton, as in csrc/noise_bias_act/arithmetic.h."""

import triton
import triton.language as tl


@triton.jit
def _tanh(u):
    # Near 0, where the exponential has no relative accuracy: the sixth convergent of tanh's continued fraction.
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    q = tl.minimum(u * u, 1.0)
    near = u * (10395.0 + q * (1260.0 + q * 21.0)) / (10395.0 + q * (4725.0 + q * (210.0 + q)))
    return tl.where(tl.abs(u) < 0.25, near, tl.where(u < 0, -far, far))


@triton.jit
def _log_one_plus(e):
    # e is in [0, 1]. The quotient corrects the rounding of 1 + e (Kahan).
    w = 1.0 + e
    return tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def curve(u, slope, gain, clamp, ACT: tl.constexpr):
    """clamp(gain * act(u)) with its first and second derivative, which are zero where it is clamped.

    clamp: None for infinity.
    """
    if ACT == "lrelu":
        first = tl.where(u > 0, gain, gain * slope)
        value = u * first
        second = tl.full(u.shape, 0.0, u.dtype)
    else:
        s = 1.0 / (1.0 + tl.exp(-u))
        if ACT == "tanh":
            value = _tanh(u)
            first = 1.0 - value * value
            second = -2.0 * value * first
        elif ACT == "sigmoid":
            value = s
            first = s * (1.0 - s)
            second = first * (1.0 - s - s)
        elif ACT == "silu":
            value = u * s
            flat = s * (1.0 - s)
            first = s + u * flat
            second = flat * (2.0 + u * (1.0 - s - s))
        else:
            tl.static_assert(ACT == "softplus")
            value = tl.maximum(u, 0.0) + _log_one_plus(tl.exp(-tl.abs(u)))
            first = s
            second = s * (1.0 - s)
        value, first, second = gain * value, gain * first, gain * second
    if clamp is not None:
        limited = tl.abs(value) > clamp
        value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))  # NaN stays NaN
        first, second = tl.where(limited, 0.0, first), tl.where(limited, 0.0, second)
    return value, first, second


@triton.jit
def slope_from_output(y, slope, gain, clamp, ACT: tl.constexpr):
    """d clamp(gain * act(u)) / du from the result; a result at the limit counts as clamped."""
    if ACT == "lrelu":
        first = tl.where(y > 0, gain, gain * slope)
    else:
        a = y / gain
        if ACT == "tanh":
            first = gain * (1.0 - a * a)
        else:
            tl.static_assert(ACT == "sigmoid")  # other activations use x
            first = gain * (a * (1.0 - a))
    return tl.where((tl.abs(y) < clamp) | (clamp == float("inf")), first, 0.0)
