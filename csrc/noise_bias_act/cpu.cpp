// noise_bias_act on the CPU, compiled once per instruction set.
//
// One driver per layout walks memory in its own order; `Element` does the arithmetic. Work is cut into pieces (some
// positions of a sample, or of one channel of it) whose size depends on the shape alone. Each piece writes its own
// sums, and these are added up in a fixed order, so that results do not depend on the number of threads.
#include "common/simd.h"

#include "noise_bias_act/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::MAX_SUMS;
using fastgan::NoiseBiasActCall;

namespace {

// Passes without a suffix have at most a bias, as in a discriminator. "noise": NHWC with one strength for all channels
// and neither scale nor post, so that strength * noise is one number per pixel. "full": the general case.
enum class Pass {
    forward,
    forward_residual,  // with a residual, which only this and `forward_full` add
    forward_noise,
    forward_full,
    backward_from_output,
    backward_from_output_noise,
    backward_from_output_full,
    backward_from_biased_input,  // from an input with at most a bias
    backward_from_input,
    double_from_output,
    double_from_input
};

struct Pieces {
    int64_t positions;   // positions in a piece
    int64_t per_sample;  // pieces in a sample
    int64_t stride;      // number of channels, rounded up to the widest vector
};

Pieces pieces_of(const NoiseBiasActCall& call) {
    const int64_t elements = 16384;  // elements in a piece: enough to hide its start-up, few enough for an even split
    Pieces pieces;
    const bool all_channels = call.channels_last || call.dnoise;  // a piece has all channels of its positions
    pieces.positions = max(32, elements / max(all_channels ? call.c : 1, 1));
    if (!call.channels_last) pieces.positions = pieces.positions / 32 * 32;  // non-temporal stores need aligned pieces
    if (call.channels_last) pieces.positions = min(pieces.positions, 128);   // longer sums would round more
    pieces.positions = min(pieces.positions, max(call.p, 1));
    pieces.per_sample = ceil_div(call.p, pieces.positions);
    pieces.stride = round_up(call.c, 32);
    return pieces;
}

constexpr int SMALL_TENSORS = 8;  // scale, strength, bias, post and their cotangents

// Size of the workspace, in elements of the arithmetic type.
int64_t workspace_elements(const NoiseBiasActCall& call) {
    Pieces pieces = pieces_of(call);
    return call.n * pieces.stride * (pieces.per_sample * MAX_SUMS + SMALL_TENSORS);
}

// Means that the activation is read from the call at run time: one instantiation serves all activations.
constexpr Act ANY_ACT = Act(fastgan::names(Act()).size());

// The tensors of a pass, and its arithmetic for a vector of elements from index i on, or for the first `count` of them.
template <Pass PASS, Act ACT, class T, bool LIMITED>
struct Element {
    typedef T Stored;
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    static constexpr bool is_forward = PASS == Pass::forward || PASS == Pass::forward_residual ||
                                       PASS == Pass::forward_noise || PASS == Pass::forward_full;
    static constexpr bool may_have_residual = PASS == Pass::forward_residual || PASS == Pass::forward_full;
    static constexpr bool from_output = PASS == Pass::backward_from_output ||
                                        PASS == Pass::backward_from_output_noise ||
                                        PASS == Pass::backward_from_output_full;
    static constexpr bool noise_per_pixel = PASS == Pass::forward_noise || PASS == Pass::backward_from_output_noise;
    static constexpr bool reads_dy = !is_forward && PASS != Pass::double_from_output;
    static constexpr bool reads_gx = PASS == Pass::double_from_output || PASS == Pass::double_from_input;
    static constexpr bool has_second = PASS == Pass::double_from_input;
    static constexpr bool has_dnoise = PASS == Pass::backward_from_output_noise ||
                                       PASS == Pass::backward_from_output_full || PASS == Pass::backward_from_input;
    static constexpr int SUMS = PASS == Pass::backward_from_output         ? 1
                                : PASS == Pass::backward_from_biased_input ? 1
                                : PASS == Pass::backward_from_output_noise ? 2
                                : PASS == Pass::backward_from_output_full  ? 2
                                : PASS == Pass::backward_from_input        ? 4
                                : PASS == Pass::double_from_input          ? 4
                                                                           : 0;
    // Number of groups of channels whose sums stay in registers (half of all registers). Used for rows of exactly that
    // many groups, or half as many; 0 where the arithmetic is so slow that it does not matter. Wider rows are cut into
    // columns of that many groups (`by_columns`) only where memory is not the bottleneck; else whole rows are faster.
    static constexpr int REGISTERS = VECTOR_BYTES == 64 ? 32 : 16;
    static constexpr int MAX_VECTORS = SUMS == 0 ? 0 : REGISTERS / 2 / SUMS < 8 ? REGISTERS / 2 / SUMS : 8;
    static constexpr int GROUPS_IN_REGISTERS = ACT == Act::piecewise_linear ? MAX_VECTORS / Group<T>::vectors : 0;
    static constexpr bool by_columns = VECTOR_BYTES == 64 && SUMS == 4 && sizeof(T) == 2;
    // Hardware prefetching suffices for passes with little arithmetic (measured with AVX-512 only).
    static constexpr bool little_arithmetic = PASS == Pass::forward || PASS == Pass::forward_residual ||
                                              PASS == Pass::backward_from_output ||
                                              PASS == Pass::backward_from_biased_input || noise_per_pixel;
    static constexpr bool prefetches = VECTOR_BYTES < 64 || !little_arithmetic;

