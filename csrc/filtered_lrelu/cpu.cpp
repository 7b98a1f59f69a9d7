// filtered_lrelu on the CPU, compiled once per instruction set. A task takes 16 channels of one sample and a strip of
// rows, whatever the layout, and walks down: a row of z is the sum of some rows of x, upsampled along x, activated, and
// downsampled along x at once; a row of y is the sum of some of these. So z exists one row at a time, and what is
// kept of earlier rows is as narrow as x and y. A downsampling filter that is not separable keeps rows of z instead.
#include "common/simd.h"

#include "filtered_lrelu/call.h"
#include "upfirdn2d/cpu.h"

namespace FASTGAN_ISA {

using fastgan::FilteredLreluCall;

namespace {

constexpr int BLOCK = 16;  // channels of a task

constexpr int SET = 4;  // tasks of neighbouring channels that take turns, so that the caches keep lines of their pixels
constexpr int COUNT = 4;   // rows of y of a turn
constexpr int TAPS = 6;    // for each factor of StyleGAN3's filters, which have loops of their own ("mirrored" below)
constexpr int STEP = 4;    // columns of y that these loops make at once, at most
constexpr int MARGIN = 8;  // columns beside a row of z, which whole steps reach

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

// A vector that stays in a register. Without it, GCC loads a value that is used twice from memory twice, and loads are
// what bounds these loops.
template <class V>
inline V in_register(V v) {
#if defined(__AVX512F__)  // others have too few
    asm("" : "+v"(v));
#endif
    return v;
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

// Mirrored filters: of 6 taps a factor, 2 or 4, that equal their mirror images along each axis. Inputs that meet equal
// taps are added first, which halves the multiplications.
template <class S>
bool is_mirrored(const S* taps, bool separable, int64_t size, int64_t factor) {
    if (size != TAPS * factor || (factor != 2 && (factor != 4 || !separable))) return false;
    const int64_t rows = separable ? 1 : size;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < size; ++k) {
            const S tap = taps[i * size + k];
            if (tap != taps[i * size + size - 1 - k] || tap != taps[(rows - 1 - i) * size + k]) return false;
        }
    }
    return true;
}

// Upsampling by a mirrored filter. UP results, a group, have the same inputs x. Of the phases p[a] = taps[a],
// taps[a + UP], ..., the last is the first reversed, and so on. So two results are
//     s + d and s - d,   s = sum of even[k] * (x[k] + x[5 - k]),   d = sum of odd[k] * (x[k] - x[5 - k]),   k < 3,
//     even[k] = (p[a][k] + p[a][5 - k]) / 2,   odd[k] = (p[a][k] - p[a][5 - k]) / 2.
template <int UP, class V>
struct MirroredUp {
    static constexpr int HALF = TAPS / 2;
    V even[UP / 2][HALF], odd[UP / 2][HALF];

    template <class S>
    void set(const S* phases) {  // [UP, TAPS]
        for (int a = 0; a < UP / 2; ++a, phases += TAPS) {
            for (int k = 0; k < HALF; ++k) {
                even[a][k] = broadcast<V>((phases[k] + phases[TAPS - 1 - k]) / 2);
                odd[a][k] = broadcast<V>((phases[k] - phases[TAPS - 1 - k]) / 2);
            }
        }
    }

    // Adds to s and d. at(k): x[k].
    template <class At>
    void add(const At& at, V* s, V* d) const {
        for (int k = 0; k < HALF; ++k) {
            const V first = in_register(at(k)), last = in_register(at(TAPS - 1 - k));
            const V total = first + last, difference = first - last;
            for (int a = 0; a < UP / 2; ++a) s[a] += even[a][k] * total, d[a] += odd[a][k] * difference;
        }
    }

    // u: the group, in the order of the image, where the last phase comes first.
    template <class At>
    void operator()(const At& at, V* u) const {
        V s[UP / 2] = {}, d[UP / 2] = {};
        add(at, s, d);
        for (int a = 0; a < UP / 2; ++a) u[UP - 1 - a] = s[a] + d[a], u[a] = s[a] - d[a];
    }
};

// Downsampling by a mirrored filter: N results, sum of taps[k] * (x[k] + x[last - k]), each DOWN inputs on.
template <int DOWN, int N, class V>
struct MirroredDown {
    static constexpr int SIZE = TAPS * DOWN, INPUTS = SIZE + (N - 1) * DOWN;
    V weights[SIZE / 2];

