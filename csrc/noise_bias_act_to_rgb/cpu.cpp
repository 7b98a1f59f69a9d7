// noise_bias_act_to_rgb on the CPU, compiled once per instruction set.
//
// Work is cut into pieces, some pixels of a sample, whose size depends on the shape alone. A piece walks over whole
// pixels and keeps its sums in rows of channels. The sums of the pieces are added up in a fixed order, so that results
// do not depend on the number of threads.
#include "common/simd.h"

#include "noise_bias_act_to_rgb/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::NoiseBiasActToRGBCall;

namespace {

enum class Pass { forward, backward, double_backward };

struct Pieces {
    int64_t positions;   // positions in a piece
    int64_t per_sample;  // pieces in a sample
    int64_t stride;      // number of channels, rounded up to the widest group
};

Pieces pieces_of(const NoiseBiasActToRGBCall& call) {
    Pieces pieces;
    // Enough elements to hide the start of a piece; longer sums would round more.
    pieces.positions = min(min(max(32, 16384 / call.c), 128), call.p);
    pieces.per_sample = ceil_div(call.p, pieces.positions);
    pieces.stride = round_up(call.c, 32);
    return pieces;
}

// Writes the row of a small tensor in the order of groups; `absent` where it is null and beyond its last channel.
template <class T, class S>
void lay_out(const S* from, S absent, int64_t c, int64_t stride, S* row) {
    // Two loops: a condition in one would become masked loads, which some emulators do not allow from a null pointer.
    const int64_t there = from ? c : 0;
    for (int64_t i = 0; i < there; ++i) row[slot_of<T>(i)] = from[i];
    for (int64_t i = there; i < stride; ++i) row[slot_of<T>(i)] = absent;
}

// Writes the rows of a sample's small tensors, or of their cotangents: NUMBERS rows, in the order of Channel.
template <int K, class T, class S>
FASTGAN_NOINLINE void lay_out_sample(const NoiseBiasActToRGBCall& call, int64_t stride, int64_t sample,
                                     const void* bias, const void* scale, const void* post, const void* to_rgb,
                                     S absent_scale, S* rows) {
    const int64_t c = call.c;
    auto of_sample = [&](const void* tensor) { return tensor ? (const S*)tensor + sample * c : nullptr; };
    lay_out<T, S>((const S*)bias, 0, c, stride, rows);
    lay_out<T, S>(of_sample(scale), absent_scale, c, stride, rows + stride);
    lay_out<T, S>(of_sample(post), 0, c, stride, rows + 2 * stride);
    for (int64_t k = 0; k < K; ++k) {
        const S* weight = to_rgb ? (const S*)to_rgb + (sample * K + k) * c : nullptr;
        lay_out<T, S>(weight, 0, c, stride, rows + (3 + k) * stride);
    }
}

template <int K, class S>
inline auto channel_at(const S* rows, int64_t stride) {
    Channel<K, decltype(load(rows))> channel;
    for (int i = 0; i < NUMBERS<K>; ++i) number(channel, i) = load(rows + i * stride);
    return channel;
}

// Adds up the sums of the pieces, [N, pieces, NUMBERS, stride], into the wanted gradients, in double precision.
template <int K, class T, class S>
FASTGAN_NOINLINE void finish(const NoiseBiasActToRGBCall& call, const Pieces& pieces, const S* partial,
                             const S* strength) {
    const int64_t n = call.n, c = call.c, all = n * pieces.per_sample;
    auto add = [&](int which, int64_t first, int64_t last, S* to) {
        for (int64_t j = 0; j < c; ++j) {
            double total = 0;
            const S* from = partial + which * pieces.stride + slot_of<T>(j);
            for (int64_t piece = first; piece < last; ++piece) total += from[piece * NUMBERS<K> * pieces.stride];
            to[j] = S(total);
        }
    };
    auto add_samples = [&](int which, void* to, int64_t rows, int64_t row) {
        for (int64_t sample = 0; to && sample < n; ++sample) {
            const int64_t first = sample * pieces.per_sample;
            add(which, first, first + pieces.per_sample, (S*)to + (sample * rows + row) * c);
        }
    };
    if (call.dbias) add(0, 0, all, (S*)call.dbias);
    add_samples(1, call.dscale, 1, 0);
    add_samples(2, call.dpost, 1, 0);
    for (int k = 0; k < K; ++k) add_samples(3 + k, call.dto_rgb, K, k);
    if (call.dstrength) {
        double total = 0;
        for (int64_t piece = 0; piece < all; ++piece) total += strength[piece];
        *(S*)call.dstrength = S(total);
    }
}

template <Pass PASS, int K, class T>
void run_pass(const NoiseBiasActToRGBCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    constexpr int VECTORS = Group<T>::vectors, ROWS = NUMBERS<K>;
    constexpr bool twice = PASS == Pass::double_backward, sums_up = PASS != Pass::forward;
    const Pieces pieces = pieces_of(call);
    const int64_t n = call.n, stride = pieces.stride, width = Group<T>::size;
    S* small = (S*)call.workspace;
    S* cotangents = small + n * ROWS * stride;
    S* partial = cotangents + (twice ? n * ROWS * stride : 0);
    S* strengths = partial + n * pieces.per_sample * ROWS * stride;
    for (int64_t i = 0; i < n; ++i) {
        lay_out_sample<K, T, S>(call, stride, i, call.bias, call.scale, call.post, call.to_rgb, 1,
                                small + i * ROWS * stride);
        if constexpr (twice) {
            lay_out_sample<K, T, S>(call, stride, i, call.gbias, call.gscale, call.gpost, call.gto_rgb, 0,
                                    cotangents + i * ROWS * stride);
        }
    }
    const S strength = call.strength ? *(const S*)call.strength : S(1);
    const S gstrength = twice && call.gstrength ? *(const S*)call.gstrength : S(0);
    T* const first = (T*)(PASS == Pass::forward ? call.y : twice ? call.ddy : call.dx);
    T* const second = twice ? (T*)call.dx : nullptr;
    const bool streamed = should_stream(n * call.c * call.p * sizeof(T), call.c, width, first, second);

    parallel_for(n * pieces.per_sample, worth_threads(n * call.c * call.p), [&](int64_t piece) {
        const Shape<V> shape = shape_of<V>(S(call.slope), S(call.gain), S(call.clamp));
        const int64_t c = call.c, p = call.p, whole = c / width * width;
        const int64_t sample = piece / pieces.per_sample;
        const int64_t begin = piece % pieces.per_sample * pieces.positions, end = min(begin + pieces.positions, p);
        const S *rows = small + sample * ROWS * stride, *g_rows = cotangents + sample * ROWS * stride;
        const S* noise = call.noise ? (const S*)call.noise + (call.noise_per_sample ? sample * p : 0) : nullptr;
        const T *x = (const T*)call.x, *dy = (const T*)call.dy, *gx = (const T*)call.gx;
        const S* drgb = (const S*)call.drgb;
        S* const rgb = (S*)(twice ? call.ddrgb : call.rgb);
        S* const dnoise = (S*)call.dnoise;
        S* const sums = partial + piece * ROWS * stride;
        V strength_sum = broadcast<V>(0);
        for (int64_t i = 0; sums_up && i < ROWS * stride; ++i) sums[i] = 0;
        for (int64_t position = begin; position < end; ++position) {
            const int64_t pixel = sample * p + position, at = pixel * c;
            const V noise_here = broadcast<V>(noise ? noise[position] : S(0));
            const V shift = noise_here * strength;
            [[maybe_unused]] const V gshift = noise_here * gstrength;
            V image[K], incoming[K], du = broadcast<V>(0);
            for (int k = 0; k < K; ++k) {
                image[k] = broadcast<V>(0);
                incoming[k] = broadcast<V>(sums_up ? drgb[pixel * K + k] : S(0));
            }
            auto group = [&](auto extent, int64_t j) {
                constexpr bool PART = decltype(extent)::part;
                auto get = [&](const T* from) {
                    if constexpr (PART) return load_group_n(from + at + j, c - j);
                    prefetch<4096>(from + at + j);
                    return load_group(from + at + j);
                };
                Group<T> a = get(x), b = {}, d = {}, one, two;
                if constexpr (sums_up) {
                    if (dy) b = get(dy);
                }
                if constexpr (twice) d = get(gx);
                for (int v = 0; v < VECTORS; ++v) {
                    const int64_t i = j + v * lanes<V>();
                    const auto s = channel_at<K>(rows + i, stride);
                    if constexpr (PASS == Pass::forward) {
                        one.v[v] = forward(a.v[v], shift, s, shape, image);
                    } else {
                        auto total = channel_at<K>(sums + i, stride);
                        if constexpr (PASS == Pass::backward) {
                            const Gradients<V> out = backward(b.v[v], a.v[v], shift, incoming, s, shape, total);
                            one.v[v] = out.dx, du += out.du;
                        } else {
                            const SecondGradients<V> out =
                                double_backward(b.v[v], a.v[v], d.v[v], shift, gshift, incoming, s,
                                                channel_at<K>(g_rows + i, stride), shape, total, image);
                            one.v[v] = out.ddy, two.v[v] = out.dx, du += out.du;
                        }
                        for (int r = 0; r < ROWS; ++r) store(sums + i + r * stride, number(total, r));
                    }
                }
                if (first) put_group<PART>(first + at + j, one, c - j, streamed);
                if constexpr (twice) put_group<PART>(second + at + j, two, c - j, streamed);
            };
            for (int64_t j = 0; j < whole; j += width) group(Whole{}, j);
            if (whole < c) group(Part{}, whole);
            if constexpr (PASS != Pass::backward) {
                for (int k = 0; k < K; ++k) rgb[pixel * K + k] = sum(image[k]);
            }
            if (sums_up && dnoise) dnoise[pixel] = strength * sum(du);
            strength_sum += noise_here * du;
        }
        if constexpr (sums_up) strengths[piece] = sum(strength_sum);
        if (streamed) stream_fence();
    });
    if constexpr (sums_up) finish<K, T, S>(call, pieces, partial, strengths);
}

template <Pass PASS>
void run(const NoiseBiasActToRGBCall& call) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        switch (call.k) {
            case 1: return run_pass<PASS, 1, T>(call);
            case 3: return run_pass<PASS, 3, T>(call);
            default: return run_pass<PASS, 4, T>(call);
        }
    });
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void noise_bias_act_to_rgb_forward(const NoiseBiasActToRGBCall& call) { run<Pass::forward>(call); }

void noise_bias_act_to_rgb_backward(const NoiseBiasActToRGBCall& call) { run<Pass::backward>(call); }

void noise_bias_act_to_rgb_double_backward(const NoiseBiasActToRGBCall& call) { run<Pass::double_backward>(call); }

int64_t noise_bias_act_to_rgb_workspace(const NoiseBiasActToRGBCall& call) {
    const Pieces pieces = pieces_of(call);
    const int64_t row = (3 + call.k) * pieces.stride;
    return call.n * (2 * row + pieces.per_sample * (row + 1)) * arithmetic_bytes(call.dtype);
}

}  // namespace FASTGAN_ISA
