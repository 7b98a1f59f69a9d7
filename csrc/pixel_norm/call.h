// One call of pixel_norm.
#pragma once

#include "common/types.h"

namespace fastgan {

// `order` selects the pass: 0 forward, 1 backward, 2 double backward. Tensors that it does not use are null.
#define PIXEL_NORM_FIELDS(FIELD)                                        \
    FIELD(int64_t, n)          /* samples */                            \
    FIELD(int64_t, c)          /* channels */                           \
    FIELD(int64_t, p)          /* positions */                          \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                    \
    FIELD(Dtype, dtype)                                                 \
    FIELD(int64_t, order)                                               \
    FIELD(double, eps)                                                  \
    FIELD(const void*, x)                                               \
    FIELD(void*, first)  /* order 0: y; 1: dx; 2: the gradient of dy */ \
    FIELD(void*, second) /* order 2: the gradient of x */               \
    FIELD(const void*, dy)                                              \
    FIELD(const void*, gx) /* the gradient of dx */

struct PixelNormCall {
    FASTGAN_MEMBERS(PIXEL_NORM_FIELDS)
};

}  // namespace fastgan

FASTGAN_KERNEL(PixelNormCall, pixel_norm, no_workspace, "pixel_norm.run")