    template <class S>
    explicit MirroredDown(const S* taps) {
        for (int k = 0; k < SIZE / 2; ++k) weights[k] = broadcast<V>(taps[k]);
    }

    // at(k): x[k]. Each is loaded when the first result needs it, from both ends on, so that few are in registers.
    template <class At>
    void operator()(const At& at, V* totals) const {
        V x[INPUTS];
        bool loaded[INPUTS] = {};
        const auto input = [&](int k) {
            if (!loaded[k]) x[k] = in_register(at(k)), loaded[k] = true;
            return x[k];
        };
#pragma GCC unroll 12
        for (int k = 0; k < SIZE / 2; ++k) {
#pragma GCC unroll 4
            for (int i = 0; i < N; ++i) {
                const V pair = input(i * DOWN + k) + input(i * DOWN + SIZE - 1 - k);
                totals[i] = k == 0 ? weights[k] * pair : totals[i] + weights[k] * pair;
            }
        }
    }
};

// A row along x. It prefetches every other pixel of `ahead`, a row of y, if not null.
template <int DOWN, class V, class S, class T>
FASTGAN_NOINLINE void downsample_row(const S* in, const S* taps, S* out, int64_t count, const T* ahead, int64_t pixel) {
    constexpr int N = 2;
    const MirroredDown<DOWN, N, V> down(taps);
    for (int64_t o = 0; o < count; o += N, in += N * DOWN * BLOCK, out += N * BLOCK) {
        for (int j = 0; j < BLOCK; j += lanes<V>()) {
            V totals[N];
            down([&](int k) { return load(in + k * BLOCK + j); }, totals);
            for (int r = 0; r < N; ++r) store(out + r * BLOCK + j, totals[r]);
        }
        if (ahead) __builtin_prefetch(ahead + o * pixel, 0, 2);
    }
}

// The part of a row of y that two rows of z, which meet equal taps of a mirrored filter of two axes, contribute; ADD
// adds it to `out`.
template <int DOWN, bool ADD, class V, class S>
FASTGAN_NOINLINE void downsample_two_rows(const S* upper, const S* lower, const S* taps, S* out, int64_t count) {
    const MirroredDown<DOWN, STEP, V> down(taps);
    for (int64_t o = 0; o < count; o += STEP, out += STEP * BLOCK) {
        for (int j = 0; j < BLOCK; j += lanes<V>()) {
            const int64_t first = o * DOWN * BLOCK + j;
            V totals[STEP];
            down([&](int k) { return load(upper + first + k * BLOCK) + load(lower + first + k * BLOCK); }, totals);
            for (int r = 0; r < STEP; ++r) {
                S* to = out + r * BLOCK + j;
                store(to, ADD ? totals[r] + load(to) : totals[r]);
            }
        }
    }
}

// Memory of a thread for the turn of a task.
template <class S>
struct Turn {
    Scratch<S> memory;
    Scratch<const S*> pointers;
    Scratch<uint32_t> masks;
    S *z, *ys, *mixed;  // a row of z; rows of y; sums and differences of rows of x
    const S** rows;
    uint32_t* signs;  // of a row of z

    template <class Task>
    explicit Turn(const Task& task)
        : memory(task.z_row + COUNT * task.out_row + TAPS * task.width + BLOCK),
          pointers(max(task.kept, task.collected)),
          masks(task.zw + 2 * MARGIN),
          z(memory.data),
          ys(z + task.z_row),
          mixed(ys + COUNT * task.out_row),
          rows(pointers.data),
          signs(masks.data + MARGIN) {
        for (int64_t i = 0; i < task.z_row; ++i) z[i] = 0;
        for (int64_t i = 0; i < task.zw + 2 * MARGIN; ++i) masks.data[i] = 0;
    }
};

template <class T>
struct Task {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    static constexpr int L = lanes<V>();

