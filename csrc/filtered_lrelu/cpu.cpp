// filtered_lrelu on the CPU, compiled once per instruction set. A task takes 16 channels of one sample and a strip of
// rows, whatever the layout, and walks down: rows of x are upsampled along x as they are needed, a row of z is the sum of
// some of them, activated and downsampled along x at once, and a row of y is the sum of some of these. So z exists one
// row at a time. Filters that are not separable keep rows of x and z instead.
#include "common/simd.h"

#include "filtered_lrelu/call.h"
#include "upfirdn2d/cpu.h"

namespace FASTGAN_ISA {

using fastgan::FilteredLreluCall;

namespace {

constexpr int BLOCK = 16;  // channels of a task

template <int N>
struct Number {
    static constexpr int value = N;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// Bits of the lanes that are true, of the result of a comparison.
template <class M>
inline uint32_t bits_of(M mask) {
    constexpr int count = sizeof(M) / sizeof(mask[0]);
    uint32_t bits = 0;
    for (int i = 0; i < count; ++i) bits |= uint32_t(mask[i] != 0) << i;
    return bits;
}
#if defined(__AVX512F__)
inline uint32_t bits_of(VInt mask) { return _mm512_movepi32_mask((__m512i)mask); }
inline uint32_t bits_of(VLong mask) { return _mm512_movepi64_mask((__m512i)mask); }
#elif defined(__AVX2__)
inline uint32_t bits_of(VInt mask) { return _mm256_movemask_ps((__m256)mask); }
inline uint32_t bits_of(VLong mask) { return _mm256_movemask_pd((__m256d)mask); }
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

// out[o * OUT] = sum of taps[k] * in[o * step + k], o < count, of blocks of channels; ADD adds that to out.
template <int N, bool ADD, class V, class S>
FASTGAN_NOINLINE void filter_row(const S* in, int64_t step, const S* taps, S* out, int64_t out_step, int64_t count) {
    V weights[N];
    for (int k = 0; k < N; ++k) weights[k] = broadcast<V>(taps[k]);
    for (int64_t o = 0; o < count; ++o, in += step * BLOCK, out += out_step * BLOCK) {
        for (int j = 0; j < BLOCK; j += lanes<V>()) {
            V total = weights[0] * load(in + j);
            for (int k = 1; k < N; ++k) total += weights[k] * load(in + k * BLOCK + j);
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

// Taps of a filter in the order in which each phase meets them.
template <class S>
struct Phases {
    int64_t up, size, most;
    Scratch<S> taps;  // [rows, up, most]

    Phases(const S* given, int64_t rows, int64_t size, int64_t up)
        : up(up), size(size), most(ceil_div(size, up)), taps(rows * up * most) {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t tap = 0; tap < up; ++tap) {
                for (int64_t t = 0; t < count(tap); ++t) {
                    taps.data[(row * up + tap) * most + t] = given[row * size + tap + t * up];
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
    const Phases<S>& up;
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
        for (int64_t column = 0; column < call.w; ++column, out += BLOCK) {
            const T* from = pixel;
            if (call.channels_last) {
                const T* here = x + ((sample * call.h + i) * call.w + column) * c + first;
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

    void write(int64_t i, const S* in) const {
        const int64_t c = call.c, first = block * BLOCK, count = live();
        alignas(VECTOR_BYTES) T pixel[BLOCK];
        T* y = (T*)call.y;
        for (int64_t column = 0; column < call.ow; ++column, in += BLOCK) {
            T* here = y + ((sample * call.oh + i) * call.ow + column) * c + first;
            T* to = call.channels_last && count == BLOCK ? here : pixel;
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

    // A row of z from the upsampled values, in place.
    template <bool WRITES>
    void activate(S* row, uint32_t* signs) const {
        const V slope = broadcast<V>(S(call.slope)), gain = broadcast<V>(S(call.gain)), zero = {};
        const V up_gain = broadcast<V>(S(call.up_gain)), limit = broadcast<V>(S(call.clamp));
        for (int64_t p = 0; p < zw; ++p, row += BLOCK) {
            uint32_t bits = 0;
            for (int j = 0; j < BLOCK; j += L) {
                V u = load(row + j) * up_gain;
                const auto below = u < zero;
                u = (below ? u * slope : u) * gain;
                const auto beyond = absolute(u) > limit;
                if constexpr (WRITES) bits |= bits_of(below) << j | bits_of(beyond) << (j + BLOCK);
                store(row + j, beyond ? (u > zero ? limit : -limit) : u);
            }
            if constexpr (WRITES) signs[p] = bits;
        }
    }

    // The same with the slopes that the signs say.
    void multiply(S* row, const uint32_t* signs) const {
        const V steep = broadcast<V>(S(call.up_gain * call.gain)), zero = {};
        const V flat = broadcast<V>(S(call.up_gain * call.gain * call.slope));
        for (int64_t p = 0; p < zw; ++p, row += BLOCK) {
            const int64_t column = p + call.signs_left;
            const bool there = signs && column >= 0 && column < call.signs_w;
            const uint32_t bits = there ? signs[column] : 0xffff0000u;
            for (int j = 0; j < BLOCK; j += L) {
                const V factor = chosen(bits >> (j + BLOCK), zero, chosen(bits >> j, flat, steep));
                store(row + j, load(row + j) * factor);
            }
        }
    }

    // Rows [begin, end) of y.
    void run(int64_t begin, int64_t end) const {
        const int64_t last_column = Phase(zw - 1 - call.left, call.up).first + up.most - 1;
        const int64_t before = max(0, -Phase(-call.left, call.up).first), after = max(0, last_column - call.w + 1);
        const int64_t x_row = (before + call.w + after) * BLOCK, z_row = zw * BLOCK, y_row = call.ow * BLOCK;
        const int64_t kept = up.most + 1, kept_row = call.up_separable ? z_row : x_row;
        const int64_t collected = call.down_size, collected_row = call.down_separable ? y_row : z_row;
        Scratch<S> memory(x_row + kept * kept_row + z_row + collected * collected_row + y_row + call.down_size);
        S *x = memory.data, *ups = x + x_row, *z = ups + kept * kept_row, *downs = z + z_row;
        S *y = downs + collected * collected_row, *weights = y + y_row;
        Scratch<const S*> rows(max(up.most, call.down_size));
        for (int64_t i = 0; i < x_row; ++i) x[i] = 0;
        if (!call.up_separable) {
            for (int64_t i = 0; i < kept * kept_row; ++i) ups[i] = 0;
        }

        const auto upsample = [&](const S* in, int64_t tap_row, S* out, bool add) {
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
        };

        int64_t next_x = max(0, Phase(begin * call.down - call.top, call.up).first), next_z = begin * call.down;
        for (int64_t j = begin; j < end; ++j) {
            for (; next_z < j * call.down + call.down_size; ++next_z) {
                const Phase phase(next_z - call.top, call.up);
                const int64_t n = up.count(phase.tap), from = max(0, phase.first), to = min(call.h, phase.first + n);
                for (next_x = max(next_x, from); next_x < to; ++next_x) {
                    S* keep = ups + next_x % kept * kept_row;
                    if (call.up_separable) {
                        read(next_x, x + before * BLOCK);
                        upsample(x, 0, keep, false);
                    } else {
                        read(next_x, keep + before * BLOCK);
                    }
                }
                S* row = call.down_separable ? z : downs + next_z % collected * collected_row;
                if (call.up_separable) {
                    for (int64_t i = from; i < to; ++i) rows.data[i - from] = ups + i % kept * kept_row;
                    const S* taps = up.of(phase.tap) + (from - phase.first);
                    sum_rows<V>(rows.data, taps, max(0, to - from), row, z_row);
                } else {
                    for (int64_t i = from; i < to; ++i) {
                        upsample(ups + i % kept * kept_row, phase.tap + (i - phase.first) * call.up, row, i > from);
                    }
                    for (int64_t i = 0; to <= from && i < z_row; ++i) row[i] = 0;
                }
                if (call.reads_signs) {
                    multiply(row, signs_of(next_z));
                } else if (call.writes_signs && (next_z < end * call.down || end == call.oh)) {
                    activate<true>(row, signs_of(next_z));  // the next strip computes further rows again
                } else {
                    activate<false>(row, nullptr);
                }
                if (call.down_separable) {
                    S* out = downs + next_z % collected * collected_row;
                    filter_row_by<V>(row, call.down, down, call.down_size, out, 1, call.ow, false);
                }
            }
            for (int64_t k = 0; k < call.down_size; ++k) {
                const S* row = downs + (j * call.down + k) % collected * collected_row;
                rows.data[k] = row;
                if (!call.down_separable) {
                    filter_row_by<V>(row, call.down, down + k * call.down_size, call.down_size, y, 1, call.ow, k > 0);
                }
            }
            if (call.down_separable) sum_rows<V>(rows.data, down, call.down_size, y, y_row);
            write(j, y);
        }
    }
};

constexpr int64_t LEAST_ROWS = 16;  // of a strip: it computes some rows that its neighbour computes as well

template <class T>
void forward(const FilteredLreluCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    const int64_t blocks = ceil_div(call.c, BLOCK), tasks = call.n * blocks;
    if (tasks * call.oh * call.ow == 0) return;
    const int64_t wanted = tasks < 4 * max_threads() ? ceil_div(4 * max_threads(), tasks) : 1;
    const int64_t strips = max(1, min(wanted, call.oh / LEAST_ROWS)), rows = ceil_div(call.oh, strips);
    const Phases<S> up((const S*)call.up_taps, call.up_separable ? 1 : call.up_size, call.up_size, call.up);
    const int64_t zw = (call.ow - 1) * call.down + call.down_size;
    parallel_for(tasks * strips, worth_threads(tasks * BLOCK * call.oh * call.ow), [&](int64_t i) {
        const int64_t task = i / strips, begin = i % strips * rows;
        if (begin >= call.oh) return;
        const Task<T> one{call, up, (const S*)call.down_taps, task / blocks, task % blocks, zw};
        one.run(begin, min(begin + rows, call.oh));
    });
}

}  // namespace

// Entry point, called through FASTGAN_CPU_ENTRY (common/isa.h).
void filtered_lrelu_forward(const FilteredLreluCall& call) {
    for_dtype(call.dtype, [&](auto element) { forward<decltype(element)>(call); });
}

}  // namespace FASTGAN_ISA
