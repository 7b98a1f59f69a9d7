// filtered_lrelu on the CPU, compiled once per instruction set. A task takes 16 channels of one sample and a strip of
// rows, whatever the layout, and walks down: a row of z is the sum of some rows of x, upsampled along x, activated, and
// downsampled along x at once; a row of y is the sum of some of these. So z exists one row at a time, and what is
// kept of earlier rows is as narrow as x and y. A downsampling filter that is not separable keeps rows of z instead.
#include "common/simd.h"

#include <utility>

#include "filtered_lrelu/call.h"
#include "upfirdn2d/cpu.h"

namespace FASTGAN_ISA {

using fastgan::FilteredLreluCall;

namespace {

constexpr int BLOCK = 16;  // channels of a task

// StyleGAN3's filters, which have loops of their own: taps of a phase when upsampling, and taps and factor when
// downsampling by the one that most layers have.
constexpr int TAPS = 6, PAIRED = 12, PAIR_SHIFT = 2;

template <int N>
struct Number {
    static constexpr int value = N;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// Bits of the lanes in which a < b.
template <class V>
inline uint32_t bits_of_less(V a, V b) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes<V>(); ++i) bits |= uint32_t(a[i] < b[i]) << i;
    return bits;
}
#if defined(__AVX512F__)
inline uint32_t bits_of_less(VFloat a, VFloat b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
inline uint32_t bits_of_less(VDouble a, VDouble b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ); }
#elif defined(__AVX2__)
inline uint32_t bits_of_less(VFloat a, VFloat b) {
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
}
inline uint32_t bits_of_less(VDouble a, VDouble b) {
    return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ));
}
#endif

// `yes` in the lanes whose bit is set, `no` in the others.
inline VFloat chosen(uint32_t bits, VFloat yes, VFloat no) {
#if defined(__AVX512F__)
    return (VFloat)_mm512_mask_blend_ps((__mmask16)bits, (__m512)no, (__m512)yes);
#else
    VUint lane;
    for (int i = 0; i < lanes<VFloat>(); ++i) lane[i] = 1u << i;
    return (broadcast_bits(bits) & lane) != 0 ? yes : no;
#endif
}
inline VDouble chosen(uint32_t bits, VDouble yes, VDouble no) {
    for (int i = 0; i < lanes<VDouble>(); ++i) no[i] = bits >> i & 1 ? yes[i] : no[i];
    return no;
}

// out[i] = sum of taps[t] * rows[t][i]; ADD adds that to out.
template <int N, bool ADD, class V, class S>
FASTGAN_NOINLINE void add_rows(const S* const* rows, const S* taps, S* out, int64_t count) {
    V weights[N];
    for (int t = 0; t < N; ++t) weights[t] = broadcast<V>(taps[t]);
    for (int64_t i = 0; i < count; i += lanes<V>()) {
        V total = weights[0] * load(rows[0] + i);
        for (int t = 1; t < N; ++t) total += weights[t] * load(rows[t] + i);
        store(out + i, ADD ? total + load(out + i) : total);
    }
}

// Two sums of the same rows, out = sum of taps[t] * rows[t] and likewise `other`: half the loads, from a cache further away.
template <int N, class V, class S>
FASTGAN_NOINLINE void add_rows_twice(const S* const* rows, const S* taps, const S* other_taps, S* out, S* other,
                                     int64_t count) {
    V weights[N], other_weights[N];
    for (int t = 0; t < N; ++t) weights[t] = broadcast<V>(taps[t]), other_weights[t] = broadcast<V>(other_taps[t]);
    for (int64_t i = 0; i < count; i += lanes<V>()) {
        const V first = load(rows[0] + i);
        V total = weights[0] * first, other_total = other_weights[0] * first;
        for (int t = 1; t < N; ++t) {
            const V row = load(rows[t] + i);
            total += weights[t] * row, other_total += other_weights[t] * row;
        }
        store(out + i, total), store(other + i, other_total);
    }
}

