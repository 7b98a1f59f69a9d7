// One call of instance_norm (the basis of adain and style_epilogue) or batch_norm_act.
#pragma once

#include "common/types.h"

namespace fastgan {

// Position of the activation, if any.
enum class Activation { none, before_norm, after_norm };

// Pointers are null for parts that are absent (inputs) or not wanted (outputs). For batch_norm_act, `batch` is set, the
// style is [C], nothing precedes the norm, and in NHWC the samples are merged into one (n is 1).
// `statistics` are mean and 1 / sqrt(var + eps), [2, N, C]; for batch_norm_act [3, C], with the unbiased variance (for
// the running average) as the third.
#define NORM_FIELDS(FIELD)                                              \
    FIELD(int64_t, n)          /* samples */                            \
    FIELD(int64_t, c)          /* channels */                           \
    FIELD(int64_t, p)          /* positions */                          \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                    \
    FIELD(Dtype, dtype)        /* dtype of x, y and their gradients */  \
    FIELD(bool, batch)         /* batch_norm_act */                     \
    FIELD(double, slope)                                                \
    FIELD(double, gain)                                                 \
    FIELD(double, eps)                                                  \
    FIELD(bool, noise_per_sample)                                       \
    FIELD(bool, strength_per_channel)                                   \
    FIELD(const void*, noise)       /* [N or 1, P] */                   \
    FIELD(const void*, strength)    /* [C or 1] */                      \
    FIELD(const void*, bias)        /* [C] */                           \
    FIELD(const void*, style_scale) /* [N, C] */                        \
    FIELD(const void*, style_bias)  /* [N, C] */                        \
    FIELD(const void*, x)                                               \
    FIELD(void*, statistics) /* output of forward, input of backward */ \
    FIELD(void*, y)                                                     \
    FIELD(const void*, dy)                                              \
    FIELD(void*, dx)                                                    \
    FIELD(void*, dstrength)                                             \
    FIELD(void*, dbias)                                                 \
    FIELD(void*, dstyle_scale)                                          \
    FIELD(void*, dstyle_bias)

struct NormCall {
    FASTGAN_MEMBERS(NORM_FIELDS)

    Activation activation() const {
        if (batch) return Activation::after_norm;
        return !noise && !bias && slope == 1 && gain == 1 ? Activation::none : Activation::before_norm;
    }
    int64_t rows() const { return batch ? c : n * c; }   // number of normalised rows
    int64_t count() const { return batch ? n * p : p; }  // elements in one of them
};

}  // namespace fastgan

FASTGAN_WORKSPACE(NormCall, instance_norm_workspace)
FASTGAN_KERNEL(NormCall, instance_norm_forward, instance_norm_workspace, "instance_norm.forward",
               "batch_norm_act.forward")
FASTGAN_KERNEL(NormCall, instance_norm_backward, instance_norm_workspace, "instance_norm.backward",
               "batch_norm_act.backward")
