// One call of squared_norm or lerp_samples.
#pragma once

#include "common/types.h"

namespace fastgan {

// Pointers are null for tensors that are absent or not wanted.
#define SAMPLES_FIELDS(FIELD)                                                     \
    FIELD(int64_t, n)     /* samples */                                           \
    FIELD(int64_t, size)  /* elements of a sample */                              \
    FIELD(Dtype, dtype)   /* dtype of a, b, first and second */                   \
    FIELD(const void*, a) /* [N, size], like b, first and second */               \
    FIELD(const void*, b)                                                         \
    FIELD(const void*, weight) /* [N]: grad of squared_norm; t of lerp_samples */ \
    FIELD(void*, first)                                                           \
    FIELD(void*, second)                                                          \
    FIELD(void*, sums) /* [N]: the output of squared_norm */

struct SamplesCall {
    FASTGAN_MEMBERS(SAMPLES_FIELDS)
};

}  // namespace fastgan

FASTGAN_WORKSPACE(SamplesCall, squared_norm_workspace)
FASTGAN_KERNEL(SamplesCall, squared_norm_forward, squared_norm_workspace, "squared_norm.forward")
FASTGAN_KERNEL(SamplesCall, squared_norm_backward, no_workspace, "squared_norm.backward")
FASTGAN_KERNEL(SamplesCall, lerp_samples_forward, no_workspace, "lerp_samples.forward")
FASTGAN_KERNEL(SamplesCall, lerp_samples_backward, no_workspace, "lerp_samples.backward")