// Two sums of N rows each, of which the second starts SHIFT rows later.
template <int N, int SHIFT, class V, class S>
FASTGAN_NOINLINE void add_rows_shifted(const S* const* rows, const S* taps, S* out, S* other, int64_t count) {
    V weights[N];
    for (int t = 0; t < N; ++t) weights[t] = broadcast<V>(taps[t]);
    for (int64_t i = 0; i < count; i += lanes<V>()) {
        V total = {}, other_total = {};
        for (int t = 0; t < N + SHIFT; ++t) {
            const V row = load(rows[t] + i);
            if (t < N) total += weights[t] * row;
            if (t >= SHIFT) other_total += weights[t - SHIFT] * row;
        }
        store(out + i, total), store(other + i, other_total);
    }
}

// The sum of any number of rows; zeros of none.
template <class V, class S>
void sum_rows(const S* const* rows, const S* taps, int64_t n, S* out, int64_t count) {
    if (n == 0) {
        for (int64_t i = 0; i < count; ++i) out[i] = 0;
        return;
    }
    bool add = false;
    const auto next = [&](auto size) {
        constexpr int N = decltype(size)::value;
        add ? add_rows<N, true, V>(rows, taps, out, count) : add_rows<N, false, V>(rows, taps, out, count);
        rows += N, taps += N, n -= N, add = true;
    };
    while (n >= 12) next(Number<12>());
    if (n >= 6) next(Number<6>());
    if (n >= 3) next(Number<3>());
    if (n >= 2) next(Number<2>());
    if (n >= 1) next(Number<1>());
}

// Sum of weights[k] * in[k], of one vector of each block of channels.
template <int N, class V, class S>
inline V weighted(const V* weights, const S* in) {
    V total = weights[0] * load(in);
    for (int k = 1; k < N; ++k) total += weights[k] * load(in + k * BLOCK);
    return total;
}

// out[o * out_step] = sum of taps[k] * in[o * step + k], o < count, of blocks of channels; ADD adds that to out.
template <int N, bool ADD, class V, class S>
FASTGAN_NOINLINE void filter_row(const S* in, int64_t step, const S* taps, S* out, int64_t out_step, int64_t count) {
    V weights[N];
    for (int k = 0; k < N; ++k) weights[k] = broadcast<V>(taps[k]);
    for (int64_t o = 0; o < count; ++o, in += step * BLOCK, out += out_step * BLOCK) {
        for (int j = 0; j < BLOCK; j += lanes<V>()) {
            const V total = weighted<N>(weights, in + j);
            store(out + j, ADD ? total + load(out + j) : total);
        }
    }
}

template <class V, class S>
void filter_row_by(const S* in, int64_t step, const S* taps, int64_t n, S* out, int64_t out_step, int64_t count,
                   bool add) {
    const auto next = [&](auto size) {
        constexpr int N = decltype(size)::value;
        add ? filter_row<N, true, V>(in, step, taps, out, out_step, count)
            : filter_row<N, false, V>(in, step, taps, out, out_step, count);
        in += N * BLOCK, taps += N, n -= N, add = true;
    };
    while (n >= 12) next(Number<12>());
    if (n >= 6) next(Number<6>());
    if (n >= 3) next(Number<3>());
    if (n >= 2) next(Number<2>());
    if (n >= 1) next(Number<1>());
}

// Where the inputs of an upsampled row or column lie.
struct Phase {
    int64_t first, tap;  // first input, and the tap it meets; `up` taps on is that of the next
    Phase(int64_t place, int64_t up) : first(-floor_div(-place, up)), tap(first * up - place) {}
};

// Taps of a filter, times a factor, in the order in which each phase meets them.
template <class S>
struct Phases {
    int64_t up, size, most;
    Scratch<S> taps;  // [rows, up, most]

