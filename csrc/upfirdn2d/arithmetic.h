// The inputs that an output of upfirdn2d reads, shared by the CPU and the CUDA kernels.
//
// Along one axis, the input is padded with `before` zeros in front and `up - 1` zeros after each element. Then
//
//     y[o] = sum_i w[i] * padded[o * down + i],   w the filter as it is correlated
//
// where only every up-th term differs from zero.
#pragma once

#include "upfirdn2d/call.h"

namespace FASTGAN_VALUES {

struct Axis {
    int64_t up, down, before, taps, size;  // size of the input
};

// The terms of an output: taps tap, tap + up, ... times inputs at, at + 1, ..., which all lie within the image.
struct Reach {
    int64_t tap, at, count;
};

FASTGAN_INLINE int64_t floor_div(int64_t a, int64_t b) {  // b > 0
    const int64_t q = a / b;
    return q * b > a ? q - 1 : q;
}

FASTGAN_INLINE Reach reach(const Axis& axis, int64_t o) {
    const int64_t start = o * axis.down - axis.before;
    int64_t at = -floor_div(-start, axis.up);  // first input at or after the start
    int64_t tap = at * axis.up - start;
    int64_t count = tap < axis.taps ? (axis.taps - tap + axis.up - 1) / axis.up : 0;
    if (at < 0) {
        tap -= at * axis.up, count += at, at = 0;
    }
    if (count > axis.size - at) count = axis.size - at;
    return {tap, at, count > 0 ? count : 0};
}

}  // namespace FASTGAN_VALUES
