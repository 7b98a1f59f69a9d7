// upfirdn2d on the GPU where few channels are adjacent: NHWC with few channels, and NCHW, whose planes are the images
// of one channel. For separable filters.
//
// A row of an image is a line of W * C numbers, of which the filter along x takes every C-th. A block makes a tile of
// outputs: a part of some rows, or rows of several images. It
//
//   1. reads the inputs, filters them along y and writes the sums to shared memory, with zeros outside of the image,
//   2. filters these along x and writes the results.
//
// A thread reads IN and writes OUT numbers at a time. In shared memory, a gap of one number after each IN lets the lanes
// of a warp meet different banks.
#pragma once

#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {

// Tiles of outputs. A step along y makes UP rows.
struct Tiles {
    int images, steps, rows, width;  // of a tile; width: numbers of a row
    int across, down;                // tiles in an image
    int in_width;                    // inputs of a row
    int taps, pitch, group_gap;      // in shared memory: of all taps, from row to row, between groups of rows
    int64_t blocks, bytes;
};

constexpr int TILE_STEPS = 4;  // of a thread along y

// Adds `addend`, which may be y, unless it is null.
template <class T, int OUT>
struct AddingResult {
    using S = typename ArithmeticOf<T>::type;
    const T* addend;

    // The results at OUT indices of y, from `at`.
    FASTGAN_INLINE gpu::Vec<T, OUT> operator()(const S (&totals)[OUT], int64_t at) const {
        const gpu::Vec<T, OUT> added = gpu::load_or_zeros<OUT>(addend != nullptr, addend + at);
        gpu::Vec<T, OUT> out;
        GPU_UNROLL
        for (int j = 0; j < OUT; ++j) out.v[j] = gpu::from<T>(totals[j] + gpu::to<S>(added.v[j]));
        return out;
    }
};

// The first input that an output reads along an axis.
template <int UP, int DOWN>
FASTGAN_INLINE int first_input(const Axis& axis, const Steps<UP>& steps, int output) {
    if constexpr (UP > 0) return steps.first_input + (output + steps.shift) / UP * DOWN;
    return int(-floor_div(axis.before - output * axis.down, axis.up));
}

// Place of the p-th number of a row in shared memory. There is a gap before the numbers `phase`, `phase` + IN, ...
template <int IN>
FASTGAN_INLINE int place(int p, int phase) {
    return IN > 1 ? p + (p + IN - phase) / IN : p;
}