    Shape<V, LIMITED> shape;
    Act act;
    const T *x, *dy, *reference, *gx, *residual;
    T *first, *second;  // the outputs
    bool streamed;

    explicit Element(const NoiseBiasActCall& call)
        : shape(shape_of<V, LIMITED>(S(call.slope), S(call.gain), S(call.clamp))),
          act(call.act),
          x((const T*)call.x),
          dy((const T*)call.dy),
          reference((const T*)call.reference),
          gx((const T*)call.gx),
          residual((const T*)call.residual) {
        first = (T*)(is_forward ? call.y : reads_gx ? call.ddy : call.dx);
        second = has_second ? (T*)call.dx : nullptr;
        const int64_t row = call.channels_last ? call.c : call.p;
        const int64_t unit = call.channels_last ? Group<T>::size : lanes<V>();
        streamed = should_stream(call.n * call.c * call.p * sizeof(T), row, unit, first, second);
    }

    // The result at one vector. `a` is x in a forward pass, else dy; `b` is the residual or the reference (x or y); `c`
    // is gx.
    template <Act A>
    Second<V> value_for(V a, V b, V c, const Small<V>& s, const Small<V>& g, Sums<V>& sums) const {
        if constexpr (is_forward) {
            const V y = forward<A, PASS == Pass::forward_full>(a, s, shape);
            return {may_have_residual ? y + b : y, a};
        } else if constexpr (from_output) {
            return {backward_from_output<A>(a, b, s.noise, shape, sums), a};
        } else if constexpr (PASS == Pass::backward_from_biased_input) {
            return {backward_from_biased_input<A>(a, b, s.bias, shape, sums), a};
        } else if constexpr (PASS == Pass::backward_from_input) {
            return {backward_from_input<A>(a, b, s, shape, sums), a};
        } else if constexpr (PASS == Pass::double_from_output) {
            return {double_backward_from_output<A>(b, c, s.noise, g, shape), a};
        } else {
            return double_backward_from_input<A>(a, b, c, s, g, shape, sums);
        }
    }
    Second<V> value(V a, V b, V c, const Small<V>& s, const Small<V>& g, Sums<V>& sums) const {
        if constexpr (ACT != ANY_ACT) return value_for<ACT>(a, b, c, s, g, sums);
        if (act == Act::piecewise_linear) return value_for<Act::piecewise_linear>(a, b, c, s, g, sums);
        if (act == Act::tanh) return value_for<Act::tanh>(a, b, c, s, g, sums);
        if (from_output || act == Act::sigmoid) return value_for<Act::sigmoid>(a, b, c, s, g, sums);
        if constexpr (!from_output) {  // silu and softplus take their derivatives from x
            if (act == Act::silu) return value_for<Act::silu>(a, b, c, s, g, sums);
            return value_for<Act::softplus>(a, b, c, s, g, sums);
        }
    }

