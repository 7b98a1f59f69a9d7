// noise_bias_act on the CPU: compiled once for each instruction set, in the namespace of that name.
//
// Two drivers, one a layout, walk memory in its own order; what is done at an element is `Element`. Every piece of work
// (some positions of a sample, or of a channel of it) is of a size that depends on the shape alone, and writes its own
// sums, which are then added up in order: results do not depend on the number of threads.
#include "common/simd.h"

#include "noise_bias_act/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::Dtype;
using fastgan::MAX_SUMS;
using fastgan::NoiseBiasActCall;

// Those with the plainer names are for calls with a bias at most: a critic's layers. Those called "noise" have one
// strength for all channels and neither scale nor post, in NHWC: then what noise there is belongs to a pixel.
enum class Pass {
    forward,
    forward_noise,
    forward_full,
    backward_from_output,
    backward_from_output_noise,
    backward_from_output_full,
    backward_from_input,
    double_from_output,
    double_from_input
};

struct Pieces {
    int64_t positions;   // of a sample, to a piece
    int64_t per_sample;  // pieces
    int64_t stride;      // channels, rounded up to the widest vector
};

static Pieces pieces_of(const NoiseBiasActCall& call) {
    const int64_t elements = 16384;  // of a piece: enough to hide its start, few enough to share out evenly
    Pieces pieces;
    int64_t width = call.channels_last ? call.c : 1;
    pieces.positions = elements / (width > 0 ? width : 1);
    if (pieces.positions < 32) pieces.positions = 32;
    if (call.channels_last && pieces.positions > 128)
        pieces.positions = 128;  // a longer chain of additions would round more
    if (pieces.positions > call.p) pieces.positions = call.p > 0 ? call.p : 1;
    pieces.per_sample = (call.p + pieces.positions - 1) / pieces.positions;
    pieces.stride = (call.c + 31) / 32 * 32;
    return pieces;
}

static const int SMALL_ARRAYS = 8;  // scale, strength, bias, post and their cotangents, padded, a row for each sample

// In elements of the arithmetic type.
static int64_t workspace_elements(const NoiseBiasActCall& call) {
    Pieces pieces = pieces_of(call);
    return call.n * pieces.stride * (pieces.per_sample * MAX_SUMS + SMALL_ARRAYS);
}

// What is done at the elements from index i on: one vector of them, or the first `count` of one.
template <Pass PASS, Act ACT, class T, bool LIMITED>
struct Element {
    typedef T Stored;
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    static constexpr bool is_forward =
        PASS == Pass::forward || PASS == Pass::forward_noise || PASS == Pass::forward_full;
    static constexpr bool from_output = PASS == Pass::backward_from_output ||
                                        PASS == Pass::backward_from_output_noise ||
                                        PASS == Pass::backward_from_output_full;
    static constexpr bool of_pixel = PASS == Pass::forward_noise || PASS == Pass::backward_from_output_noise;
    static constexpr int SUMS = PASS == Pass::backward_from_output         ? 1
                                : PASS == Pass::backward_from_output_noise ? 2
                                : PASS == Pass::backward_from_output_full  ? 2
                                : PASS == Pass::backward_from_input        ? 4
                                : PASS == Pass::double_from_input          ? 4
                                                                           : 0;
    // How many groups have their sums in registers, half of which these may take; 0 where arithmetic takes so long that it
    // does not matter. Rows of just so many groups, and of half of that, are dealt with so. A wider row comes in columns
    // of so many only if memory is not what it waits for: then whole rows, one after the other, are quicker.
    static constexpr int REGISTERS = VECTOR_BYTES == 64 ? 32 : 16;
    static constexpr int MOST = SUMS == 0 ? 0 : REGISTERS / 2 / SUMS < 8 ? REGISTERS / 2 / SUMS : 8;
    static constexpr int HELD = ACT == Act::piecewise_linear ? MOST / Group<T>::vectors : 0;
    static constexpr bool by_columns = VECTOR_BYTES == 64 && SUMS == 4 && sizeof(T) == 2;
    // What the hardware does by itself where there is little to be done in between (measured with AVX-512 only).
    static constexpr bool plain = PASS == Pass::forward || PASS == Pass::backward_from_output || of_pixel;
    static constexpr bool fetches = VECTOR_BYTES < 64 || !plain;

