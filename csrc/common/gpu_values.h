// What CUDA sources share beyond gpu.h: the functions on one number that the arithmetic headers are written in, and the
// sizes that follow from a dtype.
#pragma once

#include <cmath>

#include "common/gpu.h"
#include "common/types.h"

// For the arithmetic.h of an operation, which the CPU sources include as well.
#define FASTGAN_VALUES gpu_values
#define FASTGAN_INLINE __device__ __forceinline__

namespace gpu_values {  // the functions on one number that the shared arithmetic is written in

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

namespace fastgan::cuda {

// The type of arithmetic for an activation type.
template <class T>
struct ArithmeticOf {
    using type = float;
};
template <>
struct ArithmeticOf<double> {
    using type = double;
};

// Elements of a 16-byte access.
inline int elements_of_16_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : dtype == Dtype::float64 ? 2 : 8; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace fastgan::cuda