    // Processes consecutive positions of one channel.
    template <bool PART>
    inline void at(int64_t i, int64_t count, const Small<V>& s, const Small<V>& g, Sums<V>& sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_n(p + i, count);
            if constexpr (prefetches) prefetch<4096>(p + i);
            return load(p + i);
        };
        V a = {}, b = {}, c = {};
        if constexpr (is_forward) a = get(x);
        if constexpr (reads_dy) a = get(dy);
        if constexpr (PASS == Pass::forward_residual) b = get(residual);
        if constexpr (PASS == Pass::forward_full) {
            if (residual) b = get(residual);
        }
        if constexpr (!is_forward) b = get(reference);
        if constexpr (reads_gx) c = get(gx);
        const Second<V> result = value(a, b, c, s, g, sums);
        put<PART>(first + i, result.ddy, count, streamed);
        if constexpr (has_second) put<PART>(second + i, result.dx, count, streamed);
    }

    // Processes consecutive channels of one pixel: a group, or its first `count` channels. `s`, `g` and `sums` have one
    // entry for each vector of the group.
    template <bool PART>
    inline void at_group(int64_t i, int64_t count, const Small<V>* s, const Small<V>* g, Sums<V>* sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_group_n(p + i, count);
            if constexpr (prefetches) prefetch<4096>(p + i);
            return load_group(p + i);
        };
        Group<T> a = {}, b = {}, c = {}, out, also;
        if constexpr (is_forward) a = get(x);
        if constexpr (reads_dy) a = get(dy);
        if constexpr (PASS == Pass::forward_residual) b = get(residual);
        if constexpr (PASS == Pass::forward_full) {
            if (residual) b = get(residual);
        }
        if constexpr (!is_forward) b = get(reference);
        if constexpr (reads_gx) c = get(gx);
        for (int k = 0; k < Group<T>::vectors; ++k) {
            const Second<V> result = value(a.v[k], b.v[k], c.v[k], s[k], g[k], sums[k]);
            out.v[k] = result.ddy, also.v[k] = result.dx;
        }
        put_group<PART>(first + i, out, count, streamed);
        if constexpr (has_second) put_group<PART>(second + i, also, count, streamed);
    }
};

// A small tensor as the NHWC driver reads it: a row of channels per sample, in the order of groups, padded, never null.
template <class S>
struct Rows {
    const S* data;
    int64_t per_sample;  // 0 if all samples share one row

    const S* of(int64_t sample) const { return data + sample * per_sample; }
};

template <class S>
struct SmallRows {
    Rows<S> scale, strength, bias, post, gscale, gstrength, gbias, gpost;
};

// Lays out one small tensor in `space`, and advances `space` past it.
template <class T, class S>
FASTGAN_NOINLINE Rows<S> one_small_tensor(const NoiseBiasActCall& call, const Pieces& pieces, const void* given,
                                          bool per_sample, bool scalar, S absent, S*& space) {
    const int64_t rows = given && per_sample ? call.n : 1;
    const int64_t there = given ? call.c : 0;
    S* start = space;
    for (int64_t r = 0; r < rows; ++r) {
        const S* from = (const S*)given + (per_sample ? r * call.c : 0);
        S* row = start + r * pieces.stride;
        // Two loops: a condition in one would become masked loads, which some emulators do not allow from a null pointer.
        for (int64_t i = 0; i < there; ++i) row[slot_of<T>(i)] = from[scalar ? 0 : i];
        for (int64_t i = there; i < pieces.stride; ++i) row[slot_of<T>(i)] = absent;
    }
    space += rows * pieces.stride;
    return {start, rows > 1 ? pieces.stride : 0};
}

