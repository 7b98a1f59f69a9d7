// One call of minibatch_stddev.
#pragma once

#include "common/types.h"

namespace fastgan {

// `order` selects the pass: 0 forward, 1 backward, 2 double backward. Tensors that it does not use are null.
struct MinibatchStddevCall {
    int64_t n, c, p;     // samples, channels, positions
    bool channels_last;  // NHWC, else NCHW
    Dtype dtype;
    int64_t size, groups, features;  // samples in a group, number of groups, maps appended
    double share;                    // 1 / (size * elements of a feature in a sample): grad of a map per element
    int order;
    const void *x, *dy, *gx;  // input, grad of output (maps included), cotangent of dx
    void *appended, *dx;      // order 0: y; order 1: dx; order 2: the gradients of dy (in `appended`) and of x
    void* workspace;

    int64_t sums() const { return groups * features; }
};

}  // namespace fastgan
