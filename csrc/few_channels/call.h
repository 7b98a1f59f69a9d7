// few_channels: the three maps of a convolution between an image of many channels, `wide`, and one of few, `thin`; NHWC.
//
//     gather:   wide[n, y, x, c] = sum over i, j, o of thin[n, s*y + i - top, s*x + j - left, o] * weight[i, j, o, c]
//     scatter:  thin is what the transposed map makes of wide
//     outer:    weight is what is summed over n, y, x of the products of thin and wide
//
// `thin` is zero outside of itself. A convolution of few channels gathers, one to few scatters.
#pragma once

#include "common/types.h"

namespace fastgan {

enum class FewChannelsMap : int { gather, scatter, outer };

// One call. All numbers are of `dtype`, float32 or bfloat16; sums are of float.
struct FewChannelsCall {
    Dtype dtype;
    FewChannelsMap map;
    int64_t n, c, height, width;         // of `wide`
    int64_t o, thin_height, thin_width;  // of `thin`
    int64_t kh, kw, stride, top, left;
    bool turned;                         // whether the last tap is the first that `weight` has
    int64_t step_o, step_tap, step_c;    // elements of `weight` from one to the next
    void *wide, *thin, *weight, *workspace;
};

}  // namespace fastgan