    Phases(const S* given, int64_t rows, int64_t size, int64_t up, S factor)
        : up(up), size(size), most(ceil_div(size, up)), taps(rows * up * most) {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t tap = 0; tap < up; ++tap) {
                for (int64_t t = 0; t < count(tap); ++t) {
                    taps.data[(row * up + tap) * most + t] = factor * given[row * size + tap + t * up];
                }
            }
        }
    }
    int64_t count(int64_t tap) const { return tap < size ? ceil_div(size - tap, up) : 0; }
    const S* of(int64_t tap, int64_t row = 0) const { return taps.data + (row * up + tap) * most; }
};

template <class T>
struct Task {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    static constexpr int L = lanes<V>();

    const FilteredLreluCall& call;
    const Phases<S>&up, &up_rows;  // taps along x, or of both axes, with the gains; along y
    const S* down;
    int64_t sample, block, zw;

    int64_t live() const { return min(BLOCK, call.c - block * BLOCK); }

    // Row i of x with the bias; out: the blocks of its columns.
    void read(int64_t i, S* out) const {
        const int64_t c = call.c, first = block * BLOCK, count = live();
        alignas(VECTOR_BYTES) S bias[BLOCK] = {};
        for (int64_t k = 0; call.bias && k < count; ++k) bias[k] = ((const S*)call.bias)[first + k];
        alignas(VECTOR_BYTES) T pixel[BLOCK] = {};
        const T* x = (const T*)call.x;
        const int64_t next = i + 1 < call.h ? call.w * c : 0;  // pixels lie too far apart for hardware prefetchers
        for (int64_t column = 0; column < call.w; ++column, out += BLOCK) {
            const T* from = pixel;
            if (call.channels_last) {
                const T* here = x + ((sample * call.h + i) * call.w + column) * c + first;
                __builtin_prefetch(here + next);
                if (count == BLOCK) {
                    from = here;
                } else {
                    memcpy(pixel, here, count * sizeof(T));
                }
            } else {
                const T* here = x + ((sample * c + first) * call.h + i) * call.w + column;
                for (int64_t k = 0; k < count; ++k) pixel[k] = here[k * call.h * call.w];
            }
            for (int j = 0; j < BLOCK; j += L) store(out + j, load(from + j) + load(bias + j));
        }
    }

    // Row i of y. sums: of each channel, to which its values are added; null for none.
    void write(int64_t i, const S* in, S* sums) const {
        const int64_t c = call.c, first = block * BLOCK, count = live();
        for (int j = 0; sums && j < BLOCK; j += L) {
            V total = load(sums + j);
            V row = {};  // by itself first: fewer roundings of a large sum
            for (int64_t column = 0; column < call.ow; ++column) row += load(in + column * BLOCK + j);
            store(sums + j, total + row);
        }
        alignas(VECTOR_BYTES) T pixel[BLOCK];
        T* y = (T*)call.y;
        const int64_t next = i + 1 < call.oh ? call.ow * c : 0;
        for (int64_t column = 0; column < call.ow; ++column, in += BLOCK) {
            T* here = y + ((sample * call.oh + i) * call.ow + column) * c + first;
            T* to = call.channels_last && count == BLOCK ? here : pixel;
            if (call.channels_last) __builtin_prefetch(here + next, 1);
            for (int j = 0; j < BLOCK; j += L) store(to + j, load(in + j));
            if (to == here) continue;
            if (call.channels_last) {
                memcpy(here, pixel, count * sizeof(T));
            } else {
                here = y + ((sample * c + first) * call.oh + i) * call.ow + column;
                for (int64_t k = 0; k < count; ++k) here[k * call.oh * call.ow] = pixel[k];
            }
        }
    }

    // The row of the signs at row r of z; null outside of them.
    uint32_t* signs_of(int64_t r) const {
        const int64_t row = r + call.signs_top;
        if (row < 0 || row >= call.signs_h) return nullptr;
        const int64_t blocks = ceil_div(call.c, BLOCK);
        return (uint32_t*)call.signs + ((sample * blocks + block) * call.signs_h + row) * call.signs_w;
    }