    Shape<V, LIMITED> shape;
    const T *x, *dy, *reference, *gx;
    T *first, *second;  // the outputs
    bool streamed;

    explicit Element(const NoiseBiasActCall& call)
        : shape(shape_of<V, LIMITED>(S(call.slope), S(call.gain), S(call.clamp))),
          x((const T*)call.x),
          dy((const T*)call.dy),
          reference((const T*)call.reference),
          gx((const T*)call.gx) {
        bool twice = PASS == Pass::double_from_output || PASS == Pass::double_from_input;
        first = (T*)(is_forward ? call.y : twice ? call.ddy : call.dx);
        second = PASS == Pass::double_from_input ? (T*)call.dx : nullptr;
        // What does not fit into the caches anyway goes past them: a plain store would first read what it overwrites.
        const int64_t large = 24 << 20;
        const int64_t row = call.channels_last ? call.c : call.p,
                      size = call.channels_last ? Group<T>::size : lanes<V>();
        const bool aligned =
            (uintptr_t)first % VECTOR_BYTES == 0 && (uintptr_t)second % VECTOR_BYTES == 0 && row % size == 0;
        streamed = aligned && call.n * call.c * call.p * (int64_t)sizeof(T) >= large;
    }

    // The arithmetic. `a` is x in a forward pass, else dy; `b` is what the derivative comes from, `c` is gx.
    static Second<V> value(V a, V b, V c, const Small<V>& s, const Small<V>& g, const Shape<V, LIMITED>& shape,
                           Sums<V>& sums) {
        if constexpr (is_forward) {
            return {forward<ACT, PASS == Pass::forward_full>(a, s, shape), a};
        } else if constexpr (from_output) {
            return {backward_from_output<ACT>(a, b, s.noise, shape, sums), a};
        } else if constexpr (PASS == Pass::backward_from_input) {
            return {backward_from_input<ACT>(a, b, s, shape, sums), a};
        } else if constexpr (PASS == Pass::double_from_output) {
            return {double_backward_from_output<ACT>(b, c, s.noise, g, shape), a};
        } else {
            return double_backward_from_input<ACT>(a, b, c, s, g, shape, sums);
        }
    }
    static constexpr bool reads_dy = !is_forward && PASS != Pass::double_from_output;
    static constexpr bool reads_gx = PASS == Pass::double_from_output || PASS == Pass::double_from_input;
    static constexpr bool has_second = PASS == Pass::double_from_input;

    // At consecutive positions of one channel: a vector, or the first `count` elements of one.
    template <bool PART>
    inline void at(int64_t i, int64_t count, const Small<V>& s, const Small<V>& g, Sums<V>& sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_n(p + i, count);
            if constexpr (fetches) prefetch<4096>(p + i);
            return load(p + i);
        };
        V a = {}, b = {}, c = {};
        if constexpr (is_forward) a = get(x);
        if constexpr (reads_dy) a = get(dy);
        if constexpr (!is_forward) b = get(reference);
        if constexpr (reads_gx) c = get(gx);
        const Second<V> result = value(a, b, c, s, g, shape, sums);
        put<PART>(first + i, result.ddy, count, streamed);
        if constexpr (has_second) put<PART>(second + i, result.dx, count, streamed);
    }

    // At consecutive channels of one pixel: a group, or the first `count` channels of one. For each of its vectors there
    // are the small tensors, and a place for the sums.
    template <bool PART>
    inline void at_group(int64_t i, int64_t count, const Small<V>* s, const Small<V>* g, Sums<V>* sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_group_n(p + i, count);
            if constexpr (fetches) prefetch<4096>(p + i);
            return load_group(p + i);
        };
        Group<T> a = {}, b = {}, c = {}, out, also;
        if constexpr (is_forward) a = get(x);
        if constexpr (reads_dy) a = get(dy);
        if constexpr (!is_forward) b = get(reference);
        if constexpr (reads_gx) c = get(gx);
        for (int k = 0; k < Group<T>::vectors; ++k) {
            const Second<V> result = value(a.v[k], b.v[k], c.v[k], s[k], g[k], shape, sums[k]);
            out.v[k] = result.ddy, also.v[k] = result.dx;
        }
        put_group<PART>(first + i, out, count, streamed);
        if constexpr (has_second) put_group<PART>(second + i, also, count, streamed);
    }
};

