// One call of noise_bias_act_to_rgb.
#pragma once

#include "common/types.h"

namespace fastgan {

// Activations are in NHWC. Pointers are null for parts that are absent (inputs) or not wanted (outputs). Without `post`,
// y, dy and ddy are null.
#define NOISE_BIAS_ACT_TO_RGB_FIELDS(FIELD)                                                             \
    FIELD(int64_t, n)   /* samples */                                                                   \
    FIELD(int64_t, c)   /* channels */                                                                  \
    FIELD(int64_t, p)   /* positions */                                                                 \
    FIELD(int64_t, k)   /* channels of the image: 1, 3 or 4 */                                          \
    FIELD(Dtype, dtype) /* dtype of x, y and their gradients */                                         \
    FIELD(double, slope)                                                                                \
    FIELD(double, gain)                                                                                 \
    FIELD(double, clamp) /* infinity for none */                                                        \
    FIELD(bool, noise_per_sample)                                                                       \
    FIELD(const void*, to_rgb)   /* [N, K, C] */                                                        \
    FIELD(const void*, noise)    /* [N or 1, P] */                                                      \
    FIELD(const void*, strength) /* [1] */                                                              \
    FIELD(const void*, bias)     /* [C] */                                                              \
    FIELD(const void*, scale)    /* [N, C] */                                                           \
    FIELD(const void*, post)     /* [N, C] */                                                           \
    FIELD(const void*, x)                                                                               \
    FIELD(void*, y)                                                                                     \
    FIELD(void*, rgb) /* [N, P, K], in the precision of arithmetic, as its gradients */                 \
    FIELD(const void*, dy)                                                                              \
    FIELD(const void*, drgb)                                                                            \
    FIELD(void*, dx)                                                                                    \
    FIELD(void*, dto_rgb)                                                                               \
    FIELD(void*, dstrength)                                                                             \
    FIELD(void*, dbias)                                                                                 \
    FIELD(void*, dscale)                                                                                \
    FIELD(void*, dpost)                                                                                 \
    FIELD(const void*, gx) /* double backward: the gradient of dx, likewise below */                    \
    FIELD(const void*, gto_rgb)                                                                         \
    FIELD(const void*, gstrength)                                                                       \
    FIELD(const void*, gbias)                                                                           \
    FIELD(const void*, gscale)                                                                          \
    FIELD(const void*, gpost)                                                                           \
    FIELD(void*, ddy) /* double backward: the gradient of dy; dx to dpost receive those of x to post */ \
    FIELD(void*, ddrgb)                                                                                 \
    FIELD(void*, dnoise) /* backward: [N, P], also for a noise that samples share */

struct NoiseBiasActToRGBCall {
    FASTGAN_MEMBERS(NOISE_BIAS_ACT_TO_RGB_FIELDS)
};

}  // namespace fastgan

FASTGAN_WORKSPACE(NoiseBiasActToRGBCall, noise_bias_act_to_rgb_workspace)
FASTGAN_KERNEL(NoiseBiasActToRGBCall, noise_bias_act_to_rgb_forward, noise_bias_act_to_rgb_workspace,
               "noise_bias_act_to_rgb.forward")
FASTGAN_KERNEL(NoiseBiasActToRGBCall, noise_bias_act_to_rgb_backward, noise_bias_act_to_rgb_workspace,
               "noise_bias_act_to_rgb.backward")
FASTGAN_KERNEL(NoiseBiasActToRGBCall, noise_bias_act_to_rgb_double_backward, noise_bias_act_to_rgb_workspace,
               "noise_bias_act_to_rgb.double_backward")
