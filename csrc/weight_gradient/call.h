// One call of weight_gradient: the gradient of a convolution's weight, [A, kh, kw, B], from two NHWC images.
//
//     dw[a, i, j, b] = sum over n, y, x of small[n, y, x, a] * large[n, stride * y + i - top, stride * x + j - left, b]
//
// `large` is zero outside its borders. For a convolution, `small` is the gradient of the output and `large` the input;
// for a transposed convolution, `small` is the input and `large` the gradient of the output.
#pragma once

#include "common/types.h"

namespace fastgan {

// All tensors have `dtype`, float32 or bfloat16; sums are float.
#define WEIGHT_GRADIENT_FIELDS(FIELD)                        \
    FIELD(Dtype, dtype)                                      \
    FIELD(int64_t, n)      /* samples */                     \
    FIELD(int64_t, a)      /* channels of `small` */         \
    FIELD(int64_t, height) /* height and width of `small` */ \
    FIELD(int64_t, width)                                    \
    FIELD(int64_t, b) /* channels of `large` */              \
    FIELD(int64_t, large_height)                             \
    FIELD(int64_t, large_width)                              \
    FIELD(int64_t, kh)                                       \
    FIELD(int64_t, kw)                                       \
    FIELD(int64_t, stride)                                   \
    FIELD(int64_t, top)                                      \
    FIELD(int64_t, left)                                     \
    FIELD(void*, dw)                                         \
    FIELD(const void*, small)                                \
    FIELD(const void*, large)

struct WeightGradientCall {
    FASTGAN_MEMBERS(WEIGHT_GRADIENT_FIELDS)
};

}  // namespace fastgan

FASTGAN_CPU_WORKSPACE(WeightGradientCall, weight_gradient_workspace)
FASTGAN_CPU_KERNEL(WeightGradientCall, weight_gradient, weight_gradient_workspace, "weight_gradient.run")