// Where a channel stands in a row that is laid out in the order of groups.
template <class T>
static inline int64_t slot_of(int64_t channel) {
    const int size = Group<T>::size;
    return channel / size * size + Group<T>::slot(channel % size);
}

// A small tensor as the pixels driver reads it: a row of channels for each sample, in the order of groups, padded, never
// null.
template <class S>
struct Rows {
    const S* data;
    int64_t per_sample;  // 0 where one row serves all

    const S* of(int64_t sample) const { return data + sample * per_sample; }
};

template <class T, class S>
static Rows<S> padded(const void* given, bool per_sample, bool scalar, S absent, int64_t n, int64_t c, int64_t stride,
                      S*& space) {
    int64_t rows = given && per_sample ? n : 1;
    S* start = space;
    for (int64_t r = 0; r < rows; ++r) {
        const S* from = (const S*)given + (per_sample ? r * c : 0);
        for (int64_t i = 0; i < stride; ++i) {
            start[r * stride + slot_of<T>(i)] = !given ? absent : i < c ? from[scalar ? 0 : i] : absent;
        }
    }
    space += rows * stride;
    return {start, rows > 1 ? stride : 0};
}

struct Whole {  // group of channels
    static constexpr bool part = false;
};
struct Part {  // of one
    static constexpr bool part = true;
};
template <int N>
struct Groups {  // so many of them
    static constexpr int count = N;
};