// Lays out all small tensors in `space`.
template <class T, class S>
FASTGAN_NOINLINE SmallRows<S> small_rows(const NoiseBiasActCall& call, const Pieces& pieces, S* space) {
    auto rows_of = [&](const void* given, bool per_sample, bool scalar, S absent) {
        return one_small_tensor<T>(call, pieces, given, per_sample, scalar, absent, space);
    };
    const bool one_strength = !call.strength_per_channel;
    return {rows_of(call.scale, true, false, 1),  rows_of(call.strength, false, one_strength, 1),
            rows_of(call.bias, false, false, 0),  rows_of(call.post, true, false, 1),
            rows_of(call.gscale, true, false, 0), rows_of(call.gstrength, false, one_strength, 0),
            rows_of(call.gbias, false, false, 0), rows_of(call.gpost, true, false, 0)};
}

template <int N>
struct Groups {
    static constexpr int count = N;
};

// NHWC driver. A piece consists of whole pixels; the small tensors and the sums are rows of channels.
template <class E>
void nhwc(const NoiseBiasActCall& call, const E& shared, const Pieces& pieces, typename E::S* partial,
          typename E::S* space) {
    typedef typename E::S S;
    typedef typename E::V V;
    typedef typename E::Stored T;
    constexpr int VECTORS = Group<T>::vectors;
    const int64_t width = Group<T>::size;
    const SmallRows<S> small = small_rows<T>(call, pieces, space);
    const S* noise = (const S*)call.noise;
    const S shared_strength = E::noise_per_pixel && call.strength ? *(const S*)call.strength : S(1);

    parallel_for(call.n * pieces.per_sample, worth_threads(call.n * call.c * call.p), [&](int64_t piece) {
        // Copies that no store can alias: reloading them at each pixel would wait for the stores before.
        const E element = shared;
        const int64_t c = call.c, p = call.p, whole = c / width * width, stride = pieces.stride;
        const int64_t sample = piece / pieces.per_sample;
        const int64_t begin = (piece % pieces.per_sample) * pieces.positions;
        const int64_t end = min(begin + pieces.positions, p);
        const S *scale = small.scale.of(sample), *strength = small.strength.of(sample);
        const S *bias = small.bias.of(sample), *post = small.post.of(sample);
        const S *gscale = small.gscale.of(sample), *gstrength = small.gstrength.of(sample);
        const S *gbias = small.gbias.of(sample), *gpost = small.gpost.of(sample);
        const S* noise_row = noise ? noise + (call.noise_per_sample ? sample * p : 0) : nullptr;
        auto noise_at = [&](int64_t position) { return noise_row ? noise_row[position] : S(0); };
        // Small tensors and cotangents of the vector at channel i, for one value of the noise.
        auto tensors = [&](int64_t i, V noise_here, Small<V>& s, Small<V>& g) {
            if constexpr (E::noise_per_pixel) {
                s.bias = load(bias + i) + noise_here, s.noise = noise_here;
            } else {
                s = {load(scale + i), load(strength + i), load(bias + i), load(post + i), noise_here};
                g = {load(gscale + i), load(gstrength + i), load(gbias + i), load(gpost + i), noise_here};
            }
        };

        S* sums = partial + piece * E::SUMS * stride;
        S* const dnoise = E::has_dnoise && call.dnoise ? (S*)call.dnoise + sample * p : nullptr;
        V strength_sum = broadcast<V>(0);  // gradient of strength; the rest of its row is zero

        // Pixel by pixel. Several at once would share loads, but interleave their streaming stores.
        auto rows = [&] {
            for (int64_t i = 0; i < E::SUMS * stride; ++i) sums[i] = 0;
            for (int64_t position = begin; position < end; ++position) {
                const int64_t at = (sample * p + position) * c;
                const S noise_value = noise_at(position);
                const V noise_here =
                    broadcast<V>(E::noise_per_pixel && E::is_forward ? noise_value * shared_strength : noise_value);
                V pixel_sum = broadcast<V>(0);
                auto group = [&](auto extent, int64_t j) {
                    Small<V> s[VECTORS], g[VECTORS];
                    Sums<V> d[VECTORS];
                    for (int v = 0; v < VECTORS; ++v) tensors(j + v * lanes<V>(), noise_here, s[v], g[v]);
                    element.template at_group<decltype(extent)::part>(at + j, c - j, s, g, d);
                    for (int v = 0; E::SUMS > 0 && v < VECTORS; ++v) {
                        S* row = sums + j + v * lanes<V>();
                        store(row, load(row) + d[v].bias);
                        if constexpr (E::noise_per_pixel) {
                            pixel_sum += d[v].bias;
                        } else if constexpr (E::SUMS >= 2) {
                            store(row + stride, load(row + stride) + d[v].strength);
                            if constexpr (E::has_dnoise) pixel_sum += s[v].strength * d[v].bias;
                        }
                        if constexpr (E::SUMS == 4) {
                            store(row + 2 * stride, load(row + 2 * stride) + d[v].scale);
                            store(row + 3 * stride, load(row + 3 * stride) + d[v].post);
                        }
                    }
                };
                for (int64_t j = 0; j < whole; j += width) group(Whole{}, j);
                if (whole < c) group(Part{}, whole);
                if constexpr (E::noise_per_pixel && E::SUMS > 0) strength_sum += noise_here * pixel_sum;
                if constexpr (E::has_dnoise) {
                    if (dnoise) dnoise[position] = (E::noise_per_pixel ? shared_strength : S(1)) * sum(pixel_sum);
                }
            }
        };

        // A column of some groups, over all pixels, with the sums in registers. No lambda may capture the sums: they
        // would move to memory, and each addition would wait for the store before.
        auto columns = [&](auto groups, int64_t j) {
            constexpr int COUNT = decltype(groups)::count * VECTORS;
            V total[E::SUMS][COUNT];
#pragma GCC unroll 32
            for (int i = 0; i < E::SUMS * COUNT; ++i) total[i / COUNT][i % COUNT] = broadcast<V>(0);
            V column_strength_sum = broadcast<V>(0);
            for (int64_t position = begin; position < end; ++position) {
                const int64_t at = (sample * p + position) * c;
                const V noise_here = broadcast<V>(noise_at(position));
                V pixel_sum = broadcast<V>(0);
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; i += VECTORS) {
                    Small<V> s[VECTORS], g[VECTORS];
                    Sums<V> d[VECTORS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) tensors(j + (i + v) * lanes<V>(), noise_here, s[v], g[v]);
                    element.template at_group<false>(at + j + i * lanes<V>(), width, s, g, d);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) {
                        total[0][i + v] += d[v].bias;
                        if constexpr (E::noise_per_pixel) {
                            pixel_sum += d[v].bias;
                        } else if constexpr (E::SUMS >= 2) {
                            total[1][i + v] += d[v].strength;
                        }
                        if constexpr (E::SUMS == 4) {
                            total[2][i + v] += d[v].scale;
                            total[3][i + v] += d[v].post;
                        }
                    }
                }
                if constexpr (E::noise_per_pixel) column_strength_sum += noise_here * pixel_sum;
            }
            strength_sum += column_strength_sum;
#pragma GCC unroll 32
            for (int i = 0; i < E::SUMS * COUNT; ++i) {
                store(sums + i / COUNT * stride + j + i % COUNT * lanes<V>(), total[i / COUNT][i % COUNT]);
            }
        };

        constexpr int GROUPS = E::GROUPS_IN_REGISTERS;
        if constexpr (GROUPS == 0) {
            rows();
        } else if (dnoise) {  // a sum over all channels of a pixel
            rows();
        } else {
            if (c == GROUPS * width || (E::by_columns && c % (GROUPS * width) == 0)) {
                for (int64_t j = 0; j < c; j += GROUPS * width) columns(Groups<GROUPS>{}, j);
            } else if (GROUPS >= 4 && c == GROUPS / 2 * width) {
                columns(Groups<GROUPS / 2 ? GROUPS / 2 : 1>{}, 0);
            } else {
                rows();
            }
        }
        if constexpr (E::noise_per_pixel && E::SUMS > 0) store(sums + stride, strength_sum);
        if (element.streamed) stream_fence();
    });
}

