// One call of few_channels: convolution between an image of many channels and one of few (such as RGB), in NHWC, its
// transpose, and the gradient of its weight.
//
//     gather:   many[n, y, x, c] = sum over i, j, o of few[n, s*y + i - top, s*x + j - left, o] * weight[i, j, o, c]
//     scatter:  few = the transpose of gather, applied to many
//     outer:    weight[i, j, o, c] = sum over n, y, x of few[n, s*y + i - top, s*x + j - left, o] * many[n, y, x, c]
//
// `few` is zero outside its borders. A convolution from few channels is a gather, one to few channels a scatter.
#pragma once

#include "common/types.h"

namespace fastgan {

enum class FewChannelsMap : int { gather, scatter, outer };

// All tensors have `dtype`, float32 or bfloat16; sums are float.
struct FewChannelsCall {
    Dtype dtype;
    FewChannelsMap map;
    int64_t n, c, height, width;       // of `many`
    int64_t o, few_height, few_width;  // of `few`
    int64_t kh, kw, stride, top, left;
    bool flipped;                      // taps are stored in reverse order
    int64_t step_o, step_tap, step_c;  // strides of `weight`, in elements
    void *many, *few, *weight, *workspace;
};

}  // namespace fastgan