// TAPS, UP and DOWN are those of both axes, or 0: known at run time only, and IN = OUT = 1. Grid: tiles of an image, for
// each group of images.
template <class T, int IN, int OUT, int TAPS, int UP, int DOWN, class Result>
__global__ void __launch_bounds__(BLOCK, 4)
    filter_tiles(Geometry g, Tiles t, Steps<UP> steps_x, Steps<UP> steps_y, const typename ArithmeticOf<T>::type* taps,
                 const T* x, T* y, Result result) {
    using S = typename ArithmeticOf<T>::type;
    constexpr bool FIXED = TAPS > 0;
    constexpr int READ = FIXED ? TAPS / UP : 1;           // inputs of an output along an axis
    constexpr int ROWS = (TILE_STEPS - 1) * DOWN + READ;  // of inputs, of a thread at a time
    const int up_x = FIXED ? UP : int(g.x.up), up_y = FIXED ? UP : int(g.y.up);
    const int c = int(g.c), h = int(g.y.size), oh = int(g.oh), line = int(g.x.size) * c, out_line = int(g.ow) * c;
    const unsigned tiles = unsigned(t.down * t.across);
    const int tile = int(blockIdx.x % tiles), thread = int(threadIdx.x);
    const int64_t first_image = int64_t(blockIdx.x / tiles) * t.images;
    const int images = int(min(t.images, g.planes / g.c - first_image));
    const int first_step = tile / t.across * t.steps, first_row = FIXED ? first_step * UP - steps_y.shift : first_step;
    const int begin = tile % t.across * t.width, width = int(min(t.width, out_line - begin));
    const int first = first_input<UP, DOWN>(g.x, steps_x, begin / c) * c;
    constexpr int ALIGNED = IN > 1 ? 32 / int(sizeof(T)) : 1;  // rows of inputs begin at a sector
    const int in_begin = int(floor_div(first, ALIGNED)) * ALIGNED;
    const int offset = first + begin % c - in_begin, phase = offset % IN;  // of the first input in shared memory

    DYN_SHARED(S, arranged);
    arrange_taps(g, taps, arranged);
    const S* all_taps_y = arranged + g.x.taps;
    S* sums = arranged + t.taps;
    constexpr int GROUP = FIXED ? TILE_STEPS * UP : 1;  // rows of outputs of a thread at a time, along y
    const auto row_at = [&](int row) { return sums + row * t.pitch + row / GROUP * t.group_gap; };
    S taps_y[FIXED ? TAPS : 1];
    GPU_UNROLL
    for (int i = 0; i < TAPS; ++i) taps_y[i] = all_taps_y[i];

    // Along y.
    const int in_columns = t.in_width / IN, groups = t.rows / GROUP;
    for (int job = thread; job < in_columns * groups * images; job += BLOCK) {
        const int column = job % in_columns, group = job / in_columns % groups, image = job / in_columns / groups;
        const int at = in_begin + column * IN;
        const bool column_inside = at >= 0 && at < line;
        const T* from = x + (first_image + image) * h * line + at;
        if constexpr (FIXED) {  // a thread takes IN columns and TILE_STEPS steps
            const int iy = steps_y.first_input + (first_step + group * TILE_STEPS) * DOWN;
            gpu::Vec<T, IN> in[ROWS];
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const bool inside = column_inside && iy + r >= 0 && iy + r < h;
                in[r] = gpu::load_or_zeros<IN>(inside, from + int64_t(iy + r) * line);
            }
            S* to = row_at(image * t.rows + group * GROUP);
            GPU_UNROLL
            for (int v = 0; v < IN; ++v) {
                S* to_column = to + place<IN>(column * IN + v, phase);
                GPU_UNROLL
                for (int i = 0; i < GROUP; ++i) {
                    S total = 0;
                    GPU_UNROLL
                    for (int r = 0; r < READ; ++r) {
                        total += taps_y[UP - 1 - i % UP + r * UP] * gpu::to<S>(in[i / UP * DOWN + r].v[v]);
                    }
                    to_column[i * t.pitch] = total;
                }
            }
        } else {
            const Reach there = reach(g.y, min(first_row + group, oh - 1));
            S total = 0;
            for (int r = 0; column_inside && r < there.count; ++r) {
                total += all_taps_y[there.tap + r * up_y] * gpu::to<S>(from[(there.at + r) * line]);
            }
            row_at(image * t.rows + group)[column] = total;
        }
    }
    __syncthreads();

    // Along x: a thread takes OUT columns of several rows.
    const int runs = width / OUT, lanes = runs < BLOCK ? runs : BLOCK, beside = BLOCK / lanes;
    for (int run = thread % lanes; run < runs && thread < lanes * beside; run += lanes) {
        const int to = begin + run * OUT;
        const auto for_each_row = [&](const auto& filter) {
            int row = thread / lanes, image = 0;
            for (int index = row; index < images * t.rows; index += beside, row += beside) {
                while (row >= t.rows) row -= t.rows, ++image;
                const int oy = first_row + row;
                if (oy < 0 || oy >= oh) continue;
                S totals[OUT] = {};
                filter(row_at(index), totals);
                const int64_t at = ((first_image + image) * oh + oy) * out_line + to;
                gpu::store(y + at, result(totals, at));
            }
        };
        if constexpr (FIXED && OUT * DOWN == IN * UP) {
            if (c == 1 && steps_x.shift == UP - 1) {  // all places and taps are known
                constexpr int WINDOW = UP == 1 ? (OUT - 1) * DOWN + READ : (OUT - 1 + UP - 1) / UP + READ;
                S taps_x[TAPS];
                GPU_UNROLL
                for (int i = 0; i < TAPS; ++i) taps_x[i] = arranged[i];
                const int base = place<IN>(offset + run * IN, phase);
                for_each_row([&](const S* from, S(&totals)[OUT]) {
                    S window[WINDOW];
                    GPU_UNROLL
                    for (int i = 0; i < WINDOW; ++i) window[i] = from[base + i + (IN > 1 ? i / IN : 0)];
                    GPU_UNROLL
                    for (int i = 0; i < OUT * READ; ++i) {
                        const int j = i / READ, r = i % READ, step = j + (UP > 1 ? UP - 1 : 0);
                        totals[j] += taps_x[UP > 1 ? UP - 1 - step % UP + r * UP : r] *
                                     window[UP > 1 ? step / UP + r : j * DOWN + r];
                    }
                });
                continue;
            }
        }
        if constexpr (FIXED) {
            int where[OUT][READ];
            S weights[OUT][READ];
            GPU_UNROLL
            for (int i = 0; i < OUT * READ; ++i) {
                const int j = i / READ, r = i % READ, pixel = (to + j) / c, channel = (to + j) % c;
                const int input = first_input<UP, DOWN>(g.x, steps_x, pixel) + r;
                where[j][r] = place<IN>(input * c + channel - in_begin, phase);
                weights[j][r] = arranged[UP - 1 - (pixel + steps_x.shift) % UP + r * UP];
            }
            for_each_row([&](const S* from, S(&totals)[OUT]) {
                GPU_UNROLL
                for (int i = 0; i < OUT * READ; ++i) {
                    const int j = i / READ, r = i % READ;
                    totals[j] += weights[j][r] * from[where[j][r]];
                }
            });
        } else {
            const Reach there = reach(g.x, to / c);
            const int where = int(there.at) * c + to % c - in_begin;
            for_each_row([&](const S* from, S(&totals)[OUT]) {
                for (int i = 0; i < there.count; ++i) totals[0] += arranged[there.tap + i * up_x] * from[where + i * c];
            });
        }
    }
}

