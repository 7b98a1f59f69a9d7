// One call of pixel_norm.
#pragma once

#include "common/types.h"

namespace fastgan {

// `order` selects the pass: 0 forward, 1 backward, 2 double backward. Tensors that it does not use are null.
struct PixelNormCall {
    int64_t n, c, p;     // samples, channels, positions
    bool channels_last;  // NHWC, else NCHW
    Dtype dtype;
    int order;
    double eps;
    const void *x, *dy, *gx;  // input, grad of output, cotangent of dx
    void *first, *second;     // order 0: y; order 1: dx; order 2: the gradients of dy and of x
};

}  // namespace fastgan
