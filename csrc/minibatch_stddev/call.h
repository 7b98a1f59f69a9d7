// One call of minibatch_stddev.
#pragma once

#include "common/types.h"

namespace fastgan {

// One call. Which tensors are there depends on the order: 0 is the forward pass, 1 the backward pass, 2 that of it.
struct MinibatchStddevCall {
    int64_t n, c, p;  // samples, channels, positions
    bool pixels;      // layout: channels are adjacent (NHWC), else positions are (NCHW)
    Dtype dtype;
    int64_t size, groups, features;  // samples of a group; groups; maps appended
    double share;  // of the gradient of a map, what each element of the feature gets, times v / s
    int order;
    const void *x, *dy, *gx;  // input; gradient of the output, with that of the maps; cotangent of the input's gradient
    void *appended, *dx;      // order 0: y; 1: dx; 2: the gradients of dy (in `appended`) and of x
    void* workspace;

    int64_t sums() const { return groups * features; }
};

}  // namespace fastgan
