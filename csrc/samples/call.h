// One call of squared_norm or lerp_samples.
#pragma once

#include "common/types.h"

namespace fastgan {

// One call. Pointers are null where a tensor is absent, or not asked for.
struct SamplesCall {
    int64_t n, size;  // samples, numbers of each
    Dtype dtype;      // of all rows; what there is one of a sample is float, or double where they are
    const void *a, *b;       // rows that come in: x; a and b; dy
    const void* weight;      // one a sample: g; t
    void *first, *second;    // rows that go out
    void *sums, *workspace;  // of squared_norm
};

}  // namespace fastgan
