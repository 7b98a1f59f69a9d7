// One call of upfirdn2d.
#pragma once

#include "common/types.h"

namespace fastgan {

#define UPFIRDN2D_FIELDS(FIELD)                                                                               \
    FIELD(int64_t, n)          /* samples */                                                                  \
    FIELD(int64_t, c)          /* channels */                                                                 \
    FIELD(int64_t, h)          /* rows of x */                                                                \
    FIELD(int64_t, w)          /* columns of x */                                                             \
    FIELD(int64_t, oh)         /* rows of y */                                                                \
    FIELD(int64_t, ow)         /* columns of y */                                                             \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                                                          \
    FIELD(Dtype, dtype)        /* dtype of x and y */                                                         \
    FIELD(int64_t, up_x)                                                                                      \
    FIELD(int64_t, up_y)                                                                                      \
    FIELD(int64_t, down_x)                                                                                    \
    FIELD(int64_t, down_y)                                                                                    \
    FIELD(int64_t, left) /* padding of the upsampled image; negative crops */                                 \
    FIELD(int64_t, top)                                                                                       \
    FIELD(int64_t, kh) /* size of the filter */                                                               \
    FIELD(int64_t, kw)                                                                                        \
    FIELD(bool, separable) /* taps are [kw], for both axes; else [kh, kw] */                                  \
    FIELD(double, gain)                                                                                       \
    FIELD(bool, flip) /* correlate with the filter as it is, else with the filter reversed along both axes */ \
    FIELD(const void*, taps)                                                                                  \
    FIELD(const void*, x)                                                                                     \
    FIELD(void*, y)                                                                                           \
    FIELD(const void*, addend) /* added to the result */

struct Upfirdn2dCall {
    FASTGAN_MEMBERS(UPFIRDN2D_FIELDS)
};

}  // namespace fastgan

FASTGAN_KERNEL(Upfirdn2dCall, upfirdn2d_forward, no_workspace, "upfirdn2d.forward")
