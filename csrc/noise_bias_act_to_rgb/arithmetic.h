// The arithmetic of noise_bias_act_to_rgb, shared by the CPU and the CUDA kernels.
//
//     u = scale * x + noise + bias,   z = clamp(gain * lrelu(u)),   y = z * post,   rgb[k] = sum over c of to_rgb[k] * z
//
// `noise` is the noise of a position times its strength. A value V is a SIMD vector on the CPU and a single number on
// the GPU. K is the number of image channels.
#pragma once

#include "noise_bias_act/arithmetic.h"
#include "noise_bias_act_to_rgb/call.h"

namespace FASTGAN_VALUES {

// The small tensors of a channel; also their cotangents, and the sums over positions that are their gradients.
template <int K, class V>
struct Channel {
    V bias, scale, post, to_rgb[K];
};
template <int K>
constexpr int NUMBERS = 3 + K;  // numbers in a Channel

// The `which`-th number of a Channel, in the order of its members.
template <int K, class V>
FASTGAN_INLINE V& number(Channel<K, V>& channel, int which) {
    return which == 0   ? channel.bias
           : which == 1 ? channel.scale
           : which == 2 ? channel.post
                        : channel.to_rgb[which - 3];
}

template <int K, class V>
FASTGAN_INLINE V to_image_channels(const V (&weight)[K], const V (&pixel)[K]) {
    V total = weight[0] * pixel[0];
    for (int k = 1; k < K; ++k) total += weight[k] * pixel[k];
    return total;
}

// Returns y, and adds a channel's part to the pixel.
template <int K, class V>
FASTGAN_INLINE V forward(V x, V noise, const Channel<K, V>& s, Shape<V> shape, V (&rgb)[K]) {
    const V u = s.scale * x + (noise + s.bias);
    const V z = clamped(curve<Act::piecewise_linear>(u, shape), shape).value;
    for (int k = 0; k < K; ++k) rgb[k] += s.to_rgb[k] * z;
    return z * s.post;
}

template <class V>
struct Gradients {
    V dx, du;  // du: the gradient of u, whose products with the noise add up to the gradient of strength
};

//     dz = dy * post + sum over k of drgb[k] * to_rgb[k],   du = dz * f'(u),   dx = scale * du
template <int K, class V>
FASTGAN_INLINE Gradients<V> backward(V dy, V x, V noise, const V (&drgb)[K], const Channel<K, V>& s, Shape<V> shape,
                                     Channel<K, V>& sums) {
    const V u = s.scale * x + (noise + s.bias);
    const Curve<V> f = clamped(curve<Act::piecewise_linear>(u, shape), shape);
    const V du = (dy * s.post + to_image_channels(s.to_rgb, drgb)) * f.first;
    sums.bias += du;
    sums.scale += du * x;
    sums.post += dy * f.value;
    for (int k = 0; k < K; ++k) sums.to_rgb[k] += drgb[k] * f.value;
    return {s.scale * du, du};
}

template <class V>
struct SecondGradients {
    V ddy, dx, du;
};

// Double backward. The inner product of the cotangents g with backward's results is, per element,
//
//     dz * f' * v + gz * f,   v = scale * gx + gbias + gstrength * noise + gscale * x,
//     gz = dy * gpost + sum over k of drgb[k] * gto_rgb[k]
//
// from which the gradients of dy, drgb, x and the small tensors follow. f'' is zero. `gnoise` is gstrength * noise.
template <int K, class V>
FASTGAN_INLINE SecondGradients<V> double_backward(V dy, V x, V gx, V noise, V gnoise, const V (&drgb)[K],
                                                  const Channel<K, V>& s, const Channel<K, V>& g, Shape<V> shape,
                                                  Channel<K, V>& sums, V (&ddrgb)[K]) {
    const V u = s.scale * x + (noise + s.bias);
    const Curve<V> f = clamped(curve<Act::piecewise_linear>(u, shape), shape);
    const V v = s.scale * gx + (gnoise + g.bias) + unless_absent(g.scale, x);
    const V moved = f.first * v;
    const V du = (dy * s.post + to_image_channels(s.to_rgb, drgb)) * f.first;
    const V q = (dy * g.post + to_image_channels(g.to_rgb, drgb)) * f.first;  // the gradient of u
    sums.bias += q;
    sums.scale += q * x + du * gx;
    sums.post += dy * moved;
    for (int k = 0; k < K; ++k) {
        sums.to_rgb[k] += drgb[k] * moved;
        ddrgb[k] += s.to_rgb[k] * moved + unless_absent(g.to_rgb[k], f.value);
    }
    return {s.post * moved + unless_absent(g.post, f.value), s.scale * q + g.scale * du, q};
}

}  // namespace FASTGAN_VALUES
