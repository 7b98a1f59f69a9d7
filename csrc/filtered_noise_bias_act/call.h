// One call of filtered_noise_bias_act: an FIR filter followed by noise_bias_act, as at the end of a StyleGAN2 layer that
// doubles the resolution. On the GPU, in NHWC, for a separable filter of four taps and piecewise linear activations.
#pragma once

#include "noise_bias_act/call.h"
#include "upfirdn2d/call.h"

namespace fastgan {

#define FILTERED_NOISE_BIAS_ACT_FIELDS(FIELD)                                                             \
    FIELD(Upfirdn2dCall, filter)      /* forward: x and y; backward: the adjoint filter, from dy to dx */ \
    FIELD(NoiseBiasActCall, epilogue) /* small tensors and options; backward: x or y as `reference`, and sums */

struct FilteredNoiseBiasActCall {
    FASTGAN_MEMBERS(FILTERED_NOISE_BIAS_ACT_FIELDS)
};

}  // namespace fastgan

FASTGAN_GPU_WORKSPACE(FilteredNoiseBiasActCall, filtered_noise_bias_act_workspace)
FASTGAN_GPU_KERNEL(FilteredNoiseBiasActCall, filtered_noise_bias_act_forward, no_workspace,
                   "filtered_noise_bias_act.forward")
FASTGAN_GPU_KERNEL(FilteredNoiseBiasActCall, filtered_noise_bias_act_backward, filtered_noise_bias_act_workspace,
                   "filtered_noise_bias_act.backward")
