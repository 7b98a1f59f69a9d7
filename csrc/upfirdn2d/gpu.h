// upfirdn2d on the GPU: code that its kernels share with fused kernels that filter.
#pragma once

#include "common/gpu_sums.h"
#include "upfirdn2d/arithmetic.h"

namespace fastgan::cuda {

using namespace gpu_values;

// The sizes and options of a call, as the kernels need them.
struct Geometry {
    Axis x, y;
    int64_t c, oh, ow, planes;  // planes: samples times channels
    bool separable, flip;
    double gain;
};

inline Geometry geometry_of(const Upfirdn2dCall& call) {
    return {{call.up_x, call.down_x, call.left, call.kw, call.w},
            {call.up_y, call.down_y, call.top, call.kh, call.h},
            call.c,
            call.oh,
            call.ow,
            call.n * call.c,
            call.separable,
            call.flip,
            call.gain};
}

// Loads the taps, as they are correlated, into shared memory: [kh, kw] times the gain, or for a separable filter the
// taps along x, then those along y times the gain.
template <class S>
FASTGAN_INLINE void arrange_taps(const Geometry& g, const S* taps, S* arranged) {
    const int count = int(g.separable ? g.x.taps : g.x.taps * g.y.taps);
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
        const S tap = taps[g.flip ? i : count - 1 - i];
        arranged[i] = g.separable ? tap : tap * S(g.gain);
        if (g.separable) arranged[count + i] = tap * S(g.gain);
    }
    __syncthreads();
}

// The strip: separable filters of 4 taps in NHWC ----------------------------------------------------------------------
//
// A thread takes V channels and walks down a strip of the image, two outputs (RUN) wide. It filters each row of inputs
// along x once and keeps the sums of the last rows in registers, where it filters along y.
//
// `Load` makes the numbers to filter from a pixel that it reads, `Store` writes the results of a row. Each thread has a
// copy of both:
//
//     start(sample, pixel, pixels, c, channel)   points to `pixel` of the `pixels` of a sample
//     move(pixels, c)                            goes on
//     load(there, i, c) -> Loaded                accesses memory for the i-th pixel from here
//
// Load::values gives the numbers to filter: zeros if not `there`, outside of the image. Store::store writes the
// `wanted` ones of the RUN outputs from here, which total(o, v) computes, and adds to its SUMS sums over all outputs.
// SMALL small tensors, read by small(which, sample, channel, c), are kept in shared memory. THREADS is the size of a block,
// 256 or 128, that leaves enough registers.

constexpr int RUN = 2;          // adjacent outputs of a thread
constexpr int STRIP_ROWS = 16;  // steps of a thread at most; a strip reads up to three rows of its neighbours
constexpr int64_t MULTIPROCESSORS = 132;

// Threads of a block at most; DOWN = 2 needs many registers.
template <int DOWN, class Load, class Store>
constexpr int STRIP_THREADS = DOWN == 2 || Load::THREADS < BLOCK || Store::THREADS < BLOCK ? BLOCK / 2 : BLOCK;

// Blocks that a multiprocessor must hold.
template <class S, int THREADS>
constexpr int STRIP_BLOCKS = sizeof(S) == 8     ? 1
                             : THREADS == BLOCK ? 2
                                                : 3;

// Steps along an axis. A step makes UP outputs that read the same inputs, of which the first ones may lie before the
// image: `shift` of the first step. UP is 0 if it is not known at compile time; then a step makes an output.
template <int UP>
struct Steps {
    int shift, first_input, count;  // first_input: of the first step

    Steps(const Axis& axis, int64_t outputs) {
        const int64_t up = UP ? UP : 1, before = axis.before;
        const int64_t whole = before < 0 ? -ceil_div(-before, up) : before / up;
        shift = int(up - 1 - (before - whole * up));
        first_input = int(-whole);
        count = int(ceil_div(outputs + shift, up));
    }
};

// Blocks of `lanes` vectors of channels times `columns` runs. A thread walks down a strip of `rows` steps. Grid:
// (samples x strips x tiles of columns, tiles of channels).
struct Strips {
    int lanes, columns, runs, tiles, rows, steps, strips;

    // Tiles of `widest` columns leave few pixels that two of them read.
    Strips(int64_t n, int64_t vectors, int runs_, int steps_, int threads, int widest) : runs(runs_), steps(steps_) {
        tiles = int(ceil_div(runs, widest));
        columns = int(ceil_div(runs, tiles));
        lanes = power_of_two_from(vectors, threads / power_of_two_from(columns, widest));
        const int64_t beside = n * tiles * ceil_div(vectors, lanes);
        rows = STRIP_ROWS;
        while (rows > 4 && beside * ceil_div(steps, rows) < MULTIPROCESSORS) rows /= 2;
        strips = int(ceil_div(steps, rows));
        rows = int(ceil_div(steps, strips));
    }
};

// Small tensors at the channels of a block, in shared memory, where adjacent lanes read adjacent 16 bytes.
template <class S, int V>
struct SmallTensors {
    static constexpr int W = V * sizeof(S) > 16 ? 16 / sizeof(S) : V;
    S* numbers;  // from this thread's channels
    int lanes;

