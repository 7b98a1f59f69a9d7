"""The fused operations: plain functions on tensors, for any code base.

Each is differentiable twice in every floating-point tensor, on every backend; see `fastgan.ops.backends` for the
choice of one.
"""

from fastgan.ops.backends import BackendUnavailable, use_backend
from fastgan.ops.lerp_samples import lerp_samples
from fastgan.ops.minibatch_stddev import minibatch_stddev
from fastgan.ops.noise_bias_act import noise_bias_act
from fastgan.ops.pixel_norm import pixel_norm
from fastgan.ops.squared_norm import squared_norm

__all__ = [
    "BackendUnavailable",
    "lerp_samples",
    "minibatch_stddev",
    "noise_bias_act",
    "pixel_norm",
    "squared_norm",
    "use_backend",
]