// NHWC: a piece is some whole pixels; the small tensors and the sums are rows of channels.
template <class E>
static void nhwc(const NoiseBiasActCall& call, const E& shared, const Pieces& pieces, typename E::S* partial,
                 typename E::S* space) {
    typedef typename E::S S;
    typedef typename E::V V;
    typedef typename E::Stored T;
    constexpr int VECTORS = Group<T>::vectors;
    const int64_t n = call.n, width = Group<T>::size;
    const bool strength_is_scalar = !call.strength_per_channel;
    auto small = [&](const void* given, bool per_sample, bool scalar, S absent) {
        return padded<T, S>(given, per_sample, scalar, absent, n, call.c, pieces.stride, space);
    };
    const Rows<S> scale = small(call.scale, true, false, 1);
    const Rows<S> strength = small(call.strength, false, strength_is_scalar, 1);
    const Rows<S> bias = small(call.bias, false, false, 0);
    const Rows<S> post = small(call.post, true, false, 1);
    const Rows<S> gscale = small(call.gscale, true, false, 0);
    const Rows<S> gstrength = small(call.gstrength, false, strength_is_scalar, 0);
    const Rows<S> gbias = small(call.gbias, false, false, 0);
    const Rows<S> gpost = small(call.gpost, true, false, 0);
    const S* noise = (const S*)call.noise;

    const S strength_of_all = E::of_pixel && call.strength ? *(const S*)call.strength : S(1);
    const int64_t count = n * pieces.per_sample;

    parallel_for(count, n * call.c * call.p > 16384, [&](int64_t piece) {
        // Copies, which no store can alias: what would be read anew at each pixel holds up the stores before it.
        const E element = shared;
        const int64_t c = call.c, p = call.p, whole = c / width * width, stride = pieces.stride;
        const int64_t sample = piece / pieces.per_sample;
        const int64_t begin = (piece % pieces.per_sample) * pieces.positions;
        const int64_t end = begin + pieces.positions < p ? begin + pieces.positions : p;
        const S *a = scale.of(sample), *k = strength.of(sample), *b = bias.of(sample), *t = post.of(sample);
        const S *ga = gscale.of(sample), *gk = gstrength.of(sample), *gb = gbias.of(sample), *gt = gpost.of(sample);
        const S* field = noise ? noise + (call.noise_per_sample ? sample * p : 0) : nullptr;
        auto drawn_at = [&](int64_t position) { return field ? field[position] : S(0); };
        // Of the vector at channel i, where the noise is `here`.
        auto tensors = [&](int64_t i, V here, Small<V>& s, Small<V>& g) {
            if constexpr (E::of_pixel) {
                s.bias = load(b + i) + here, s.noise = here;
            } else {
                s = {load(a + i), load(k + i), load(b + i), load(t + i), here};
                g = {load(ga + i), load(gk + i), load(gb + i), load(gt + i), here};
            }
        };

        S* sums = partial + piece * E::SUMS * stride;
        V of_all_channels = broadcast<V>(0);  // the gradient of strength: the rest of its row is zero

        // One pixel after the other: several at once would share loads, but interleave their streaming stores.
        auto rows = [&] {
            for (int64_t i = 0; i < E::SUMS * stride; ++i) sums[i] = 0;
            for (int64_t position = begin; position < end; ++position) {
                const int64_t at = (sample * p + position) * c;
                const S drawn = drawn_at(position);
                const V here = broadcast<V>(E::of_pixel && E::is_forward ? drawn * strength_of_all : drawn);
                V over_channels = broadcast<V>(0);
                auto group = [&](auto extent, int64_t j) {
                    Small<V> s[VECTORS], g[VECTORS];
                    Sums<V> d[VECTORS];
                    for (int v = 0; v < VECTORS; ++v) tensors(j + v * lanes<V>(), here, s[v], g[v]);
                    element.template at_group<decltype(extent)::part>(at + j, c - j, s, g, d);
                    for (int v = 0; E::SUMS > 0 && v < VECTORS; ++v) {
                        S* row = sums + j + v * lanes<V>();
                        store(row, load(row) + d[v].bias);
                        if constexpr (E::of_pixel) {
                            over_channels += d[v].bias;
                        } else if constexpr (E::SUMS >= 2) {
                            store(row + stride, load(row + stride) + d[v].strength);
                        }
                        if constexpr (E::SUMS == 4) {
                            store(row + 2 * stride, load(row + 2 * stride) + d[v].scale);
                            store(row + 3 * stride, load(row + 3 * stride) + d[v].post);
                        }
                    }
                };
                for (int64_t j = 0; j < whole; j += width) group(Whole{}, j);
                if (whole < c) group(Part{}, whole);
                if constexpr (E::of_pixel && E::SUMS > 0) of_all_channels += here * over_channels;
            }
        };

        // Some groups of all pixels, whose sums stay in registers. (No lambda may see these: in memory, each addition
        // would wait for the store of the one before.)
        auto columns = [&](auto groups, int64_t j) {
            constexpr int COUNT = decltype(groups)::count * VECTORS;
            V total[E::SUMS][COUNT];
#pragma GCC unroll 32
            for (int i = 0; i < E::SUMS * COUNT; ++i) total[i / COUNT][i % COUNT] = broadcast<V>(0);
            V of_channels = broadcast<V>(0);
            for (int64_t position = begin; position < end; ++position) {
                const int64_t at = (sample * p + position) * c;
                const V here = broadcast<V>(drawn_at(position));
                V over_channels = broadcast<V>(0);
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; i += VECTORS) {
                    Small<V> s[VECTORS], g[VECTORS];
                    Sums<V> d[VECTORS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) tensors(j + (i + v) * lanes<V>(), here, s[v], g[v]);
                    element.template at_group<false>(at + j + i * lanes<V>(), width, s, g, d);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) {
                        total[0][i + v] += d[v].bias;
                        if constexpr (E::of_pixel) {
                            over_channels += d[v].bias;
                        } else if constexpr (E::SUMS >= 2) {
                            total[1][i + v] += d[v].strength;
                        }
                        if constexpr (E::SUMS == 4) {
                            total[2][i + v] += d[v].scale;
                            total[3][i + v] += d[v].post;
                        }
                    }
                }
                if constexpr (E::of_pixel) of_channels += here * over_channels;
            }
            of_all_channels += of_channels;
#pragma GCC unroll 32
            for (int i = 0; i < E::SUMS * COUNT; ++i) {
                store(sums + i / COUNT * stride + j + i % COUNT * lanes<V>(), total[i / COUNT][i % COUNT]);
            }
        };

        if constexpr (E::HELD == 0) {
            rows();
        } else {
            if (c == E::HELD * width || (E::by_columns && c % (E::HELD * width) == 0)) {
                for (int64_t j = 0; j < c; j += E::HELD * width) columns(Groups<E::HELD>{}, j);
            } else if (E::HELD >= 4 && c == E::HELD / 2 * width) {
                columns(Groups<E::HELD / 2 ? E::HELD / 2 : 1>{}, 0);
            } else {
                rows();
            }
        }
        if constexpr (E::of_pixel && E::SUMS > 0) store(sums + stride, of_all_channels);
        if (element.streamed) stream_fence();
    });
}

