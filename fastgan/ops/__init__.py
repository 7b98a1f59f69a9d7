"""The fused operations: plain functions on tensors, for any code base.

Each is differentiable twice in every floating-point tensor, on every backend (`image_batch` takes none); see
`fastgan.ops.backends` for the choice of one.
"""

from fastgan.ops.backends import BackendUnavailable, use_backend
from fastgan.ops.batch_norm_act import batch_norm_act
from fastgan.ops.bias_act_blur import bias_act_blur
from fastgan.ops.convolution import conv2d, conv_transpose2d
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.filtered_noise_bias_act import filtered_noise_bias_act
from fastgan.ops.image_batch import image_batch
from fastgan.ops.instance_norm import adain, style_epilogue
from fastgan.ops.lerp_samples import lerp_samples
from fastgan.ops.minibatch_stddev import minibatch_stddev
from fastgan.ops.modulated_conv2d import modulated_conv2d
from fastgan.ops.noise_bias_act import noise_bias_act
from fastgan.ops.noise_bias_act_to_rgb import noise_bias_act_to_rgb
from fastgan.ops.pixel_norm import pixel_norm
from fastgan.ops.resampled_conv2d import conv_downsample2d, upsample_conv2d
from fastgan.ops.squared_norm import squared_norm
from fastgan.ops.upfirdn2d import upfirdn2d

__all__ = [
    "BackendUnavailable",
    "adain",
    "batch_norm_act",
    "bias_act_blur",
    "conv2d",
    "conv_downsample2d",
    "conv_transpose2d",
    "filtered_lrelu",
    "filtered_noise_bias_act",
    "image_batch",
    "lerp_samples",
    "minibatch_stddev",
    "modulated_conv2d",
    "noise_bias_act",
    "noise_bias_act_to_rgb",
    "pixel_norm",
    "squared_norm",
    "style_epilogue",
    "upfirdn2d",
    "upsample_conv2d",
    "use_backend",
]
