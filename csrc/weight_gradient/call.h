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
struct WeightGradientCall {
    Dtype dtype;
    int64_t n, a, b;        // samples, channels of `small`, channels of `large`
    int64_t height, width;  // of `small`
    int64_t large_height, large_width;
    int64_t kh, kw, stride, top, left;
    const void *small, *large;
    void *dw, *workspace;
};

}  // namespace fastgan
