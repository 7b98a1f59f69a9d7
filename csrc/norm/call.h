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

#include "common/types.h"

namespace fastgan {

// Where there is an activation, if any.
enum class Around { nothing, before, after };

// One call. Pointers are null where a part is absent (inputs) or not asked for (outputs). With `batch` it is one of
// batch_norm_act: the style is [C], nothing stands before the norm, and in NHWC all positions are those of one sample.
struct InstanceNormCall {
    int64_t n, c, p;  // samples, channels, positions
    bool pixels;      // layout: channels are adjacent (NHWC), else positions are (NCHW)
    bool batch;
    Dtype dtype;      // of x, y and their gradients; all else is float, or double where they are
    double slope, gain, eps;
    bool noise_per_sample, strength_per_channel;

    const void *noise, *strength, *bias;      // [N or 1, P], [C or 1], [C]
    const void *style_scale, *style_bias;     // [N, C]
    const void* x;
    void* y;
    // [2, N, C], mean and inverse: written in the forward pass, read in the backward pass. Of a batch [3, C]: the last is
    // the unbiased variance, for averages of it.
    void* statistics;
    const void* dy;
    void *dx, *dstrength, *dbias, *dstyle_scale, *dstyle_bias;
    void* workspace;

    Around around() const {
        if (batch) return Around::after;
        return !noise && !bias && slope == 1 && gain == 1 ? Around::nothing : Around::before;
    }
    int64_t rows() const { return batch ? c : n * c; }     // that are normalised, each for itself
    int64_t numbers() const { return batch ? n * p : p; }  // of a row
};

}  // namespace fastgan

#ifdef FASTGAN_ARITHMETIC  // the namespace of the including kernels, which provides the functions on values
namespace FASTGAN_ARITHMETIC {

template <class V>
struct Activated {
    V z, slope;  // gain * act(u), and its derivative
};

// The activation, and its derivative.
template <class V>
FASTGAN_INLINE Activated<V> piecewise_linear(V u, V gain, V gain_below) {
    const V slope = u > 0 ? gain : gain_below;
    return {product(u, slope), slope};
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

}  // namespace FASTGAN_ARITHMETIC
#endif
