// One call of minibatch_stddev.
#pragma once

#include "common/types.h"

namespace fastgan {

// `order` selects the pass: 0 forward, 1 backward, 2 double backward. Tensors that it does not use are null.
#define MINIBATCH_STDDEV_FIELDS(FIELD)                                            \
    FIELD(int64_t, n)          /* samples */                                      \
    FIELD(int64_t, c)          /* channels */                                     \
    FIELD(int64_t, p)          /* positions */                                    \
    FIELD(bool, channels_last) /* NHWC, else NCHW */                              \
    FIELD(Dtype, dtype)                                                           \
    FIELD(int64_t, order)                                                         \
    FIELD(int64_t, size) /* samples of a group */                                 \
    FIELD(int64_t, groups)                                                        \
    FIELD(int64_t, features) /* maps appended */                                  \
    FIELD(double, share)     /* 1 / (size * elements of a feature in a sample) */ \
    FIELD(const void*, x)                                                         \
    FIELD(void*, appended) /* order 0: y; 2: the gradient of dy */                \
    FIELD(void*, dx)       /* order 1: dx; 2: the gradient of x */                \
    FIELD(const void*, dy) /* maps included */                                    \
    FIELD(const void*, gx) /* the gradient of dx */

struct MinibatchStddevCall {
    FASTGAN_MEMBERS(MINIBATCH_STDDEV_FIELDS)

    int64_t sums() const { return groups * features; }
};

}  // namespace fastgan

FASTGAN_WORKSPACE(MinibatchStddevCall, minibatch_stddev_workspace)
FASTGAN_KERNEL(MinibatchStddevCall, minibatch_stddev, minibatch_stddev_workspace, "minibatch_stddev.run")
