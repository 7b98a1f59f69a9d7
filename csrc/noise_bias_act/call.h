// One call of noise_bias_act.
#pragma once

#include <array>

#include "common/types.h"

namespace fastgan {

enum class Act : int { piecewise_linear, tanh, sigmoid, silu, softplus };

constexpr std::array<const char*, 5> names(Act) { return {"lrelu", "tanh", "sigmoid", "silu", "softplus"}; }

// Pointers are null for parts that are absent (inputs) or not wanted (outputs).
#define NOISE_BIAS_ACT_FIELDS(FIELD)                                                                               \
    FIELD(int64_t, n)          /* samples */                                                                       \
    FIELD(int64_t, c)          /* channels */                                                                      \
    FIELD(int64_t, p)          /* positions */                                                                     \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                                                               \
    FIELD(Dtype, dtype)        /* dtype of x, y and their gradients */                                             \
    FIELD(Act, act)                                                                                                \
    FIELD(double, slope)                                                                                           \
    FIELD(double, gain)                                                                                            \
    FIELD(double, clamp) /* infinity for none */                                                                   \
    FIELD(bool, noise_per_sample)                                                                                  \
    FIELD(bool, strength_per_channel)                                                                              \
    FIELD(const void*, noise)    /* [N or 1, P] */                                                                 \
    FIELD(const void*, strength) /* [C or 1] */                                                                    \
    FIELD(const void*, bias)     /* [C] */                                                                         \
    FIELD(const void*, scale)    /* [N, C] */                                                                      \
    FIELD(const void*, post)     /* [N, C] */                                                                      \
    FIELD(const void*, x)        /* forward: the input */                                                          \
    FIELD(void*, y)              /* forward: the output */                                                         \
    FIELD(bool, from_output)     /* take the derivative from y: `reference` is y, else x */                        \
    FIELD(const void*, dy)                                                                                         \
    FIELD(const void*, reference)                                                                                  \
    FIELD(void*, dx)                                                                                               \
    FIELD(void*, dstrength) /* [C or 1] */                                                                         \
    FIELD(void*, dbias)     /* [C] */                                                                              \
    FIELD(void*, dscale)    /* [N, C] */                                                                           \
    FIELD(void*, dpost)     /* [N, C] */                                                                           \
    FIELD(const void*, gx)  /* double backward: the gradient of dx, likewise below */                              \
    FIELD(const void*, gstrength)                                                                                  \
    FIELD(const void*, gbias)                                                                                      \
    FIELD(const void*, gscale)                                                                                     \
    FIELD(const void*, gpost)                                                                                      \
    FIELD(void*, ddy)            /* double backward: the gradient of dy; dx to dpost receive those of x to post */ \
    FIELD(const void*, residual) /* forward: added to the result */                                                \
    FIELD(void*, dnoise)         /* backward: [N, P], also for a noise that samples share */

struct NoiseBiasActCall {
    FASTGAN_MEMBERS(NOISE_BIAS_ACT_FIELDS)
};

// Maximum number of sums over samples and positions in a backward pass: for bias, strength, scale and post.
constexpr int MAX_SUMS = 4;

}  // namespace fastgan

FASTGAN_WORKSPACE(NoiseBiasActCall, noise_bias_act_workspace)
FASTGAN_KERNEL(NoiseBiasActCall, noise_bias_act_forward, noise_bias_act_workspace, "noise_bias_act.forward")
FASTGAN_KERNEL(NoiseBiasActCall, noise_bias_act_backward, noise_bias_act_workspace, "noise_bias_act.backward")
FASTGAN_KERNEL(NoiseBiasActCall, noise_bias_act_double_backward, noise_bias_act_workspace,
               "noise_bias_act.double_backward")
