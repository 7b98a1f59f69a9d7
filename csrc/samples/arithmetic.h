// The arithmetic of squared_norm and lerp_samples on samples flattened to rows, shared by the CPU and the CUDA kernels.
//
//     squared_norm:  s[n] = sum of x[n]^2,                dx[n] = 2 g[n] x[n]
//     lerp_samples:  y[n] = a[n] + t[n] * (b[n] - a[n]),  da[n] = (1 - t[n]) dy[n],  db[n] = t[n] dy[n]
#pragma once

#include "samples/call.h"

namespace FASTGAN_VALUES {

enum class SampleMap { scale, lerp, split };  // dx of squared_norm; y of lerp_samples; da and db of lerp_samples

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

}  // namespace FASTGAN_VALUES