    // What makes values of z of upsampled ones: lanes [j, j + L) of a block. Both gains are in the taps already.
    // Slopes: the values choose them, do so and are kept as signs, or the signs choose them.
    enum Slopes { CHOSEN, KEPT, READ };

    template <Slopes SLOPES>
    struct Activation {
        V slope, limit;
        explicit Activation(const FilteredLreluCall& call)
            : slope(broadcast<V>(S(call.slope))), limit(broadcast<V>(S(call.clamp))) {}

        // signs: of the block; written if KEPT, from j = 0 on.
        V operator()(V u, int j, uint32_t* signs) const {
            const V zero = {}, one = broadcast<V>(S(1));
            if constexpr (SLOPES == READ) {
                return u * chosen(*signs >> (j + BLOCK), zero, chosen(*signs >> j, slope, one));
            } else {
                if constexpr (SLOPES == KEPT) {
                    const uint32_t below = bits_of_less(u, zero);
                    u = chosen(below, u * slope, u);
                    const uint32_t bits = below << j | bits_of_less(limit, absolute(u)) << (j + BLOCK);
                    *signs = j == 0 ? bits : *signs | bits;
                } else {
                    u = u < zero ? u * slope : u;
                }
                u = u > limit ? limit : u;  // NaN stays
                return u < -limit ? -limit : u;
            }
        }
    };

    // A row of z from the upsampled values, in place. signs: of its columns.
    template <Slopes SLOPES>
    void activate(S* row, uint32_t* signs) const {
        const Activation<SLOPES> activation(call);
        for (int64_t p = 0; p < zw; ++p, row += BLOCK) {
            for (int j = 0; j < BLOCK; j += L) {
                store(row + j, activation(load(row + j), j, SLOPES == CHOSEN ? nullptr : signs + p));
            }
        }
    }

    // The same from a row that is only upsampled along y so far: every up-th column, by N taps from `in` on.
    template <int N, Slopes SLOPES>
    FASTGAN_NOINLINE void upsample_and_activate(const S* in, const S* taps, S* out, uint32_t* signs,
                                                int64_t count) const {
        const Activation<SLOPES> activation(call);
        V weights[N];
        for (int k = 0; k < N; ++k) weights[k] = broadcast<V>(taps[k]);
        for (int64_t o = 0; o < count; ++o, in += BLOCK, out += call.up * BLOCK) {
            for (int j = 0; j < BLOCK; j += L) {
                const V u = weighted<N>(weights, in + j);
                store(out + j, activation(u, j, SLOPES == CHOSEN ? nullptr : signs + o * call.up));
            }
        }
    }

    // The signs of row r of z as its columns lie; outside of them z is zero, which the marks of clamped values make it.
    void read_signs(int64_t r, uint32_t* out) const {
        const uint32_t* row = signs_of(r);
        const int64_t first = row ? clamped(-call.signs_left) : zw;
        const int64_t end = row ? max(first, clamped(call.signs_w - call.signs_left)) : zw;
        for (int64_t p = 0; p < first; ++p) out[p] = 0xffff0000u;
        if (first < end) memcpy(out + first, row + first + call.signs_left, (end - first) * sizeof(uint32_t));
        for (int64_t p = end; p < zw; ++p) out[p] = 0xffff0000u;
    }
    int64_t clamped(int64_t column) const { return min(max(column, 0), zw); }

    // out: a row of z upsampled along x from `in`, which has `before` columns of zeros on its left; ADD adds to it.
    void upsample(const S* in, int64_t before, int64_t tap_row, S* out, bool add) const {
        for (int64_t p = 0; p < min(call.up, zw); ++p) {
            const Phase phase(p - call.left, call.up);
            const int64_t count = ceil_div(zw - p, call.up), n = up.count(phase.tap);
            if (n == 0) {
                for (int64_t o = 0; !add && o < count; ++o) {
                    for (int j = 0; j < BLOCK; ++j) out[(p + o * call.up) * BLOCK + j] = 0;
                }
                continue;
            }
            filter_row_by<V>(in + (before + phase.first) * BLOCK, 1, up.of(phase.tap, tap_row), n, out + p * BLOCK,
                             call.up, count, add);
        }
    }

