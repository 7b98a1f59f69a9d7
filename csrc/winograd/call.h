// One call of winograd: a 3x3 convolution of stride 1, in NHWC and fp32, by the algorithm F(4x4, 3x3) of Lavin and Gray
// 2016, "Fast Algorithms for Convolutional Neural Networks".
//
//     y[n, i, j, o] = sum over u, v, c of x[n, i + u - padding, j + v - padding, c] * w[o, c, u, v]
//
// `x` is zero outside its borders. `weight` is w transformed, [36, panels of 32 outputs, inputs, 32], padded with zeros.
#pragma once

#include "common/types.h"

namespace fastgan {

#define WINOGRAD_FIELDS(FIELD)            \
    FIELD(int64_t, n)      /* samples */  \
    FIELD(int64_t, height) /* of x */     \
    FIELD(int64_t, width)                 \
    FIELD(int64_t, inputs) /* channels */ \
    FIELD(int64_t, outputs)               \
    FIELD(int64_t, padding)               \
    FIELD(void*, y)                       \
    FIELD(const void*, x)                 \
    FIELD(const void*, weight)

struct WinogradCall {
    FASTGAN_MEMBERS(WINOGRAD_FIELDS)
};

}  // namespace fastgan

FASTGAN_CPU_WORKSPACE(WinogradCall, winograd_workspace)
FASTGAN_CPU_KERNEL(WinogradCall, winograd, winograd_workspace, "winograd.run")
