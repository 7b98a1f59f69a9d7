// The arithmetic of instance_norm (the basis of adain and style_epilogue) and batch_norm_act, shared by the CPU and the
// CUDA kernels. A value V is a SIMD vector on the CPU and a single number on the GPU.
//
//     u = x + strength * noise + bias,   z = u * (u > 0 ? gain : gain * slope)
//     y = style_scale * (z - mean) * inverse + style_bias,   inverse = 1 / sqrt(var + eps)
//
// With T1 = sum(dy) and T2 = sum(dy * (z - mean)) over the P positions of a channel of a sample:
//
//     dstyle_bias = T1,   dstyle_scale = inverse * T2
//     dz = style_scale * inverse * (dy - T1 / P - (z - mean) * inverse^2 * T2 / P)
//     dx = dz * (u > 0 ? gain : gain * slope),   dbias = sum(dx),   dstrength = sum(dx * noise)
//
// A mean in single precision has a rounding error (up to 5e-4 near 1e4), so T3 = sum(z - mean) is not zero. It is
// corrected for: T2 decreases by T1 * T3 / P, and z - mean by T3 / P.
//
// batch_norm_act has the activation after the norm: z is x, and mean and variance are those of a channel in all
// samples.
//
//     v = scale * (x - mean) * inverse + bias,   y = v * (v > 0 ? gain : gain * slope)
//
// Its gradients are the ones above for dv = dy * (v > 0 ? gain : gain * slope), with N * P for P and a style of [C].
//
// Neither z, u nor v is stored: each pass computes them again from x.
#pragma once

#include "norm/call.h"

namespace FASTGAN_VALUES {

template <class V>
struct Activated {
    V z, slope;  // gain * act(u), and its derivative
};

template <class V>
FASTGAN_INLINE Activated<V> piecewise_linear(V u, V gain, V gain_below) {
    const V slope = u > 0 ? gain : gain_below;
    return {rounded_product(u, slope), slope};
}

// The input of the norm, z. PLAIN: there is nothing before the norm. All passes must compute the same z: a difference
// would be multiplied by 1 / sqrt(eps) in a channel without variance. So the product is rounded; the compiler must not
// contract it with the following subtraction in some passes only.
template <bool PLAIN, class V>
FASTGAN_INLINE Activated<V> activated(V x, V strength, V noise, V bias, V gain, V gain_below) {
    if constexpr (PLAIN) {
        return {x, gain};
    } else {
        return piecewise_linear(x + (strength * noise + bias), gain, gain_below);
    }
}

// The output of the norm; `factor` is style_scale * inverse.
template <class V>
FASTGAN_INLINE V normalised(V z, V mean, V factor, V style_bias) {
    return (z - mean) * factor + style_bias;
}

// dz, the gradient of the norm's input. `grad_mean` is T1 / P, `grad_slope` is inverse^2 * T2 / P: the terms of dy that
// are constant and linear in z.
template <class V>
FASTGAN_INLINE V input_gradient(V dy, V z, V mean, V factor, V grad_mean, V grad_slope) {
    return factor * (dy - grad_mean - (z - mean) * grad_slope);
}

}  // namespace FASTGAN_VALUES