    // A row of z from a row that is upsampled along y only, or from one that is `upsampled` along both already.
    template <Slopes SLOPES>
    void finish(const S* in, int64_t before, S* out, uint32_t* signs, bool upsampled) const {
        if (!upsampled && up.size == TAPS * call.up) {
            for (int64_t p = 0; p < min(call.up, zw); ++p) {
                const Phase phase(p - call.left, call.up);
                upsample_and_activate<TAPS, SLOPES>(in + (before + phase.first) * BLOCK, up.of(phase.tap),
                                                    out + p * BLOCK, signs ? signs + p : nullptr,
                                                    ceil_div(zw - p, call.up));
            }
        } else {
            if (!upsampled) upsample(in, before, 0, out, false);
            activate<SLOPES>(out, signs);
        }
    }

    // Rows [begin, end) of y. sums: as `write` has it.
    void run(int64_t begin, int64_t end, S* sums) const {
        const int64_t last_column = Phase(zw - 1 - call.left, call.up).first + up.most - 1;
        const int64_t before = max(0, -Phase(-call.left, call.up).first), after = max(0, last_column - call.w + 1);
        const int64_t x_row = (before + call.w + after) * BLOCK, z_row = zw * BLOCK, y_row = call.ow * BLOCK;
        const bool in_pairs = call.down_separable && call.down_size == PAIRED && call.down == PAIR_SHIFT;
        const int64_t kept = up.most + 1, collected = call.down_size + call.down;
        const int64_t collected_row = call.down_separable ? y_row : z_row;
        Scratch<S> memory(kept * x_row + 2 * x_row + z_row + collected * collected_row + 2 * y_row);
        S *xs = memory.data, *v = xs + kept * x_row, *next_v = v + x_row, *z = next_v + x_row, *downs = z + z_row;
        S *y = downs + collected * collected_row, *next_y = y + y_row;
        Scratch<const S*> rows(max(up.most, collected));
        Scratch<uint32_t> masks(zw);
        for (int64_t i = 0; i < kept * x_row; ++i) xs[i] = 0;

        int64_t next_x = max(0, Phase(begin * call.down - call.top, call.up).first), next_z = begin * call.down;
        bool has_next_v = false;
        for (int64_t j = begin; j < end;) {
            const int64_t count = in_pairs && j + 1 < end ? 2 : 1;
            const int64_t end_z = (j + count - 1) * call.down + call.down_size;
            for (; next_z < end_z; ++next_z) {
                const Phase phase(next_z - call.top, call.up), next_phase(next_z + 1 - call.top, call.up);
                const int64_t n = up.count(phase.tap), from = max(0, phase.first), to = min(call.h, phase.first + n);
                for (next_x = max(next_x, from); next_x < to; ++next_x) {
                    read(next_x, xs + next_x % kept * x_row + before * BLOCK);
                }
                S* row = call.down_separable ? z : downs + next_z % collected * collected_row;
                if (has_next_v) {
                    std::swap(v, next_v);
                    has_next_v = false;
                } else if (call.up_separable) {
                    for (int64_t i = from; i < to; ++i) rows.data[i - from] = xs + i % kept * x_row;
                    const S *taps = up_rows.of(phase.tap), *next_taps = up_rows.of(next_phase.tap);
                    has_next_v = next_phase.first == phase.first && to - from == TAPS && n == TAPS &&
                                 up.count(next_phase.tap) == TAPS;
                    if (has_next_v) {
                        add_rows_twice<TAPS, V>(rows.data, taps, next_taps, v, next_v, x_row);
                    } else {
                        sum_rows<V>(rows.data, taps + (from - phase.first), max(0, to - from), v, x_row);
                    }
                } else {
                    for (int64_t i = from; i < to; ++i) {
                        const S* in = xs + i % kept * x_row;
                        upsample(in, before, phase.tap + (i - phase.first) * call.up, row, i > from);
                    }
                    for (int64_t i = 0; to <= from && i < z_row; ++i) row[i] = 0;
                }
                if (call.reads_signs) {
                    read_signs(next_z, masks.data);
                    finish<READ>(v, before, row, masks.data, !call.up_separable);
                } else if (call.writes_signs && (next_z < end * call.down || end == call.oh)) {
                    finish<KEPT>(v, before, row, signs_of(next_z), !call.up_separable);
                } else {  // the next strip computes further rows again
                    finish<CHOSEN>(v, before, row, nullptr, !call.up_separable);
                }
                if (call.down_separable) {
                    S* out = downs + next_z % collected * collected_row;
                    filter_row_by<V>(row, call.down, down, call.down_size, out, 1, call.ow, false);
                }
            }
            for (int64_t k = 0; k < end_z - j * call.down; ++k) {
                const S* row = downs + (j * call.down + k) % collected * collected_row;
                rows.data[k] = row;
                if (!call.down_separable) {
                    filter_row_by<V>(row, call.down, down + k * call.down_size, call.down_size, y, 1, call.ow, k > 0);
                }
            }
            if (count == 2) {
                add_rows_shifted<PAIRED, PAIR_SHIFT, V>(rows.data, down, y, next_y, y_row);
                write(j + 1, next_y, sums);
            } else if (call.down_separable) {
                sum_rows<V>(rows.data, down, call.down_size, y, y_row);
            }
            write(j, y, sums);
            j += count;
        }
    }
};

