// One call of upfirdn2d.
#pragma once

#include "common/types.h"

namespace fastgan {

struct Upfirdn2dCall {
    int64_t n, c, h, w, oh, ow;  // samples, channels, rows and columns of the input and of the output
    bool channels_last;          // NHWC, else NCHW
    Dtype dtype;                 // of x and y
    int64_t up_x, up_y, down_x, down_y;
    int64_t left, top;  // padding of the upsampled image; negative crops
    int64_t kh, kw;     // size of the filter
    bool separable;     // taps are [kw], for both axes; else [kh, kw]
    bool flip;          // correlate with the filter as it is, else with the filter reversed along both axes
    double gain;
    const void *taps, *x;
    void* y;
};

}  // namespace fastgan
