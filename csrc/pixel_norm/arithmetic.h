// The arithmetic of pixel_norm, shared by the CPU and the CUDA kernels.
//
//     y = r * x,   r = 1 / sqrt(mean over channels of x^2 + eps), one r per position
//
// In every pass (order 0 forward, 1 backward, 2 double backward) the results are linear in the inputs x, dy and gx. The
// factors follow from the inner products of the inputs over channels. A value V is a SIMD vector on the CPU and a
// number on the GPU.
#pragma once

#include "pixel_norm/call.h"

namespace FASTGAN_VALUES {

template <class V>
struct Products {
    V xx, xd, xg, dg;  // inner products of x, dy and gx
};
template <int ORDER>
constexpr int PRODUCTS = ORDER == 0 ? 1 : 2 * ORDER;  // number of products that a pass uses

template <int ORDER, class V>
FASTGAN_INLINE void add_products(Products<V>& sums, V x, V dy, V gx) {
    sums.xx += x * x;
    if constexpr (ORDER >= 1) sums.xd += x * dy;
    if constexpr (ORDER == 2) {
        sums.xg += x * gx;
        sums.dg += dy * gx;
    }
}

//     order 0:  y = r * x
//     order 1:  dx = r * dy + k * x
//     order 2:  gradient of dy = r * gx + k * x,   gradient of x = k * dy + b * gx + a * x
template <class V>
struct Factors {
    V r, k, a, b;
};

// With q = -r^3 / C = dr/dx / x:  dx = r dy + q <x, dy> x. This map is symmetric, so the gradient of dy is the same map
// of gx. The gradient of x is that of <gx, dx> = r <dy, gx> + q <x, dy> <x, gx>, where dq/dx = -3 q r^2 / C * x.
template <int ORDER, class V>
FASTGAN_INLINE Factors<V> factors(const Products<V>& sums, V inverse_c, V eps) {
    Factors<V> f{};
    f.r = reciprocal_sqrt(sums.xx * inverse_c + eps);
    if constexpr (ORDER >= 1) {
        const V share = f.r * f.r * inverse_c, q = -(f.r * share);
        f.k = q * (ORDER == 1 ? sums.xd : sums.xg);
        if constexpr (ORDER == 2) {
            const V both = share * sums.xd * sums.xg;
            f.a = q * (sums.dg - (both + both + both));
            f.b = q * sums.xd;
        }
    }
    return f;
}

template <class V>
struct Results {
    V first, second;
};

template <int ORDER, class V>
FASTGAN_INLINE Results<V> results(const Factors<V>& f, V x, V dy, V gx) {
    if constexpr (ORDER == 0) {
        return {f.r * x, x};
    } else if constexpr (ORDER == 1) {
        return {f.r * dy + f.k * x, x};
    } else {
        return {f.r * gx + f.k * x, f.k * dy + (f.b * gx + f.a * x)};
    }
}

}  // namespace FASTGAN_VALUES
