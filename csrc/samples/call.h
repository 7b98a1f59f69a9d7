// One call of squared_norm or lerp_samples.
#pragma once

#include "common/types.h"

namespace fastgan {

// Pointers are null for tensors that are absent or not wanted.
struct SamplesCall {
    int64_t n, size;         // samples, elements of each
    Dtype dtype;             // of a, b, first and second
    const void *a, *b;       // [N, size] inputs: x; a and b; dy
    const void* weight;      // [N]: grad of squared_norm; t of lerp_samples
    void *first, *second;    // [N, size] outputs
    void *sums, *workspace;  // squared_norm: [N] output; partial sums
};

}  // namespace fastgan
