// upfirdn2d: what a call is, and which inputs an output reads, shared by the CPU and the CUDA kernels.
//
// Along one axis, with the image spread out by zeros (`up`) and `before` zeros put in front of it,
//     y[o] = sum_i w[i] * spread[o * down - before + i],   w the filter as it is correlated
// and only every up-th term is not zero.
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

#ifdef FASTGAN_ARITHMETIC  // the namespace of the including kernels
namespace FASTGAN_ARITHMETIC {

struct Axis {
    int64_t up, down, before, taps, size;  // size of the input
};

// The taps tap, tap + up, ... meet the inputs at, at + 1, ...; all of these are within the image.
struct Reach {
    int64_t tap, at, count;
};

FASTGAN_INLINE int64_t floor_divided(int64_t a, int64_t b) {  // b > 0
    const int64_t q = a / b;
    return q * b > a ? q - 1 : q;
}

FASTGAN_INLINE Reach reach(const Axis& axis, int64_t o) {
    const int64_t start = o * axis.down - axis.before;
    int64_t at = -floor_divided(-start, axis.up);  // the first input at or after the start
    int64_t tap = at * axis.up - start;
    int64_t count = tap < axis.taps ? (axis.taps - tap + axis.up - 1) / axis.up : 0;
    if (at < 0) {
        tap -= at * axis.up, count += at, at = 0;
    }
    if (count > axis.size - at) count = axis.size - at;
    return {tap, at, count > 0 ? count : 0};
}

}  // namespace FASTGAN_ARITHMETIC
#endif
