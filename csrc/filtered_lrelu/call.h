// One call of filtered_lrelu: bias, upsampling, leaky ReLU and clamp, downsampling. The image between the filters, z, has
// (oh - 1) * down + down_size rows and likewise columns.
#pragma once

#include "common/types.h"

namespace fastgan {

#define FILTERED_LRELU_FIELDS(FIELD)                                                                          \
    FIELD(int64_t, n)          /* samples */                                                                  \
    FIELD(int64_t, c)          /* channels */                                                                 \
    FIELD(int64_t, h)          /* rows of x */                                                                \
    FIELD(int64_t, w)          /* columns of x */                                                             \
    FIELD(int64_t, oh)         /* rows of y */                                                                \
    FIELD(int64_t, ow)         /* columns of y */                                                             \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                                                          \
    FIELD(Dtype, dtype)        /* dtype of x and y */                                                         \
    FIELD(int64_t, up)                                                                                        \
    FIELD(int64_t, down)                                                                                      \
    FIELD(int64_t, left) /* padding of x after zero insertion; negative crops */                              \
    FIELD(int64_t, top)                                                                                       \
    FIELD(int64_t, up_size)   /* taps of the filter along an axis */                                          \
    FIELD(bool, up_separable) /* up_taps are [up_size], for both axes; else [up_size, up_size] */             \
    FIELD(int64_t, down_size)                                                                                 \
    FIELD(bool, down_separable)                                                                               \
    FIELD(double, up_gain) /* factor of the upsampled image */                                                \
    FIELD(double, slope)                                                                                      \
    FIELD(double, gain)        /* above 0 */                                                                  \
    FIELD(double, clamp)       /* infinity for none */                                                        \
    FIELD(bool, writes_signs)  /* whether `signs` are an output */                                            \
    FIELD(bool, reads_signs)   /* whether they choose the slopes, instead of the upsampled values */          \
    FIELD(int64_t, signs_left) /* column of the signs of the first column of z; outside of them z is zero */  \
    FIELD(int64_t, signs_top)                                                                                 \
    FIELD(int64_t, signs_h) /* rows of the signs */                                                           \
    FIELD(int64_t, signs_w)                                                                                   \
    FIELD(const void*, up_taps) /* both filters as they are correlated with the image */                      \
    FIELD(const void*, down_taps)                                                                             \
    FIELD(const void*, bias)                                                                                  \
    FIELD(const void*, x)                                                                                     \
    FIELD(void*, y)                                                                                           \
    FIELD(void*, signs) /* [N, C / 16, rows, columns] of 32 bits: 16 channels below zero, the same clamped */ \
    FIELD(void*, dbias) /* [C], sums of y over samples and places; of filtered_lrelu.backward alone */

struct FilteredLreluCall {
    FASTGAN_MEMBERS(FILTERED_LRELU_FIELDS)
};

}  // namespace fastgan

FASTGAN_KERNEL(FilteredLreluCall, filtered_lrelu_forward, no_workspace, "filtered_lrelu.forward")
FASTGAN_CPU_KERNEL(FilteredLreluCall, filtered_lrelu_backward, no_workspace, "filtered_lrelu.backward")