    template <class F>
    FASTGAN_INLINE static void fill(const F& functor, S* to, int lanes, int64_t sample, int first_channel, int c) {
        for (int i = int(threadIdx.x); i < F::SMALL * lanes * V; i += int(blockDim.x)) {
            const int part = i / (W * lanes), channel = i / W % lanes * V + part % (V / W) * W + i % W;
            if (first_channel + channel < c) to[i] = functor.small(part / (V / W), sample, first_channel + channel, c);
        }
    }

    // Numbers q * W to q * W + W of the thread's channels.
    FASTGAN_INLINE gpu::Vec<S, W> read(int which, int q) const {
        return gpu::load<W>(numbers + (which * (V / W) + q) * W * lanes);
    }
};

// Reads x as it is.
template <class T, int V>
struct PlainLoad {
    using S = typename ArithmeticOf<T>::type;
    using Loaded = gpu::Vec<T, V>;
    static constexpr int SMALL = 0, THREADS = BLOCK;
    const T* x;

    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        x += (sample * pixels + pixel) * c + channel;
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) { x += pixels * c; }
    FASTGAN_INLINE Loaded load(bool there, int i, int c) const { return gpu::load_or_zeros<V>(there, x + i * c); }
    template <class Table>
    FASTGAN_INLINE void values(const Loaded& in, bool, const Table&, S (&out)[V]) const {
        GPU_UNROLL
        for (int v = 0; v < V; ++v) out[v] = gpu::to<S>(in.v[v]);
    }
};

// Writes the outputs as they are.
template <class T, int V>
struct PlainStore {
    using S = typename ArithmeticOf<T>::type;
    struct Loaded {};
    static constexpr int SUMS = 0, SMALL = 0, THREADS = BLOCK;
    T* y;

    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        y += (sample * pixels + pixel) * c + channel;
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) { y += pixels * c; }
    FASTGAN_INLINE Loaded load(bool, int, int) const { return {}; }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&)[RUN], const Total& total, const Table&, S*,
                              int c) const {
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            gpu::Vec<T, V> out;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) out.v[v] = gpu::from<T>(total(o, v));
            if (wanted[o]) gpu::store(y + o * c, out);
        }
    }
};

