// One call of upfirdn2d.
#pragma once

#include "common/types.h"

namespace fastgan {

struct Upfirdn2dCall {
    int64_t n, c, h, w, oh, ow;  // samples, channels, rows and columns of the input and of the output
    bool pixels;                 // layout: channels are adjacent (NHWC), else positions are (NCHW)
    Dtype dtype;                 // of x and y; the taps are float, or double where they are
    int64_t up_x, up_y, down_x, down_y;
    int64_t left, top;  // zeros in front, of the upsampled image; negative: it is cropped
    int64_t kh, kw;     // size of the filter
    bool separable;     // taps are [kw], for both axes; else [kh, kw]
    bool flip;          // the filter is correlated as it is, else turned around first
    double gain;
    const void *taps, *x;
    void* y;
};

}  // namespace fastgan