// NCHW driver. A piece consists of positions of one channel, or of all channels of a sample for the gradient of the
// noise, which is a sum over them. The small tensors are single numbers, the noise is a row.
template <class E>
void nchw(const NoiseBiasActCall& call, const E& shared, const Pieces& pieces, typename E::S* partial) {
    typedef typename E::S S;
    typedef typename E::V V;
    const int64_t n = call.n, c = call.c, p = call.p, width = lanes<V>();
    auto number = [](const void* given, int64_t i, S absent) {
        return broadcast<V>(given ? ((const S*)given)[i] : absent);
    };
    const S* noise = (const S*)call.noise;
    S* const dnoise = E::has_dnoise ? (S*)call.dnoise : nullptr;

    auto channel_piece = [&](int64_t row, int64_t segment) {
        const E element = shared;  // a copy that no store can alias
        const int64_t sample = row / c, channel = row % c, one = call.strength_per_channel ? channel : 0;
        const int64_t begin = segment * pieces.positions;
        const int64_t end = min(begin + pieces.positions, p);
        const S* noise_row = noise ? noise + (call.noise_per_sample ? sample * p : 0) : nullptr;
        S* const dnoise_row = dnoise ? dnoise + sample * p : nullptr;
        const V zero = broadcast<V>(S(0));
        Small<V> s = {number(call.scale, row, 1), number(call.strength, one, 1), number(call.bias, channel, 0),
                      number(call.post, row, 1), zero};
        Small<V> g = {number(call.gscale, row, 0), number(call.gstrength, one, 0), number(call.gbias, channel, 0),
                      number(call.gpost, row, 0), zero};
        Sums<V> total = {zero, zero, zero, zero};
        auto add = [&](const Sums<V>& d) {  // lanes past the end of a row have zero gradients
            if constexpr (E::SUMS >= 1) total.bias += d.bias;
            if constexpr (E::SUMS >= 2) total.strength += d.strength;
            if constexpr (E::SUMS == 4) {
                total.scale += d.scale;
                total.post += d.post;
            }
        };
        int64_t i = begin;
        for (; i + width <= end; i += width) {
            Sums<V> d;
            if (noise_row) s.noise = load(noise_row + i);
            element.template at<false>(row * p + i, width, s, g, d);
            add(d);
            if constexpr (E::has_dnoise) {
                if (dnoise_row) store(dnoise_row + i, load(dnoise_row + i) + s.strength * d.bias);
            }
        }
        if (i < end) {
            Sums<V> d;
            if (noise_row) s.noise = load_n(noise_row + i, end - i);
            element.template at<true>(row * p + i, end - i, s, g, d);
            add(d);
            if constexpr (E::has_dnoise) {
                if (dnoise_row) {
                    store_n(dnoise_row + i, load_n(dnoise_row + i, end - i) + s.strength * d.bias, end - i);
                }
            }
        }
        if constexpr (E::SUMS > 0) {
            S* to = partial + ((sample * pieces.per_sample + segment) * E::SUMS) * pieces.stride + channel;
            to[0] = sum(total.bias);
            if constexpr (E::SUMS >= 2) to[pieces.stride] = sum(total.strength);
            if constexpr (E::SUMS == 4) {
                to[2 * pieces.stride] = sum(total.scale);
                to[3 * pieces.stride] = sum(total.post);
            }
        }
        if (element.streamed) stream_fence();
    };
    const bool parallel = worth_threads(n * c * p);
    if (dnoise) {
        parallel_for(n * pieces.per_sample, parallel, [&](int64_t piece) {
            const int64_t sample = piece / pieces.per_sample, segment = piece % pieces.per_sample;
            const int64_t begin = segment * pieces.positions, end = min(begin + pieces.positions, p);
            for (int64_t i = begin; i < end; ++i) dnoise[sample * p + i] = 0;
            for (int64_t channel = 0; channel < c; ++channel) channel_piece(sample * c + channel, segment);
        });
    } else {
        parallel_for(n * c * pieces.per_sample, parallel,
                     [&](int64_t piece) { channel_piece(piece / pieces.per_sample, piece % pieces.per_sample); });
    }
}

