// noise_bias_act on the GPU: code that its kernels share with fused kernels that end in it.
#pragma once

#include "common/gpu_sums.h"
#include "noise_bias_act/arithmetic.h"

namespace fastgan::cuda {

using namespace gpu_values;

// The options and small tensors of a call.
template <class S>
struct Epilogue {
    Shape<S> shape;
    const S *noise, *strength, *bias, *scale, *post;
    bool noise_per_sample, strength_per_channel;

    explicit Epilogue(const NoiseBiasActCall& call)
        : shape{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
          noise((const S*)call.noise),
          strength((const S*)call.strength),
          bias((const S*)call.bias),
          scale((const S*)call.scale),
          post((const S*)call.post),
          noise_per_sample(call.noise_per_sample),
          strength_per_channel(call.strength_per_channel) {}
};

// The small tensors of one channel of one sample, without the noise. `E` has the members of Epilogue, but is not
// derived from it: in the arguments of a kernel, the members of a base class cost registers.
template <class S, class E>
FASTGAN_INLINE Small<S> small_at(const E& e, int64_t sample, int64_t channel, int64_t c) {
    return {e.scale ? e.scale[sample * c + channel] : S(1),
            e.strength ? e.strength[e.strength_per_channel ? channel : 0] : S(1), e.bias ? e.bias[channel] : S(0),
            e.post ? e.post[sample * c + channel] : S(1), S(0)};
}
template <class S, class E>
FASTGAN_INLINE S noise_at(const E& e, int64_t sample, int64_t position, int64_t p) {
    return e.noise ? e.noise[(e.noise_per_sample ? sample * p : 0) + position] : S(0);
}
// The noise at V adjacent positions, at an address aligned to 16 bytes if V is not 1; zeros if it is null.
template <int V, class S>
FASTGAN_INLINE void load_noise(const S* from, S (&noise)[V]) {
    constexpr int W = V * sizeof(S) > 16 ? 16 / sizeof(S) : V;
    GPU_UNROLL
    for (int i = 0; i < V; i += W) {
        gpu::Vec<S, W> part{};
        if (from) part = gpu::load<W>(from + i);
        GPU_UNROLL
        for (int w = 0; w < W; ++w) noise[i + w] = part.v[w];
    }
}
template <int V, class S, class E>
FASTGAN_INLINE void load_noise(const E& e, int64_t sample, int64_t position, int64_t p, S (&noise)[V]) {
    load_noise(e.noise ? e.noise + (e.noise_per_sample ? sample * p : 0) + position : nullptr, noise);
}

// One member of the small tensors of V adjacent channels, at an address as above; `absent` if it is null.
template <int V, class S>
FASTGAN_INLINE void load_member(const S* from, S absent, S Small<S>::* member, Small<S> (&small)[V]) {
    S values[V];
    load_noise(from, values);
    GPU_UNROLL
    for (int v = 0; v < V; ++v) small[v].*member = from ? values[v] : absent;
}
// The small tensors of V adjacent channels of one sample, without the noise, at addresses as above.
template <int V, class S, class E>
FASTGAN_INLINE void load_small(const E& e, int64_t sample, int64_t channel, int64_t c, Small<S> (&small)[V]) {
    const int64_t of_sample = sample * c + channel;
    load_member(e.scale ? e.scale + of_sample : nullptr, S(1), &Small<S>::scale, small);
    load_member(e.bias ? e.bias + channel : nullptr, S(0), &Small<S>::bias, small);
    load_member(e.post ? e.post + of_sample : nullptr, S(1), &Small<S>::post, small);
    const S shared = e.strength && !e.strength_per_channel ? *e.strength : S(1);
    load_member(e.strength_per_channel ? e.strength + channel : nullptr, shared, &Small<S>::strength, small);
}

template <class S>
FASTGAN_INLINE S sum_number(const Sums<S>& sums, int which) {
    return which == 0 ? sums.bias : which == 1 ? sums.strength : which == 2 ? sums.scale : sums.post;
}

// Writes a block's part of the gradient of a scalar strength, which is a sum over channels as well. `out` [blocks] is
// null if this gradient is not wanted.
template <class S, int W>
FASTGAN_INLINE void write_strength(const Sums<S> (&total)[W], S* out) {
    if (!out) return;  // uniform
    S sum = 0;
    GPU_UNROLL
    for (int w = 0; w < W; ++w) sum += total[w].strength;
    sum = gpu::block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x * gridDim.y + blockIdx.y] = sum;
}

// Writes the sums of a block over its rows (NHWC): the first SUMS sums of each channel.
template <int SUMS, class S, int V>
FASTGAN_INLINE void write_sums(const Sums<S> (&total)[V], int columns, int64_t channels, S* out, int64_t stride) {
    S values[SUMS * V];
    GPU_UNROLL
    for (int i = 0; i < SUMS * V; ++i) values[i] = sum_number(total[i % V], i / V);
    constexpr int size = COLUMN_SLOTS<SUMS, V>;
    SHARED(S, slots, [size]);
    write_sums_of_columns<SUMS, V>(values, columns, channels, &slots[0], out, stride);
}

// Adds up the sums of all pieces, [N, per_sample, SUMS, C], into the gradients of the small tensors. The gradient of a
// scalar strength is the sum of `blocks` numbers instead.
template <class S, int SUMS>
void add_sums(const NoiseBiasActCall& call, const S* partial, int64_t per_sample, const S* strength, int64_t blocks,
              void* stream) {
    const int64_t n = call.n, c = call.c;
    PieceSums<S> list;
    list.add(partial, call.dbias, 1, n * per_sample, SUMS * c, c);
    if (strength) {
        list.add(strength, call.dstrength, 1, blocks, 1, 1);
    } else if constexpr (SUMS >= 2) {
        list.add(partial + c, call.dstrength, 1, n * per_sample, SUMS * c, c);
    }
    if constexpr (SUMS == MAX_SUMS) {
        list.add(partial + 2 * c, call.dscale, n, per_sample, SUMS * c, c);
        list.add(partial + 3 * c, call.dpost, n, per_sample, SUMS * c, c);
    }
    list.launch(stream);
}

// The gradient of the noise -------------------------------------------------------------------------------------------

constexpr int NOISE_POSITIONS = 2;  // of a thread

// NHWC: out[sample, position] = sum over channels. Some lanes of a warp share the channels of NOISE_POSITIONS positions.
// Grid: the positions of all samples. E has
//
//     V                                 channels of a thread at a time
//     at(sample, position)              what is the same for all channels of a position
//     channels(sample, channel)         what is the same for all positions of V adjacent channels
//     load(i)                           the activations of V adjacent elements
//     noise_gradient(in, channels, at)  their part of the sum
template <class E>
__global__ void noise_gradient_nhwc(E element, int64_t c, int64_t p, int lanes, unsigned per_sample,
                                    typename E::S* out) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % lanes, rows = BLOCK / lanes;
    const int64_t sample = blockIdx.x / per_sample;
    const int64_t first = int64_t(blockIdx.x % per_sample) * rows * NOISE_POSITIONS + threadIdx.x / lanes;
    decltype(element.at(0, 0)) at[NOISE_POSITIONS];
    S total[NOISE_POSITIONS] = {};
    GPU_UNROLL
    for (int i = 0; i < NOISE_POSITIONS; ++i) {
        const int64_t position = first + i * rows;
        if (position < p) at[i] = element.at(sample, position);
    }
    for (int64_t channel = int64_t(lane) * E::V; channel < c; channel += lanes * E::V) {
        const auto channels = element.channels(sample, channel);
        decltype(element.load(0)) in[NOISE_POSITIONS];
        GPU_UNROLL
        for (int i = 0; i < NOISE_POSITIONS; ++i) {
            const int64_t position = first + i * rows;
            if (position < p) in[i] = element.load((sample * p + position) * c + channel);
        }
        GPU_UNROLL
        for (int i = 0; i < NOISE_POSITIONS; ++i) {
            if (first + i * rows < p) total[i] += element.noise_gradient(in[i], channels, at[i]);
        }
    }
    GPU_UNROLL
    for (int i = 0; i < NOISE_POSITIONS; ++i) {
        const int64_t position = first + i * rows;
        const S sum = sum_lanes(total[i], 1, lanes);
        if (lane == 0 && position < p) out[sample * p + position] = sum;
    }
}

template <class E>
void launch_noise_gradient_nhwc(const E& element, int64_t n, int64_t c, int64_t p, void* out, void* stream) {
    const int lanes = power_of_two_from(ceil_div(c, E::V), gpu::warp_size);
    const unsigned per_sample = unsigned(ceil_div(p, BLOCK / lanes * NOISE_POSITIONS));
    gpu::Launch(unsigned(n * per_sample), BLOCK, 0, stream)(noise_gradient_nhwc<E>, element, c, p, lanes, per_sample,
                                                            (typename E::S*)out);
}

}  // namespace fastgan::cuda
