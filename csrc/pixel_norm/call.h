// One call of pixel_norm.
#pragma once

#include "common/types.h"

namespace fastgan {

// One call. Which tensors are there depends on the order: 0 is the forward pass, 1 the backward pass, 2 that of it.
struct PixelNormCall {
    int64_t n, c, p;  // samples, channels, positions
    bool pixels;      // layout: channels are adjacent (NHWC), else positions are (NCHW)
    Dtype dtype;
    int order;
    double eps;
    const void *x, *dy, *gx;  // input, gradient of the output, cotangent of the input's gradient
    void *first, *second;     // order 0: y; 1: dx; 2: the gradients of dy and of x
};

}  // namespace fastgan
