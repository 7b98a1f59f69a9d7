// The functions on single numbers that the arithmetic.h headers need (simd.h has them for vectors).
#pragma once

#include <cmath>

#include "common/gpu_plan.h"

// Names for the arithmetic.h headers, which CPU and CUDA sources share.
#define FASTGAN_VALUES gpu_values
#define FASTGAN_INLINE __device__ __forceinline__

namespace gpu_values {

template <class V, class S>
FASTGAN_INLINE V broadcast(S value) {
    return V(value);
}
template <class V>
FASTGAN_INLINE V minimum(V a, V b) {
    return a < b ? a : b;
}
template <class V>
FASTGAN_INLINE V maximum(V a, V b) {
    return a > b ? a : b;
}
template <class V>
FASTGAN_INLINE V absolute(V a) {
    return a < 0 ? -a : a;
}
template <class V>
FASTGAN_INLINE V rounded_product(V a, V b) {
    return gpu::rounded_product(a, b);
}
FASTGAN_INLINE float reciprocal_sqrt(float x) { return 1.0f / sqrtf(x); }
FASTGAN_INLINE double reciprocal_sqrt(double x) { return 1.0 / sqrt(x); }
FASTGAN_INLINE float exponential(float x) { return expf(x); }
FASTGAN_INLINE double exponential(double x) { return exp(x); }
FASTGAN_INLINE float log_one_plus(float x) { return log1pf(x); }
FASTGAN_INLINE double log_one_plus(double x) { return log1p(x); }
FASTGAN_INLINE float hyperbolic_tangent(float x) { return tanhf(x); }
FASTGAN_INLINE double hyperbolic_tangent(double x) { return tanh(x); }

}  // namespace gpu_values