    const FilteredLreluCall& call;
    const Phases<S>&up, &up_rows;  // taps along x, or of both axes, with the gains; along y
    const S* down;
    bool up_mirrored, down_mirrored;
    int64_t sample, block, zw;
    int64_t j, end;  // the next row of y, and where to stop
    S* sums;         // of each channel, to which the values of y are added; null for none

    // Columns of zeros beside x; elements of rows of x, z and y, and of the rows that are summed along y at the end.
    int64_t before = max(0, -Phase(-call.left, call.up).first);
    int64_t after = max(0, Phase(zw - 1 - call.left, call.up).first + up.most - call.w);
    int64_t width = (before + call.w + after) * BLOCK, z_row = (zw + 2 * MARGIN) * BLOCK;
    int64_t out_row = round_up(call.ow, STEP) * BLOCK, collected_row = call.down_separable ? out_row : z_row;
    int64_t upsampled_row = call.up_separable ? width : z_row;
    int64_t kept = up.most, collected = call.down_size + (COUNT - 1) * call.down;

    // Memory between turns: rows of x, a row of zeros, rows upsampled along y, and the rows to be summed.
    S *xs = nullptr, *outside = nullptr, *upsampled = nullptr, *downs = nullptr;
    int64_t next_x = max(0, Phase(j* call.down - call.top, call.up).first), next_z = j * call.down;
    int64_t group = -1;  // whose rows are in `upsampled`

    int64_t elements() const { return (kept + 1) * width + call.up * upsampled_row + collected * collected_row; }
    void use(S* memory) {
        for (int64_t i = 0; i < elements(); ++i) memory[i] = 0;
        for (int k = 0; sums && k < BLOCK; ++k) sums[k] = 0;
        xs = memory, outside = xs + kept * width, upsampled = outside + width;
        downs = upsampled + call.up * upsampled_row;
    }

    int64_t live() const { return min(BLOCK, call.c - block * BLOCK); }
    // Whether the channels of a pixel lie together, so that they can be loaded and stored where they are.
    bool in_place() const { return call.channels_last && live() == BLOCK; }
    const T* x_row(int64_t i) const {
        return (const T*)call.x + (sample * call.h + i) * call.w * call.c + block * BLOCK;
    }
    T* y_row(int64_t i) const { return (T*)call.y + (sample * call.oh + i) * call.ow * call.c + block * BLOCK; }

    // The bias of the channels, zeros for none.
    struct Bias {
        alignas(VECTOR_BYTES) S values[BLOCK] = {};
        explicit Bias(const Task& task) {
            const S* from = (const S*)task.call.bias + task.block * BLOCK;
            for (int64_t k = 0; task.call.bias && k < task.live(); ++k) values[k] = from[k];
        }
        V operator[](int j) const { return load(values + j); }
    };

    // Row i of x with the bias; out: the blocks of its columns.
    void read(int64_t i, S* out) const {
        const int64_t c = call.c, first = block * BLOCK, count = live();
        const Bias bias(*this);
        alignas(VECTOR_BYTES) T pixel[BLOCK] = {};
        const T* x = (const T*)call.x;
        const int64_t next = i + 1 < call.h ? call.w * c : 0;  // pixels lie too far apart for hardware prefetchers
        for (int64_t column = 0; column < call.w; ++column, out += BLOCK) {
            const T* from = pixel;
            if (call.channels_last) {
                const T* here = x + ((sample * call.h + i) * call.w + column) * c + first;
                __builtin_prefetch(here + next, 0, 2);
                if (count == BLOCK) {
                    from = here;
                } else {
                    memcpy(pixel, here, count * sizeof(T));
                }
            } else {
                const T* here = x + ((sample * c + first) * call.h + i) * call.w + column;
                for (int64_t k = 0; k < count; ++k) pixel[k] = here[k * call.h * call.w];
            }
            for (int j = 0; j < BLOCK; j += L) store(out + j, load(from + j) + bias[j]);
        }
    }