// Adds up the sums of the pieces, [N, pieces, SUMS, stride], into the wanted gradients.
template <class T, class S>
FASTGAN_NOINLINE void finish(const NoiseBiasActCall& call, const Pieces& pieces, int sums, const S* partial) {
    const int64_t n = call.n, c = call.c;
    const int block = 64;  // channels at a time, summed in double precision
    auto add = [&](int which, int64_t first, int64_t last, int64_t channel, double* total) FASTGAN_NOINLINE {
        const int64_t width = min(c - channel, block);
        for (int64_t j = 0; j < block; ++j) total[j] = 0;
        for (int64_t piece = first; piece < last; ++piece) {
            const S* from = partial + (piece * sums + which) * pieces.stride + channel;
            const int64_t there = min(pieces.stride - channel, block);
            for (int64_t j = 0; j < there; ++j) total[j] += from[j];
        }
        if (call.channels_last && Group<T>::vectors > 1) {  // back from the order of groups to that of channels
            double ordered[block];
            for (int64_t j = 0; j < width; ++j) ordered[j] = total[slot_of<T>(j)];
            for (int64_t j = 0; j < width; ++j) total[j] = ordered[j];
        }
        return width;
    };
    auto each = [&](int which, void* to, bool per_sample) FASTGAN_NOINLINE {
        double total[block];
        for (int64_t group = 0; group < (per_sample ? n : 1); ++group) {
            const int64_t first = group * pieces.per_sample;
            const int64_t last = first + (per_sample ? 1 : n) * pieces.per_sample;
            for (int64_t channel = 0; channel < c; channel += block) {
                const int64_t width = add(which, first, last, channel, total);
                for (int64_t j = 0; j < width; ++j) ((S*)to)[group * c + channel + j] = S(total[j]);
            }
        }
    };
    if (call.dbias) each(0, call.dbias, false);
    if (sums >= 2 && call.dstrength && call.strength_per_channel) each(1, call.dstrength, false);
    if (sums >= 2 && call.dstrength && !call.strength_per_channel) {
        double total[block], all_channels = 0;
        for (int64_t channel = 0; channel < c; channel += block) {
            int64_t width = add(1, 0, n * pieces.per_sample, channel, total);
            while (width > 1) {  // pairwise sums round less
                for (int64_t j = 0; j < width / 2; ++j) total[j] += total[width - 1 - j];
                width = (width + 1) / 2;
            }
            all_channels += total[0];
        }
        *(S*)call.dstrength = S(all_channels);
    }
    if (sums == 4 && call.dscale) each(2, call.dscale, true);
    if (sums == 4 && call.dpost) each(3, call.dpost, true);
}

