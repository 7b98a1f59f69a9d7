// The arithmetic of noise_bias_act, shared by the CPU and the CUDA kernels.
//
//     u = scale * x + strength * noise + bias,   z = clamp(gain * act(u)),   y = z * post
//
// A value V is a SIMD vector on the CPU and a single number on the GPU.
#pragma once

#include "noise_bias_act/call.h"

namespace FASTGAN_VALUES {

using fastgan::Act;

// Parameters of the nonlinearity, as values that stay in registers. Without LIMITED the clamp is infinite and skipped.
template <class V, bool LIMITED = true>
struct Shape {
    V gain, gain_below, inverse_gain, clamp;  // gain_below: gain * slope, for u < 0
};

template <class V, bool LIMITED = true, class S>
FASTGAN_INLINE Shape<V, LIMITED> shape_of(S slope, S gain, S clamp) {
    return {broadcast<V>(gain), broadcast<V>(gain * slope), broadcast<V>(S(1) / gain), broadcast<V>(clamp)};
}

// gain * act(u), its first and second derivative, before the clamp.
template <class V>
struct Curve {
    V value, first, second;
};

template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE Curve<V> curve(V u, Shape<V, LIMITED> shape) {
    const V zero = broadcast<V>(0), one = broadcast<V>(1), two = broadcast<V>(2);
    Curve<V> f;
    if constexpr (ACT == Act::piecewise_linear) {
        f.first = u > 0 ? shape.gain : shape.gain_below;
        f.value = u * f.first;
        f.second = zero;
        return f;
    } else if constexpr (ACT == Act::tanh) {
        V t = hyperbolic_tangent(u);
        f.value = t;
        f.first = one - t * t;
        f.second = -two * t * f.first;
    } else if constexpr (ACT == Act::sigmoid) {
        V s = one / (one + exponential(-u));
        f.value = s;
        f.first = s * (one - s);
        f.second = f.first * (one - s - s);
    } else if constexpr (ACT == Act::silu) {
        V s = one / (one + exponential(-u));
        V flat = s * (one - s);
        f.value = u * s;
        f.first = s + u * flat;
        f.second = flat * (two + u * (one - s - s));
    } else {  // softplus
        V s = one / (one + exponential(-u));
        f.value = maximum(zero, u) + log_one_plus(exponential(-absolute(u)));
        f.first = s;
        f.second = s * (one - s);
    }
    f.value = f.value * shape.gain;
    f.first = f.first * shape.gain;
    f.second = f.second * shape.gain;
    return f;
}

// Clamps the value. Beyond the clamp the derivatives are zero.
template <class V, bool LIMITED>
FASTGAN_INLINE Curve<V> clamped(Curve<V> f, Shape<V, LIMITED> shape) {
    if constexpr (!LIMITED) return f;
    const V limit = shape.clamp, zero = broadcast<V>(0);
    Curve<V> g;
    g.value = minimum(limit, maximum(-limit, f.value));  // keeps NaN: both return their second argument then
    g.first = absolute(f.value) > limit ? zero : f.first;
    g.second = absolute(f.value) > limit ? zero : f.second;
    return g;
}

// d clamp(gain * act(u)) / du as a function of the result. A result at the clamp counts as clamped.
template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V slope_from_output(V y, Shape<V, LIMITED> shape) {
    V first;
    if constexpr (ACT == Act::piecewise_linear) {
        first = y > 0 ? shape.gain : shape.gain_below;
    } else {
        const V a = y * shape.inverse_gain, one = broadcast<V>(1);
        first = (ACT == Act::tanh ? one - a * a : a * (one - a)) * shape.gain;  // the other is sigmoid
    }
    if constexpr (!LIMITED) return first;
    const V unlimited = shape.clamp + shape.clamp;  // equals the clamp only if that is infinite
    return (absolute(y) < shape.clamp) | (shape.clamp == unlimited) ? first : broadcast<V>(0);
}

// The same as a function of u. A result at the clamp does not count as clamped.
template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V slope_from_input(V u, Shape<V, LIMITED> shape) {
    return clamped(curve<ACT>(u, shape), shape).first;
}

// The small tensors at one element: scale and post [N, C], strength and bias [C], noise [N, P].
template <class V>
struct Small {
    V scale, strength, bias, post, noise;
};

// Contributions of an element to the gradients of the small tensors; the kernels sum them over positions.
template <class V>
struct Sums {
    V bias, strength, scale, post;
};

template <Act ACT, bool FULL, class V, bool LIMITED>
FASTGAN_INLINE V forward(V x, Small<V> s, Shape<V, LIMITED> shape) {
    if constexpr (!FULL) {
        return clamped(curve<ACT>(x + s.bias, shape), shape).value;
    } else {
        V u = s.scale * x + (s.strength * s.noise + s.bias);
        return clamped(curve<ACT>(u, shape), shape).value * s.post;
    }
}

// dx and the sums, from the output: there is neither scale nor post.
//
//     du = dy * f'(y),   dx = du,   dbias = sum(du),   dstrength = sum(du * noise)
template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V backward_from_output(V dy, V y, V noise, Shape<V, LIMITED> shape, Sums<V>& sums) {
    V du = dy * slope_from_output<ACT>(y, shape);
    sums.bias = du;
    sums.strength = du * noise;
    return du;
}

// dx and the sums, from the input:
//
//     du = dy * post * f'(u),   dx = scale * du,   dbias = sum(du),   dstrength = sum(du * noise),
//     dscale = sum(du * x),   dpost = sum(dy * f(u))
template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V backward_from_input(V dy, V x, Small<V> s, Shape<V, LIMITED> shape, Sums<V>& sums) {
    V u = s.scale * x + (s.strength * s.noise + s.bias);
    Curve<V> f = clamped(curve<ACT>(u, shape), shape);
    V du = dy * s.post * f.first;
    sums.bias = du;
    sums.strength = du * s.noise;
    sums.scale = du * x;
    sums.post = dy * f.value;
    return s.scale * du;
}

// The same where there is at most a bias:
//
//     dx = dy * f'(x + bias),   dbias = sum(dx)
template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V backward_from_biased_input(V dy, V x, V bias, Shape<V, LIMITED> shape, Sums<V>& sums) {
    sums.bias = dy * slope_from_input<ACT>(x + bias, shape);
    return sums.bias;
}

// cotangent * factor, but 0 for an absent cotangent (zero) even where the factor is infinite.
template <class V>
FASTGAN_INLINE V unless_absent(V cotangent, V factor) {
    return cotangent == 0 ? broadcast<V>(0) : cotangent * factor;
}

// Double backward. The inner product of the cotangents g with backward's results is, per element,
//
//     dy * (post * f' * v + f * g_post),   v = scale * g_x + g_bias + g_strength * noise + g_scale * x
//
// from which the gradients of dy, x and the small tensors follow.
template <class V>
FASTGAN_INLINE V seen_by_du(V gx, V x, Small<V> s, Small<V> g) {
    return s.scale * gx + (g.strength * s.noise + g.bias) + unless_absent(g.scale, x);
}

template <class V>
struct Second {
    V ddy, dx;
};

template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE V double_backward_from_output(V y, V gx, V noise, Small<V> g, Shape<V, LIMITED> shape) {
    return slope_from_output<ACT>(y, shape) * (gx + (g.strength * noise + g.bias));
}

template <Act ACT, class V, bool LIMITED>
FASTGAN_INLINE Second<V> double_backward_from_input(V dy, V x, V gx, Small<V> s, Small<V> g, Shape<V, LIMITED> shape,
                                                    Sums<V>& sums) {
    V u = s.scale * x + (s.strength * s.noise + s.bias);
    Curve<V> f = clamped(curve<ACT>(u, shape), shape);
    V v = seen_by_du(gx, x, s, g);
    V du = dy * s.post * f.first;
    V q = dy * (s.post * f.second * v + f.first * g.post);  // the gradient of u
    sums.bias = q;
    sums.strength = q * s.noise;
    sums.scale = q * x + du * gx;
    sums.post = dy * f.first * v;
    return {s.post * f.first * v + unless_absent(g.post, f.value), s.scale * q + g.scale * du};
}

}  // namespace FASTGAN_VALUES
