// instance_norm, which adain and style_epilogue are made of, and batch_norm_act: the arithmetic, shared by the CPU and the
// CUDA kernels.
//
//     u = x + strength * noise + bias,   z = u * (u > 0 ? gain : gain * slope)
//     y = style_scale * (z - mean) * inverse + style_bias,   inverse = 1 / sqrt(var + eps)
//
// With T1 = sum(dy) and T2 = sum(dy * (z - mean)) over the P positions of a channel of a sample:
//
//     dstyle_bias = T1,   dstyle_scale = inverse * T2
//     dz = style_scale * inverse * (dy - T1 / P - (z - mean) * inverse^2 * T2 / P)
//
// A mean in single precision is rounded: by up to 5e-4 near 1e4. So T3 = sum(z - mean) is not zero, and takes part: T2 is
// less by T1 * T3 / P, and z - mean by T3 / P.
//
//     dx = dz * (u > 0 ? gain : gain * slope),   dbias = sum(dx),   dstrength = sum(dx * noise)
//
// batch_norm_act is the same with other sums and in another order: mean and variance are those of a channel in all samples
// together, z is x, and the activation comes last:
//
//     v = scale * (x - mean) * inverse + bias,   y = v * (v > 0 ? gain : gain * slope)
//
// Its gradients are those above of dv = dy * (v > 0 ? gain : gain * slope), with N * P for P and a style of [C].
//
// Neither z, u nor v is stored: both passes over x, and those of the backward, make them anew. A value is a vector of the
// CPU's instruction set, or one number on a GPU: the lines are the same.
#pragma once

#include "norm/call.h"

namespace FASTGAN_VALUES {

template <class V>
struct Activated {
    V z, slope;  // gain * act(u), and its derivative
};

// The activation, and its derivative.
template <class V>
FASTGAN_INLINE Activated<V> piecewise_linear(V u, V gain, V gain_below) {
    const V slope = u > 0 ? gain : gain_below;
    return {rounded_product(u, slope), slope};
}

// What stands before the norm. PLAIN: nothing. `product` is rounded, never contracted with the subtraction that follows
// in one pass and not in another: all passes must see the same z, or a plane without variance would show the difference,
// magnified by 1 / sqrt(eps).
template <bool PLAIN, class V>
FASTGAN_INLINE Activated<V> activated(V x, V strength, V noise, V bias, V gain, V gain_below) {
    if constexpr (PLAIN) {
        return {x, gain};
    } else {
        return piecewise_linear(x + (strength * noise + bias), gain, gain_below);
    }
}

// `factor` is style_scale * inverse.
template <class V>
FASTGAN_INLINE V normalised(V z, V mean, V factor, V style_bias) {
    return (z - mean) * factor + style_bias;
}

// dz, the gradient before the norm. `level` is T1 / P, `tilt` is inverse^2 * T2 / P.
template <class V>
FASTGAN_INLINE V gradient_before(V dy, V z, V mean, V factor, V level, V tilt) {
    return factor * (dy - level - (z - mean) * tilt);
}

}  // namespace FASTGAN_VALUES