template <Pass PASS, Act ACT, class T, bool LIMITED>
void run_pass(const NoiseBiasActCall& call) {
    typedef Element<PASS, ACT, T, LIMITED> E;
    typedef typename E::S S;
    const Pieces pieces = pieces_of(call);
    S* partial = (S*)call.workspace;
    S* space = partial + call.n * pieces.per_sample * E::SUMS * pieces.stride;
    const E element(call);
    if (call.channels_last) {
        nhwc(call, element, pieces, partial, space);
    } else if constexpr (!E::noise_per_pixel) {  // passes with noise per pixel are for NHWC only
        nchw(call, element, pieces, partial);
    }
    if constexpr (E::SUMS > 0) finish<T>(call, pieces, E::SUMS, partial);
}

// The most general pass of the same kind.
constexpr Pass full(Pass pass) {
    switch (pass) {
        case Pass::forward:
        case Pass::forward_residual:
        case Pass::forward_noise: return Pass::forward_full;
        case Pass::backward_from_output:
        case Pass::backward_from_output_noise: return Pass::backward_from_output_full;
        case Pass::backward_from_biased_input: return Pass::backward_from_input;
        default: return pass;
    }
}

// Instantiates a pass for the dtype. Double, for gradcheck, has few instantiations. An infinite clamp is skipped where
// that is faster.
template <Pass PASS, Act ACT = Act::piecewise_linear>
void run(const NoiseBiasActCall& call) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        if constexpr (sizeof(T) == sizeof(double)) {
            run_pass<full(PASS), ANY_ACT, T, true>(call);
        } else if (ACT == Act::piecewise_linear && call.clamp == __builtin_inf()) {
            run_pass<PASS, Act::piecewise_linear, T, false>(call);
        } else {
            run_pass<PASS, ACT, T, true>(call);
        }
    });
}