// The launch of filter_tiles for a call.
template <class T, int TAPS, int UP, int DOWN>
struct TilesLaunch {
    using S = typename ArithmeticOf<T>::type;
    static constexpr bool FIXED = TAPS > 0;
    static constexpr int V = 16 / sizeof(T), WIDE_IN = FIXED ? V / UP : 1, WIDE_OUT = FIXED ? V / DOWN : 1;
    static constexpr int64_t LONGEST = 1024;    // bytes of a tile's row, of the larger image
    static constexpr int64_t MOST = 40 * 1024;  // bytes of shared memory: four blocks fit on a multiprocessor
    Geometry g;
    Steps<UP> x, y;
    bool wide;  // accesses of 16 bytes, or of 8 on the side of the smaller image; else single numbers
    Tiles t;

    explicit TilesLaunch(const Upfirdn2dCall& call) : g(geometry_of(call)), x(g.x, g.ow), y(g.y, g.oh) {
        if (!call.channels_last) g.c = 1;
        const int64_t images = g.planes / g.c, line = g.x.size * g.c, out_line = g.ow * g.c, steps = y.count;
        wide = aligned(call.x, call.y, call.addend) && line % WIDE_IN == 0 && out_line % WIDE_OUT == 0;
        const int64_t in = wide ? WIDE_IN : 1, out = wide ? WIDE_OUT : 1, sector = 32 / sizeof(T);
        const int64_t longest = max(LONGEST / int64_t(sizeof(T)) / g.x.down, sector);
        t.width = int(min(round_up(ceil_div(out_line, ceil_div(out_line, longest)), sector), out_line));
        t.across = int(ceil_div(out_line, t.width));
        // Pixels of the outputs of a row, their inputs, and a sector that begins before these.
        const int64_t pixels = (t.width - 1 + g.c - 1) / g.c + 1;
        const int64_t inputs = ((pixels - 1) * g.x.down + g.x.taps - 1) / g.x.up + 2;
        t.in_width = int(in > 1 ? round_up(inputs * g.c + sector - 1, sector) : inputs * g.c);
        // Lanes are `stride` apart, also where they lie in several rows or groups of rows: from bank to bank.
        const int64_t stride = in > 1 ? in + 1 : 1, group = FIXED ? TILE_STEPS * UP : 1;
        t.pitch = int(banked(t.in_width / in * stride + 1, t.width / out * stride));
        t.group_gap = int(banked(group * t.pitch, t.in_width / in * stride) - group * t.pitch);
        t.taps = int(round_up(2 * g.x.taps, 16 / sizeof(S)));

        // Steps of a tile; where these are all steps, more images.
        const int64_t unit = FIXED ? TILE_STEPS : 1, group_bytes = (group * t.pitch + t.group_gap) * int64_t(sizeof(S));
        const int64_t most = max(MOST / group_bytes, 1) * unit;
        t.steps = int(min(most, round_up(steps, unit)));
        t.images = t.steps < steps ? 1 : int(max(min(most / t.steps, images), 1));
        const auto down = [&] { return ceil_div(steps, t.steps); };
        const auto blocks = [&] { return ceil_div(images, t.images) * down() * t.across; };
        while (blocks() < MULTIPROCESSORS && t.images > 1) t.images /= 2;
        while (blocks() < MULTIPROCESSORS && t.steps >= 2 * TILE_STEPS) t.steps /= 2;
        t.steps = int(round_up(ceil_div(steps, down()), unit));
        t.rows = int(t.steps / unit * group), t.down = int(down()), t.blocks = blocks();
        t.bytes = t.taps * int64_t(sizeof(S)) + t.images * t.rows / group * group_bytes;
    }

    // Whether this kernel serves the call, apart from TAPS, UP and DOWN.
    bool fits() const {
        const int64_t size = max(max(g.x.size, g.ow) * g.c, max(g.y.size, g.oh));
        return g.separable && size < 1 << 26 && t.blocks < int64_t(1) << 31 && t.bytes <= 2 * MOST;
    }

    // make_result(integral_constant<int, OUT>()) gives the Result.
    template <class F>
    void operator()(const Upfirdn2dCall& call, const F& make_result, void* stream) const {
        const auto launch = [&](auto in, auto out) {
            const auto result = make_result(out);
            gpu::Launch(unsigned(t.blocks), BLOCK, size_t(t.bytes), stream)(
                filter_tiles<T, decltype(in)::value, decltype(out)::value, TAPS, UP, DOWN,
                             std::decay_t<decltype(result)>>,
                g, t, x, y, (const S*)call.taps, (const T*)call.x, (T*)call.y, result);
        };
        using std::integral_constant;
        if (wide) return launch(integral_constant<int, WIDE_IN>(), integral_constant<int, WIDE_OUT>());
        launch(integral_constant<int, 1>(), integral_constant<int, 1>());
    }

private:
    // The least number from `size` that is `bank` modulo 32, for elements of shared memory.
    static int64_t banked(int64_t size, int64_t bank) { return size + ((bank - size) % 32 + 32) % 32; }
};

}  // namespace fastgan::cuda