    // Row i of y.
    void write(int64_t i, const S* in) const {
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

    // N rows of y from i on, from rows that are downsampled along x. ys: memory for them.
    template <int DOWN, int N>
    FASTGAN_NOINLINE void downsample_rows(const S* const* rows, int64_t i, S* ys) const {
        const MirroredDown<DOWN, N, V> downsample(down);
        const auto each = [&](auto* out, int64_t stride, int64_t pixel, S* sums) {
            V row_sums[N][BLOCK / L] = {};  // by themselves first: fewer roundings of large sums
            for (int64_t column = 0; column < call.ow; ++column, out += pixel) {
                for (int j = 0; j < BLOCK; j += L) {
                    V totals[N];
                    downsample([&](int k) { return load(rows[k] + column * BLOCK + j); }, totals);
                    for (int r = 0; r < N; ++r) {
                        store(out + r * stride + j, totals[r]);
                        row_sums[r][j / L] += totals[r];
                    }
                }
            }
            for (int r = 0; sums && r < N; ++r) {
                for (int j = 0; j < BLOCK; j += L) store(sums + j, load(sums + j) + row_sums[r][j / L]);
            }
        };
        if (in_place()) {
            each(y_row(i), call.ow * call.c, call.c, sums);
        } else {
            each(ys, out_row, BLOCK, (S*)nullptr);
            for (int r = 0; r < N; ++r) write(i + r, ys + r * out_row);
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

    // A row of z from the upsampled values. signs: of its columns.
    template <Slopes SLOPES>
    void activate(const S* in, S* row, uint32_t* signs) const {
        const Activation<SLOPES> activation(call);
        for (int64_t p = 0; p < zw; ++p, in += BLOCK, row += BLOCK) {
            for (int j = 0; j < BLOCK; j += L) {
                store(row + j, activation(load(in + j), j, signs + p));
            }
        }
    }

    // A group of rows, upsampled along y, from six rows. The last of them is row i of x; NEW reads it in the same pass.
    template <int UP, bool NEW>
    FASTGAN_NOINLINE void upsample_rows(S* const* rows, int64_t i) const {
        MirroredUp<UP, V> upsample;
        upsample.set(up_rows.of(0));
        const Bias bias(*this);
        const S* x[TAPS - 1];
        for (int k = 0; k < TAPS - 1; ++k) x[k] = rows[k];
        S *last = rows[TAPS - 1], *out = upsampled + before * BLOCK;
        const T* from = NEW ? x_row(i) : nullptr;
        for (int64_t column = 0; column < call.w; ++column) {
            for (int k = 0; k < BLOCK; k += L) {
                const int64_t place = column * BLOCK + k;
                if (NEW) store(last + place, load(from + column * call.c + k) + bias[k]);
                V u[UP];
                upsample([&](int t) { return load((t < TAPS - 1 ? x[t] : last) + place); }, u);
                for (int g = 0; g < UP; ++g) store(out + g * width + place, u[g]);
            }
        }
    }

    // A group of rows, upsampled by 2 along both axes by a mirrored filter, from six rows. Along y as in MirroredUp:
    // the first phase is s + d, the other one s - d, where s upsamples sums of rows along x, by the filters
    // (taps[2 k] + taps[10 - 2 k]) / 2, and d differences, by (taps[2 k] - taps[10 - 2 k]) / 2. mixed: memory.
    FASTGAN_NOINLINE void upsample_rows_twice(S* const* rows, S* mixed) const {
        constexpr int HALF = TAPS / 2, N = 2;  // N: columns of x at once
        MirroredUp<2, V> even[HALF], odd[HALF];
        for (int k = 0; k < HALF; ++k) {
            S totals[TAPS], differences[TAPS];
            const S *first = up.of(0, 2 * k), *last = up.of(0, 2 * (TAPS - 1 - k));
            for (int t = 0; t < TAPS; ++t)
                totals[t] = (first[t] + last[t]) / 2, differences[t] = (first[t] - last[t]) / 2;
            even[k].set(totals), odd[k].set(differences);
            for (int64_t i = 0; i < width; i += L) {
                const V a = load(rows[k] + i), b = load(rows[TAPS - 1 - k] + i);
                store(mixed + 2 * k * width + i, a + b), store(mixed + (2 * k + 1) * width + i, a - b);
            }
        }
        const int64_t skipped = lead(call.left), groups = ceil_div(skipped + zw, 2);
        const S* in = mixed + (before + Phase(-call.left, 2).first) * BLOCK;
        S *upper = upsampled + (MARGIN - skipped) * BLOCK, *lower = upper + z_row;
        for (int64_t i = 0; i < groups; i += N, in += N * BLOCK, upper += 2 * N * BLOCK, lower += 2 * N * BLOCK) {
            for (int j = 0; j < BLOCK; j += L) {
                V s[N][2] = {}, d[N][2] = {};  // [0]: of sums of rows, [1]: of differences
                for (int k = 0; k < HALF; ++k) {
                    for (int n = 0; n < N; ++n) {
                        const S *a = in + 2 * k * width + n * BLOCK + j, *b = a + width;
                        even[k].add([&](int t) { return load(a + t * BLOCK); }, &s[n][0], &d[n][0]);
                        odd[k].add([&](int t) { return load(b + t * BLOCK); }, &s[n][1], &d[n][1]);
                    }
                }
                for (int n = 0; n < N; ++n) {
                    for (int g = 0; g < 2; ++g) {  // the last phase comes first, in both directions
                        const V a = g ? s[n][0] + d[n][0] : s[n][0] - d[n][0],
                                b = g ? s[n][1] + d[n][1] : s[n][1] - d[n][1];
                        store(upper + (2 * n + g) * BLOCK + j, a - b), store(lower + (2 * n + g) * BLOCK + j, a + b);
                    }
                }
            }
        }
    }

    // A row of z from a row that is only upsampled along y so far, by groups. Row `part` of a group prefetches every
    // UP-th pixel of `ahead`, the next row of x.
    template <int UP, Slopes SLOPES>
    FASTGAN_NOINLINE void upsample_and_activate(const S* in, S* out, uint32_t* signs, int64_t groups, const T* ahead,
                                                int64_t part) const {
        const Activation<SLOPES> activation(call);
        MirroredUp<UP, V> upsample;
        upsample.set(up.of(0));
        for (int64_t i = 0; i < groups; ++i, in += BLOCK, out += UP * BLOCK, signs += UP) {
            for (int j = 0; j < BLOCK; j += L) {
                V u[UP];
                upsample([&](int k) { return load(in + k * BLOCK + j); }, u);
                for (int g = 0; g < UP; ++g) store(out + g * BLOCK + j, activation(u[g], j, signs + g));
            }
            if (i % UP == part) __builtin_prefetch(ahead + min(i, call.w - 1) * call.c, 0, 2);
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

    // out: a row of z upsampled along x from `in`; `add` adds to it.
    void upsample(const S* in, int64_t tap_row, S* out, bool add) const {
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

    // Columns of z, or rows, of the first group that lie before the first one.
    int64_t lead(int64_t padding) const { return call.up - 1 - Phase(-padding, call.up).tap; }

    // The rows of x whose sum is row r of z, [from, to), and the taps of the first of them. What is not kept yet is
    // read, except for the last row if `new_row`, which upsample_rows reads.
    struct Inputs {
        Phase phase;
        int64_t from, to;
        bool new_row;
    };
    Inputs read_for(int64_t r) {
        const Phase phase(r - call.top, call.up);
        const int64_t from = max(0, phase.first), to = min(call.h, phase.first + up.count(phase.tap));
        const bool fits = call.up_separable && up_mirrored && in_place();
        const bool new_row = fits && next_x < to && to == phase.first + TAPS;
        for (next_x = max(next_x, from); next_x < to - new_row; ++next_x) read(next_x, kept_row(next_x));
        next_x += new_row;
        return {phase, from, to, new_row};
    }
    S* kept_row(int64_t i) const { return xs + i % kept * width + before * BLOCK; }

    // Row r of z, upsampled along y, or along both axes if the filter is not separable.
    const S* upsample_along_y(int64_t r, const Inputs& inputs, const Turn<S>& turn) {
        const auto [phase, from, to, new_row] = inputs;
        if (up_mirrored) {
            const int64_t place = r + lead(call.top), own = place / call.up;
            if (own != group) {
                S* rows[TAPS];
                for (int64_t k = 0; k < TAPS; ++k) {
                    const int64_t i = phase.first + k;
                    rows[k] = i >= 0 && i < call.h ? kept_row(i) : outside + before * BLOCK;
                }
                if (!call.up_separable) {
                    for (S*& row : rows) row -= before * BLOCK;
                    upsample_rows_twice(rows, turn.mixed);
                } else if (call.up == 2) {
                    new_row ? upsample_rows<2, true>(rows, to - 1) : upsample_rows<2, false>(rows, to - 1);
                } else {
                    new_row ? upsample_rows<4, true>(rows, to - 1) : upsample_rows<4, false>(rows, to - 1);
                }
                group = own;
            }
            return upsampled + place % call.up * upsampled_row;
        }
        if (call.up_separable) {
            for (int64_t i = from; i < to; ++i) turn.rows[i - from] = xs + i % kept * width;
            const S* taps = up_rows.of(phase.tap) + (from - phase.first);
            sum_rows<V>(turn.rows, taps, max(0, to - from), upsampled, width);
            return upsampled;
        }
        S* out = upsampled + MARGIN * BLOCK;
        for (int64_t i = from; i < to; ++i) {
            upsample(xs + i % kept * width, phase.tap + (i - phase.first) * call.up, out, i > from);
        }
        for (int64_t i = 0; to <= from && i < zw * BLOCK; ++i) out[i] = 0;
        return upsampled;
    }

    // Row r of z from the row before.
    template <Slopes SLOPES>
    void finish(int64_t r, const S* in, S* out, uint32_t* signs) const {
        if (!call.up_separable) {
            activate<SLOPES>(in + MARGIN * BLOCK, out, signs);
        } else if (!up_mirrored) {
            upsample(in, 0, out, false);
            activate<SLOPES>(out, out, signs);
        } else {
            const int64_t skipped = lead(call.left), groups = ceil_div(skipped + zw, call.up);
            const T* ahead = x_row(max(0, min(Phase(r - call.top, call.up).first + TAPS, call.h - 1)));
            const int64_t part = (r + lead(call.top)) % call.up;
            in += (before + Phase(-call.left, call.up).first) * BLOCK, out -= skipped * BLOCK, signs -= skipped;
            call.up == 2 ? upsample_and_activate<2, SLOPES>(in, out, signs, groups, ahead, part)
                         : upsample_and_activate<4, SLOPES>(in, out, signs, groups, ahead, part);
        }
    }

    // Row r of z, downsampled along x.
    void downsample_along_x(int64_t r, const S* row, S* out) const {
        if (!down_mirrored) {
            filter_row_by<V>(row, call.down, down, call.down_size, out, 1, call.ow, false);
            return;
        }
        // This row completes a row of y, or will; the one after it is prefetched, by every other pixel.
        const int64_t place = max(0, r - (call.down_size - 2 * call.down)), part = place % call.down;
        const T* next = y_row(min(place / call.down, call.oh - 1)) + part * call.c;
        const T* ahead = in_place() && part < 2 ? next : nullptr;
        call.down == 2 ? downsample_row<2, V>(row, down, out, call.ow, ahead, call.c)
                       : downsample_row<4, V>(row, down, out, call.ow, ahead, call.c);
    }

    // Rows [j, j + count) of y from `rows`, rows of z or what downsampling along x has made of them.
    void downsample_along_y(const S* const* rows, int64_t count, S* ys) const {
        if (call.down_separable && down_mirrored && count == COUNT) {
            call.down == 2 ? downsample_rows<2, COUNT>(rows, j, ys) : downsample_rows<4, COUNT>(rows, j, ys);
            return;
        }
        for (int64_t i = j; i < j + count; ++i, rows += call.down) {
            if (call.down_separable && down_mirrored) {
                call.down == 2 ? downsample_rows<2, 1>(rows, i, ys) : downsample_rows<4, 1>(rows, i, ys);
                continue;
            }
            if (call.down_separable) {
                sum_rows<V>(rows, down, call.down_size, ys, out_row);
            } else if (down_mirrored) {
                const int64_t last = call.down_size - 1;
                downsample_two_rows<2, false, V>(rows[0], rows[last], down, ys, call.ow);
                for (int64_t k = 1; k < call.down_size / 2; ++k) {
                    downsample_two_rows<2, true, V>(rows[k], rows[last - k], down + k * call.down_size, ys, call.ow);
                }
            } else {
                for (int64_t k = 0; k < call.down_size; ++k) {
                    filter_row_by<V>(rows[k], call.down, down + k * call.down_size, call.down_size, ys, 1, call.ow,
                                     k > 0);
                }
            }
            write(i, ys);
        }
    }

    // The next COUNT rows of y.
    void advance(const Turn<S>& turn) {
        const int64_t count = min(COUNT, end - j), margin = call.down_separable ? 0 : MARGIN * BLOCK;
        for (; next_z < (j + count - 1) * call.down + call.down_size; ++next_z) {
            const S* in = upsample_along_y(next_z, read_for(next_z), turn);
            S* collected_here = downs + next_z % collected * collected_row;
            S* row = call.down_separable ? turn.z + MARGIN * BLOCK : collected_here + margin;
            if (call.reads_signs) {
                read_signs(next_z, turn.signs);
                finish<READ>(next_z, in, row, turn.signs);
            } else if (call.writes_signs && (next_z < end * call.down || end == call.oh)) {
                finish<KEPT>(next_z, in, row, turn.signs);
                memcpy(signs_of(next_z), turn.signs, zw * sizeof(uint32_t));
            } else {  // the next strip computes further rows again
                finish<CHOSEN>(next_z, in, row, turn.signs);
            }
            if (call.down_separable) downsample_along_x(next_z, row, collected_here);
        }
        for (int64_t k = 0; k < (count - 1) * call.down + call.down_size; ++k) {
            turn.rows[k] = downs + (j * call.down + k) % collected * collected_row + margin;
        }
        downsample_along_y(turn.rows, count, turn.ys);
        j += count;
    }
};

constexpr int64_t LEAST_ROWS = 16;  // of a strip: it computes some rows that its neighbour computes as well

template <class T>
void run(const FilteredLreluCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    const int64_t blocks = ceil_div(call.c, BLOCK);
    if (call.n * blocks * call.oh * call.ow == 0) return;
    const int64_t wanted = 4 * max_threads();  // pieces of work
    const int64_t size = max(1, min(min(SET, blocks), call.n * blocks / wanted)), sets = ceil_div(blocks, size);
    const int64_t strips = max(1, min(ceil_div(wanted, call.n * sets), call.oh / LEAST_ROWS));
    const int64_t rows = ceil_div(call.oh, strips);
    const S* taps = (const S*)call.up_taps;
    const Phases<S> up(taps, call.up_separable ? 1 : call.up_size, call.up_size, call.up, S(call.up_gain * call.gain));
    const Phases<S> up_rows(taps, 1, call.up_size, call.up, S(1));
    const S* down = (const S*)call.down_taps;
    const bool up_mirrored = is_mirrored(taps, call.up_separable, call.up_size, call.up);
    const bool down_mirrored = is_mirrored(down, call.down_separable, call.down_size, call.down);
    const int64_t zw = (call.ow - 1) * call.down + call.down_size;
    Scratch<S> sums(call.dbias ? call.n * blocks * strips * BLOCK : 0);
    const int64_t pieces = call.n * sets * strips;
    parallel_for(pieces, worth_threads(call.n * blocks * BLOCK * call.oh * call.ow), [&](int64_t i) {
        const int64_t strip = i % strips, sample = i / strips / sets, first = i / strips % sets * size;
        const int64_t begin = min(strip * rows, call.oh), end = min(begin + rows, call.oh);
        const int64_t count = min(size, blocks - first);
        const auto task = [&](int64_t k) {
            const int64_t block = first + min(k, count - 1);
            S* own = call.dbias ? sums.data + ((sample * blocks + block) * strips + strip) * BLOCK : nullptr;
            return Task<T>{call, up, up_rows, down, up_mirrored, down_mirrored, sample, block, zw, begin, end, own};
        };
        Task<T> set[SET] = {task(0), task(1), task(2), task(3)};
        Scratch<S> memory(count * set[0].elements());
        for (int64_t k = 0; k < count; ++k) set[k].use(memory.data + k * set[0].elements());
        const Turn<S> turn(set[0]);
        while (set[0].j < end) {
            for (int64_t k = 0; k < count; ++k) set[k].advance(turn);
        }
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