template <Pass PASS>
void for_act(const NoiseBiasActCall& call) {
    switch (call.act) {
        case Act::piecewise_linear: return run<PASS>(call);
        case Act::tanh: return run<PASS, Act::tanh>(call);
        case Act::sigmoid: return run<PASS, Act::sigmoid>(call);
        default: break;
    }
    if constexpr (PASS != Pass::backward_from_output_full) {  // silu and softplus take their derivatives from x
        if (call.act == Act::silu) return run<PASS, Act::silu>(call);
        if (call.act == Act::softplus) return run<PASS, Act::softplus>(call);
    }
}

// Whether the passes with "noise" apply.
bool noise_is_per_pixel(const NoiseBiasActCall& call) {
    return call.channels_last && !call.strength_per_channel && call.act == Act::piecewise_linear;
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void noise_bias_act_forward(const NoiseBiasActCall& call) {
    const bool full = call.noise || call.scale || call.post;
    if (!full && call.act == Act::piecewise_linear) {
        call.residual ? run<Pass::forward_residual>(call) : run<Pass::forward>(call);
    } else if (!call.scale && !call.post && !call.residual && noise_is_per_pixel(call)) {
        run<Pass::forward_noise>(call);
    } else {
        for_act<Pass::forward_full>(call);
    }
}

void noise_bias_act_backward(const NoiseBiasActCall& call) {
    if (call.from_output && !call.noise && call.act == Act::piecewise_linear) {
        run<Pass::backward_from_output>(call);
    } else if (call.from_output && noise_is_per_pixel(call)) {
        run<Pass::backward_from_output_noise>(call);
    } else if (call.from_output) {
        for_act<Pass::backward_from_output_full>(call);
    } else if (!call.noise && !call.scale && !call.post && call.act == Act::piecewise_linear) {
        run<Pass::backward_from_biased_input>(call);
    } else {
        for_act<Pass::backward_from_input>(call);
    }
}

void noise_bias_act_double_backward(const NoiseBiasActCall& call) {
    if (call.from_output) {  // piecewise linear: the second derivative is zero, so that x is not needed
        run<Pass::double_from_output>(call);
    } else {
        for_act<Pass::double_from_input>(call);
    }
}

int64_t noise_bias_act_workspace(const NoiseBiasActCall& call) {
    return workspace_elements(call) * arithmetic_bytes(call.dtype);
}

}  // namespace FASTGAN_ISA
