// One call of few_channels: convolution between an image of many channels and one of few (such as RGB), in NHWC, its
// transpose, and the gradient of its weight.
//
//     gather:   many[n, y, x, c] = sum over i, j, o of few[n, s*y + i - top, s*x + j - left, o] * weight[i, j, o, c]
//     scatter:  few = the transpose of gather, applied to many
//     outer:    weight[i, j, o, c] = sum over n, y, x of few[n, s*y + i - top, s*x + j - left, o] * many[n, y, x, c]
//
// `few` is zero outside its borders. A convolution from few channels is a gather, one to few channels a scatter.
#pragma once

#include <array>

#include "common/types.h"

namespace fastgan {

enum class FewChannelsMap : int { gather, scatter, outer };

constexpr std::array<const char*, 3> names(FewChannelsMap) { return {"gather", "scatter", "outer"}; }

// All tensors have `dtype`, float32 or bfloat16; sums are float.
#define FEW_CHANNELS_FIELDS(FIELD)                                \
    FIELD(FewChannelsMap, map)                                    \
    FIELD(Dtype, dtype)                                           \
    FIELD(int64_t, n)      /* samples */                          \
    FIELD(int64_t, c)      /* channels of `many` */               \
    FIELD(int64_t, height) /* height and width of `many` */       \
    FIELD(int64_t, width)                                         \
    FIELD(int64_t, o) /* channels of `few` */                     \
    FIELD(int64_t, few_height)                                    \
    FIELD(int64_t, few_width)                                     \
    FIELD(int64_t, kh)                                            \
    FIELD(int64_t, kw)                                            \
    FIELD(int64_t, stride)                                        \
    FIELD(int64_t, top)                                           \
    FIELD(int64_t, left)                                          \
    FIELD(bool, flipped)   /* taps are stored in reverse order */ \
    FIELD(int64_t, step_o) /* strides of `weight`, in elements */ \
    FIELD(int64_t, step_tap)                                      \
    FIELD(int64_t, step_c)                                        \
    FIELD(void*, many)                                            \
    FIELD(void*, few)                                             \
    FIELD(void*, weight)

struct FewChannelsCall {
    FASTGAN_MEMBERS(FEW_CHANNELS_FIELDS)
};

}  // namespace fastgan

FASTGAN_CPU_WORKSPACE(FewChannelsCall, few_channels_workspace)
FASTGAN_CPU_KERNEL(FewChannelsCall, few_channels, few_channels_workspace, "few_channels.run")
