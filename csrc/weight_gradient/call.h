// weight_gradient: the gradient of a convolution's weight, [A, kh, kw, B], of the two images that it connects, in NHWC.
//
//     dw[a, i, j, b] = sum over n, y, x of small[n, y, x, a] * large[n, stride * y + i - top, stride * x + j - left, b]
//
// where `large` is zero outside of itself. Of a convolution `small` is the gradient of its output and `large` its input;
// of a transposed one they are its input and the gradient of its output.
#pragma once

#include "common/types.h"

namespace fastgan {

// One call. All numbers are of `dtype`, float32 or bfloat16; sums are of float.
struct WeightGradientCall {
    Dtype dtype;
    int64_t n, a, b;                   // samples, channels of `small`, channels of `large`
    int64_t height, width;             // of `small`
    int64_t large_height, large_width;
    int64_t kh, kw, stride, top, left;
    const void *small, *large;
    void *dw, *workspace;
};

}  // namespace fastgan
