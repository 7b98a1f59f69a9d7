// filtered_lrelu on the GPU: what its kernels share.
#pragma once

#include "common/gpu_values.h"
#include "filtered_lrelu/call.h"

namespace fastgan::cuda {

using namespace gpu_values;

constexpr int LANES = 16;  // channels whose signs share a word

// The sizes of a call in 32 bits.
struct Sizes {
    int c, h, w, oh, ow, left, top, up_size, down_size, z_h, z_w;
    int signs_left, signs_top, signs_h, signs_w;

    explicit Sizes(const FilteredLreluCall& call)
        : c(int(call.c)),
          h(int(call.h)),
          w(int(call.w)),
          oh(int(call.oh)),
          ow(int(call.ow)),
          left(int(call.left)),
          top(int(call.top)),
          up_size(int(call.up_size)),
          down_size(int(call.down_size)),
          z_h(int((call.oh - 1) * call.down + call.down_size)),
          z_w(int((call.ow - 1) * call.down + call.down_size)),
          signs_left(int(call.signs_left)),
          signs_top(int(call.signs_top)),
          signs_h(int(call.signs_h)),
          signs_w(int(call.signs_w)) {}
};

// a / b and its remainder, rounded down; b > 0.
__device__ __host__ inline int floor_quotient(int a, int b) { return a / b - (a % b < 0); }
__device__ __host__ inline int floor_remainder(int a, int b) { return a - floor_quotient(a, b) * b; }

// Signs of an element of z, as bits 0 and 16 of a word. Outside of the signs z is zero, as if it were clamped.
constexpr unsigned BELOW = 1, CLAMPED = 1u << LANES, OUTSIDE = CLAMPED * ((1u << LANES) - 1);

FASTGAN_INLINE float magnitude(float a) { return fabsf(a); }
FASTGAN_INLINE double magnitude(double a) { return fabs(a); }
FASTGAN_INLINE float with_sign_of(float a, float size) { return copysignf(size, a); }
FASTGAN_INLINE double with_sign_of(double a, double size) { return copysign(size, a); }

// Of values that have been upsampled without their gain.
template <class S>
struct Activation {
    S gain, gain_below, clamp;

    explicit Activation(const FilteredLreluCall& call)
        : gain(call.up_gain * call.gain), gain_below(gain * S(call.slope)), clamp(call.clamp) {}

    // z of an upsampled value, and whether it is below zero, and clamped.
    FASTGAN_INLINE S activate(S u, bool& below, bool& clamped) const {
        below = u < 0;
        const S z = u * (below ? gain_below : gain);
        clamped = magnitude(z) > clamp;
        return clamped ? with_sign_of(z, clamp) : z;
    }

    // z for given signs.
    FASTGAN_INLINE S multiply(S u, bool below, bool clamped) const {
        return clamped ? S(0) : u * (below ? gain_below : gain);
    }
};

// The row of the signs at row r of z of a block of channels; null outside of them.
FASTGAN_INLINE unsigned* signs_of(unsigned* signs, const Sizes& s, int64_t block, int r) {
    const int row = r + s.signs_top;
    return row < 0 || row >= s.signs_h ? nullptr : signs + (block * s.signs_h + row) * s.signs_w;
}

FASTGAN_INLINE unsigned read_signs(const unsigned* row, const Sizes& s, int column) {
    const int at = column + s.signs_left;
    return row && at >= 0 && at < s.signs_w ? row[at] : OUTSIDE;
}

}  // namespace fastgan::cuda