constexpr int64_t LEAST_ROWS = 16;  // of a strip: it computes some rows that its neighbour computes as well

template <class T>
void run(const FilteredLreluCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    const int64_t blocks = ceil_div(call.c, BLOCK), tasks = call.n * blocks;
    if (tasks * call.oh * call.ow == 0) return;
    const int64_t wanted = tasks < 4 * max_threads() ? ceil_div(4 * max_threads(), tasks) : 1;
    const int64_t strips = max(1, min(wanted, call.oh / LEAST_ROWS)), rows = ceil_div(call.oh, strips);
    const S* taps = (const S*)call.up_taps;
    const Phases<S> up(taps, call.up_separable ? 1 : call.up_size, call.up_size, call.up, S(call.up_gain * call.gain));
    const Phases<S> up_rows(taps, 1, call.up_size, call.up, S(1));
    const int64_t zw = (call.ow - 1) * call.down + call.down_size;
    Scratch<S> sums(call.dbias ? tasks * strips * BLOCK : 0);
    parallel_for(tasks * strips, worth_threads(tasks * BLOCK * call.oh * call.ow), [&](int64_t i) {
        const int64_t task = i / strips, begin = i % strips * rows;
        S* own = call.dbias ? sums.data + i * BLOCK : nullptr;
        for (int k = 0; own && k < BLOCK; ++k) own[k] = 0;
        if (begin >= call.oh) return;
        const Task<T> one{call, up, up_rows, (const S*)call.down_taps, task / blocks, task % blocks, zw};
        one.run(begin, min(begin + rows, call.oh), own);
    });
    for (int64_t channel = 0; call.dbias && channel < call.c; ++channel) {
        S total = 0;
        for (int64_t sample = 0; sample < call.n; ++sample) {
            const S* of = sums.data + (sample * blocks + channel / BLOCK) * strips * BLOCK + channel % BLOCK;
            for (int64_t strip = 0; strip < strips; ++strip) total += of[strip * BLOCK];
        }
        ((S*)call.dbias)[channel] = total;
    }
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).
void filtered_lrelu_forward(const FilteredLreluCall& call) {
    for_dtype(call.dtype, [&](auto element) { run<decltype(element)>(call); });
}

void filtered_lrelu_backward(const FilteredLreluCall& call) { filtered_lrelu_forward(call); }

}  // namespace FASTGAN_ISA
