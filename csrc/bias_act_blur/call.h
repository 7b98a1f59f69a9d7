// One call of bias_act_blur: bias and a leaky ReLU, then an FIR filter, as between the two convolutions of a StyleGAN2
// discriminator's block. In NHWC, for rows of channels of whole 64 bytes, a separable filter of four taps that neither
// up- nor downsamples, and piecewise linear activations.
#pragma once

#include "noise_bias_act/call.h"
#include "upfirdn2d/call.h"

namespace fastgan {

#define BIAS_ACT_BLUR_FIELDS(FIELD)                                                                         \
    FIELD(Upfirdn2dCall, filter)        /* forward: x and y; backward: the adjoint filter, from dy to dx */ \
    FIELD(NoiseBiasActCall, activation) /* bias and options; backward: also x as `reference`, and dbias */

struct BiasActBlurCall {
    FASTGAN_MEMBERS(BIAS_ACT_BLUR_FIELDS)
};

}  // namespace fastgan

FASTGAN_WORKSPACE(BiasActBlurCall, bias_act_blur_workspace)
FASTGAN_KERNEL(BiasActBlurCall, bias_act_blur_forward, no_workspace, "bias_act_blur.forward")
FASTGAN_KERNEL(BiasActBlurCall, bias_act_blur_backward, bias_act_blur_workspace, "bias_act_blur.backward")
