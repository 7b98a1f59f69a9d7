// Operations on samples, each a row of numbers however its dimensions lie: squared_norm and lerp_samples.
//
//     squared_norm:  s[n] = sum of x[n]^2,                dx[n] = 2 g[n] x[n]
//     lerp_samples:  y[n] = a[n] + t[n] * (b[n] - a[n]),  da[n] = (1 - t[n]) dy[n],  db[n] = t[n] dy[n]
#pragma once

#include "common/types.h"

namespace fastgan {

enum class SampleMap { scale, lerp, split };  // dx of squared_norm; y of lerp_samples; its da and db

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

#ifdef FASTGAN_ARITHMETIC
namespace FASTGAN_ARITHMETIC {

using fastgan::SampleMap;

template <class V>
struct Mapped {
    V first, second;
};

template <SampleMap MAP, class V>
FASTGAN_INLINE Mapped<V> mapped(V a, V b, V weight) {
    if constexpr (MAP == SampleMap::scale) {
        return {(weight + weight) * a, a};
    } else if constexpr (MAP == SampleMap::lerp) {
        return {a + weight * (b - a), a};
    } else {
        return {a - weight * a, weight * a};
    }
}

}  // namespace FASTGAN_ARITHMETIC
#endif