// NCHW: a piece is some positions of one channel; the small tensors are single numbers, the noise is a row.
template <class E>
static void nchw(const NoiseBiasActCall& call, const E& shared, const Pieces& pieces, typename E::S* partial) {
    typedef typename E::S S;
    typedef typename E::V V;
    const int64_t n = call.n, c = call.c, p = call.p, width = lanes<V>();
    auto number = [](const void* given, int64_t i, S absent) {
        return broadcast<V>(given ? ((const S*)given)[i] : absent);
    };
    const S* noise = (const S*)call.noise;

    const int64_t count = n * c * pieces.per_sample;

    parallel_for(count, n * c * p > 16384, [&](int64_t piece) {
        const E element = shared;  // a copy that no store can alias
        const int64_t row = piece / pieces.per_sample, segment = piece % pieces.per_sample;
        const int64_t sample = row / c, channel = row % c, one = call.strength_per_channel ? channel : 0;
        const int64_t begin = segment * pieces.positions;
        const int64_t end = begin + pieces.positions < p ? begin + pieces.positions : p;
        const S* field = noise ? noise + (call.noise_per_sample ? sample * p : 0) : nullptr;
        const V zero = broadcast<V>(S(0));
        Small<V> s = {number(call.scale, row, 1), number(call.strength, one, 1), number(call.bias, channel, 0),
                      number(call.post, row, 1), zero};
        Small<V> g = {number(call.gscale, row, 0), number(call.gstrength, one, 0), number(call.gbias, channel, 0),
                      number(call.gpost, row, 0), zero};
        Sums<V> total = {zero, zero, zero, zero};
        auto add = [&](const Sums<V>& d) {  // lanes past the end of a row have a gradient of zero: they add nothing
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
            if (field) s.noise = load(field + i);
            element.template at<false>(row * p + i, width, s, g, d);
            add(d);
        }
        if (i < end) {
            Sums<V> d;
            if (field) s.noise = load_n(field + i, end - i);
            element.template at<true>(row * p + i, end - i, s, g, d);
            add(d);
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
    });
}

// Adds up the pieces' sums, [N, pieces, SUMS, stride], into the gradients that were asked for.
template <class T, int SUMS, class S>
static void finish(const NoiseBiasActCall& call, const Pieces& pieces, const S* partial) {
    const int64_t n = call.n, c = call.c;
    const int block = 64;  // channels at a time, added up in double precision
    auto add = [&](int which, int64_t first, int64_t last, int64_t channel, double* total) {
        const int64_t width = c - channel < block ? c - channel : block;
        for (int64_t j = 0; j < block; ++j) total[j] = 0;
        for (int64_t piece = first; piece < last; ++piece) {
            const S* from = partial + (piece * SUMS + which) * pieces.stride + channel;
            const int64_t there = pieces.stride - channel < block ? pieces.stride - channel : block;
            for (int64_t j = 0; j < there; ++j) total[j] += from[j];
        }
        if (call.channels_last && Group<T>::vectors > 1) {  // out of the order of groups
            double ordered[block];
            for (int64_t j = 0; j < width; ++j) ordered[j] = total[slot_of<T>(j)];
            for (int64_t j = 0; j < width; ++j) total[j] = ordered[j];
        }
        return width;
    };
    auto each = [&](int which, void* to, bool per_sample) {
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
    if (SUMS >= 2 && call.dstrength && call.strength_per_channel) each(1, call.dstrength, false);
    if (SUMS >= 2 && call.dstrength && !call.strength_per_channel) {
        double total[block], all_channels = 0;
        for (int64_t channel = 0; channel < c; channel += block) {
            int64_t width = add(1, 0, n * pieces.per_sample, channel, total);
            while (width > 1) {  // in pairs, which rounds less than one after the other
                for (int64_t j = 0; j < width / 2; ++j) total[j] += total[width - 1 - j];
                width = (width + 1) / 2;
            }
            all_channels += total[0];
        }
        *(S*)call.dstrength = S(all_channels);
    }
    if constexpr (SUMS == 4) {
        if (call.dscale) each(2, call.dscale, true);
        if (call.dpost) each(3, call.dpost, true);
    }
}

template <Pass PASS, Act ACT, class T, bool LIMITED>
static void walk(const NoiseBiasActCall& call) {
    typedef Element<PASS, ACT, T, LIMITED> E;
    typedef typename E::S S;
    const Pieces pieces = pieces_of(call);
    S* partial = (S*)call.workspace;
    S* space = partial + call.n * pieces.per_sample * E::SUMS * pieces.stride;
    const E element(call);
    if (call.channels_last) {
        nhwc(call, element, pieces, partial, space);
    } else {
        nchw(call, element, pieces, partial);
    }
    if constexpr (E::SUMS > 0) finish<T, E::SUMS>(call, pieces, partial);
}

template <Pass PASS, Act ACT, class T>
static void run(const NoiseBiasActCall& call) {
    if constexpr (ACT == Act::piecewise_linear) {  // of the others the arithmetic takes longer anyway
        if (call.clamp == __builtin_inf()) return walk<PASS, ACT, T, false>(call);
    }
    walk<PASS, ACT, T, true>(call);
}

template <Pass PASS, Act ACT>
static void for_dtype(const NoiseBiasActCall& call) {
    switch (call.dtype) {
        case Dtype::float32: return run<PASS, ACT, float>(call);
        case Dtype::bfloat16: return run<PASS, ACT, BFloat16>(call);
        case Dtype::float16: return run<PASS, ACT, Float16>(call);
        case Dtype::float64: return run<PASS, ACT, double>(call);
    }
}

template <Pass PASS>
static void for_act(const NoiseBiasActCall& call) {
    switch (call.act) {
        case Act::piecewise_linear: return for_dtype<PASS, Act::piecewise_linear>(call);
        case Act::tanh: return for_dtype<PASS, Act::tanh>(call);
        case Act::sigmoid: return for_dtype<PASS, Act::sigmoid>(call);
        default: break;
    }
    if constexpr (PASS != Pass::backward_from_output_full) {  // the derivatives of these two are told from x
        if (call.act == Act::silu) return for_dtype<PASS, Act::silu>(call);
        if (call.act == Act::softplus) return for_dtype<PASS, Act::softplus>(call);
    }
}

// The entry points: FASTGAN_CPU_ENTRY of common/isa.h calls those of the instruction set in use.

// Whether the passes called "noise" serve.
static bool is_of_pixel(const NoiseBiasActCall& call) {
    return call.channels_last && !call.strength_per_channel && call.act == Act::piecewise_linear;
}

void noise_bias_act_forward(const NoiseBiasActCall& call) {
    const bool full = call.noise || call.scale || call.post;
    if (!full && call.act == Act::piecewise_linear) {
        for_dtype<Pass::forward, Act::piecewise_linear>(call);
    } else if (!call.scale && !call.post && is_of_pixel(call)) {
        for_dtype<Pass::forward_noise, Act::piecewise_linear>(call);
    } else {
        for_act<Pass::forward_full>(call);
    }
}

void noise_bias_act_backward(const NoiseBiasActCall& call) {
    if (call.from_output && !call.noise && call.act == Act::piecewise_linear) {
        for_dtype<Pass::backward_from_output, Act::piecewise_linear>(call);
    } else if (call.from_output && is_of_pixel(call)) {
        for_dtype<Pass::backward_from_output_noise, Act::piecewise_linear>(call);
    } else if (call.from_output) {
        for_act<Pass::backward_from_output_full>(call);
    } else {
        for_act<Pass::backward_from_input>(call);
    }
}

void noise_bias_act_double_backward(const NoiseBiasActCall& call) {
    if (call.from_output) {  // the slope is constant but for its jumps: only then is there no need of x
        for_dtype<Pass::double_from_output, Act::piecewise_linear>(call);
    } else {
        for_act<Pass::double_from_input>(call);
    }
}

int64_t noise_bias_act_workspace(const NoiseBiasActCall& call) {
    return workspace_elements(call) * (call.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

}  // namespace FASTGAN_ISA