// A separable filter of 4 taps, with the same UP and DOWN along both axes. Sums: [blocks of all samples, SUMS, C].
template <class T, int V, int UP, int DOWN, class Load, class Store>
__global__ void __launch_bounds__(STRIP_THREADS<DOWN, Load, Store>,
                                  STRIP_BLOCKS<typename ArithmeticOf<T>::type, STRIP_THREADS<DOWN, Load, Store>>)
    filter_strips(Geometry g, Strips s, Steps<UP> steps_x, Steps<UP> steps_y,
                  const typename ArithmeticOf<T>::type* taps, Load load, Store store,
                  typename ArithmeticOf<T>::type* partial) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int ROWS = 4 / UP, INPUTS = UP == 2 ? 2 : (RUN - 1) * DOWN + 4;
    constexpr int SUMS = Store::SUMS;
    static_assert(Load::SMALL * Store::SMALL == 0, "only one of the two has small tensors");
    const int h = int(g.y.size), w = int(g.x.size), oh = int(g.oh), ow = int(g.ow), c = int(g.c);
    const int strip = int(blockIdx.x) / s.tiles, begin = strip % s.strips * s.rows;
    const int64_t sample = strip / s.strips;
    const int column = int(threadIdx.x) / s.lanes, run = int(blockIdx.x) % s.tiles * s.columns + column;
    const int lane = int(threadIdx.x) % s.lanes, first_channel = int(blockIdx.y) * s.lanes * V;
    const int channel = first_channel + lane * V;
    const bool live = column < s.columns && run < s.runs && channel < c;

    SHARED(S, arranged, [8]);
    DYN_SHARED(S, numbers);
    if constexpr (Load::SMALL > 0) SmallTensors<S, V>::fill(load, numbers, s.lanes, sample, first_channel, c);
    if constexpr (Store::SMALL > 0) SmallTensors<S, V>::fill(store, numbers, s.lanes, sample, first_channel, c);
    arrange_taps(g, taps, arranged);
    const SmallTensors<S, V> small{numbers + lane * SmallTensors<S, V>::W, s.lanes};

    S taps_x[4], taps_y[4];
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) taps_x[i] = arranged[i], taps_y[i] = arranged[4 + i];
    const int first_column = steps_x.first_input + run * (UP == 2 ? 1 : RUN * DOWN), ox = run * RUN - steps_x.shift;
    bool inside[INPUTS], wanted[RUN];
    GPU_UNROLL
    for (int i = 0; i < INPUTS; ++i) inside[i] = first_column + i >= 0 && first_column + i < w;
    GPU_UNROLL
    for (int o = 0; o < RUN; ++o) wanted[o] = ox + o >= 0 && ox + o < ow;

    int iy = steps_y.first_input + begin * DOWN, oy = begin * UP - steps_y.shift;
    load.start(sample, int64_t(iy) * w + first_column, int64_t(h) * w, c, channel);
    store.start(sample, int64_t(oy) * ow + ox, int64_t(oh) * ow, c, channel);
    S sums[SUMS > 0 ? SUMS * V : 1] = {};

    // Filters row `iy` along x, at the columns of this thread's outputs, and goes on to the next.
    const auto next_row = [&](S(&along_x)[RUN][V]) {
        const bool row_inside = iy >= 0 && iy < h;
        GPU_UNROLL
        for (int i = 0; i < INPUTS; ++i) {
            const bool there = row_inside && inside[i];
            S values[V];
            load.values(load.load(there, i, c), there, small, values);
            GPU_UNROLL
            for (int o = 0; o < RUN; ++o) {
                const int tap = UP == 2 ? 2 * i + 1 - o : i - o * DOWN;
                if (tap < 0 || tap >= 4) continue;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) {
                    const S product = taps_x[tap] * values[v];
                    along_x[o][v] = tap < UP ? product : along_x[o][v] + product;
                }
            }
        }
        ++iy;
        load.move(w, c);
    };

    S window[ROWS][RUN][V];  // a ring, whose indices are constants once the loop over `first` is unrolled
    const int first_step = begin - (ROWS / DOWN - 1);  // the first steps fill the window
    const int end = !live ? first_step : s.steps - begin < s.rows ? s.steps : begin + s.rows;
    for (int step = first_step; step < end;) {
        GPU_UNROLL
        for (int first = 0; first < ROWS; first += DOWN) {
            if (step == end) break;
            const bool makes = step >= begin;
            const auto is_wanted = [&](int u, int o) {
                return makes && wanted[o] && (UP == 1 || (oy + u >= 0 && oy + u < oh));
            };
            typename Store::Loaded beside[UP][RUN];
            GPU_UNROLL
            for (int i = 0; i < UP * RUN; ++i) {
                const int u = i / RUN, o = i % RUN;
                beside[u][o] = store.load(is_wanted(u, o), u * ow + o, c);
            }
            GPU_UNROLL
            for (int r = 0; r < DOWN; ++r) next_row(window[(first + ROWS - DOWN + r) % ROWS]);
            ++step;
            if (!makes) continue;
            GPU_UNROLL
            for (int u = 0; u < UP; ++u) {
                const auto total = [&](int o, int v) {
                    S sum = 0;
                    GPU_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        sum += taps_y[UP == 2 ? 2 * r + 1 - u : r] * window[(first + r) % ROWS][o][v];
                    }
                    return sum;
                };
                bool row_wanted[RUN];  // not kept from before the filter, where it would take registers
                GPU_UNROLL
                for (int o = 0; o < RUN; ++o) row_wanted[o] = is_wanted(0, o);
                store.store(row_wanted, beside[u], total, small, sums, c);
                ++oy;
                store.move(ow, c);
            }
        }
    }
    if constexpr (SUMS > 0) {
        constexpr int size = COLUMN_SLOTS<SUMS, V>;
        SHARED(S, slots, [size]);
        write_sums_of_columns<SUMS, V>(sums, s.lanes, c - first_channel, &slots[0],
                                       partial + int64_t(blockIdx.x) * SUMS * c + first_channel, c);
    }
}

// Whether the strip serves a filter, apart from its sizes: UP and DOWN must fit.
inline bool fits_strips(const Upfirdn2dCall& call) {
    const int64_t size = max(max(call.h, call.w), max(call.oh, call.ow));
    return call.separable && call.kw == 4 && size < 1 << 26 && call.c < 1 << 20;  // 32 bits for rows and columns
}

// The launch of filter_strips for a call.
template <class T, int V, int UP, int DOWN, class Load, class Store>
struct StripLaunch {
    using S = typename ArithmeticOf<T>::type;
    static constexpr int THREADS = STRIP_THREADS<DOWN, Load, Store>;
    Geometry g;
    Steps<UP> x, y;
    Strips strips;

    explicit StripLaunch(const Upfirdn2dCall& call)
        : g(geometry_of(call)),
          x(g.x, g.ow),
          y(g.y, g.oh),
          strips(call.n, g.c / V, UP == 2 ? x.count : int(ceil_div(x.count, RUN)), y.count, THREADS, BLOCK / 8 / DOWN) {
    }

    int64_t per_sample() const { return int64_t(strips.strips) * strips.tiles; }
    int64_t pieces() const { return g.planes / g.c * per_sample(); }
    int64_t tiles() const { return ceil_div(g.c, int64_t(strips.lanes) * V); }

    void operator()(const void* taps, const Load& load, const Store& store, void* stream, S* partial = nullptr) const {
        const int threads = int(round_up(strips.lanes * strips.columns, gpu::warp_size));
        const size_t bytes = size_t(Load::SMALL + Store::SMALL) * size_t(strips.lanes) * V * sizeof(S);
        gpu::Launch(dim3(unsigned(pieces()), unsigned(tiles())), threads, bytes, stream)(
            filter_strips<T, V, UP, DOWN, Load, Store>, g, strips, x, y, (const S*)taps, load, store, partial);
    }
};

}  // namespace fastgan::cuda
