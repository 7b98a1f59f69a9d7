// filtered_lrelu in NHWC with filters of 6 taps a factor: those of StyleGAN3, separable, or one of them radial. A thread
// takes one channel and QUAD adjacent columns of z, and walks down. In registers it keeps what the filters along y need
// (stages.h). Rows of x come in, and rows of z, or of y before the filter along x, go to the threads of neighbouring
// columns, through shared memory.
//
// A step makes ROWS rows of z. While it computes, it loads the rows of x and the signs of the next step. Shared memory
// holds two steps, so that a step has one barrier.
#pragma once

#include "filtered_lrelu/stages.h"

namespace fastgan::cuda {

constexpr int LEAST_STRIP = 16;  // rows of y of a strip: it computes 5 * down rows of z that its neighbour computes too
constexpr int LEAST_COLUMNS = 6;  // of threads

enum class Radial { none, up, down };  // the filter that is not separable

template <int UP, int DOWN, Radial RADIAL>
struct Columns {
    static constexpr bool DOWN_2D = RADIAL == Radial::down;
    using Up = SeparableUp<UP, DOWN_2D>;  // of the two, SeparableDown can begin a row before the outputs
    using Down = SeparableDown<DOWN>;

    static constexpr int THREADS = RADIAL == Radial::none ? 512 : 384;  // of a block, at most: 128 or 168 registers
    static constexpr int ROWS = 4;                                      // of z, of a step
    static constexpr int X_ROWS = ROWS / UP, Y_ROWS = ROWS / DOWN;      // of a step
    static constexpr int KEPT = DOWN_2D ? ROWS : Y_ROWS;                // rows of a step in shared memory: of z, or y
    static constexpr int GROUPS = QUAD / UP;                            // columns of x from a thread to the next
    static constexpr int OUTPUTS = QUAD / DOWN;                         // columns of y of a thread
    static constexpr int WINDOW = RADIAL == Radial::up ? RadialUp<true>::WINDOW : Up::WINDOW;
    static constexpr int READ = DOWN_2D ? RadialDown<true>::READ : Down::READ;  // columns of z or y that a thread reads
    static constexpr int UP_TAPS = RADIAL == Radial::up ? SQUARE : Up::TAPS;    // in shared memory
    static constexpr int DOWN_TAPS = DOWN_2D ? SQUARE : Down::TAPS;
    // Rows and columns of y of a tile are a multiple of this, so that all tiles begin alike among those of x.
    static constexpr int MULTIPLE = UP > DOWN ? UP / DOWN : 1;
    static constexpr int MOST = (THREADS / LANES * QUAD - !DOWN_2D) / DOWN - (REACH - 1);

    int origin_x, origin_y;       // column and row of y where the first tile begins: 0 or -1
    int tiles, outputs, threads;  // tiles across; outputs: columns of y of a tile; threads: of a block
    int strips, rows;             // rows: of y, of a strip
    bool early_x, early_y;        // see SeparableUp
    int lead_x, lead_y;           // columns and rows of z before the first that the outputs read
    int x_columns, x_run;         // columns of x that a block reads; places for those that lie GROUPS apart
    int quads;                    // of a row in shared memory
    size_t bytes;

    explicit Columns(const FilteredLreluCall& call) {
        const int left = int(call.left), top = int(call.top);
        // Columns of z until UP of them read the same inputs, if the first reads the image's column -left / UP.
        const auto phase = [](int before) { return floor_remainder(before, UP); };
        const auto origin = [&](int before) {
            return phase(before) == UP - 1 || phase(before) == (DOWN_2D ? 0 : UP - 2) ? 0 : -1;
        };
        origin_x = origin(left), origin_y = origin(top);
        const bool x_begins = phase(left - origin_x * DOWN) == UP - 1,
                   y_begins = phase(top - origin_y * DOWN) == UP - 1;
        early_x = DOWN_2D && !x_begins, early_y = DOWN_2D && !y_begins;
        lead_x = !DOWN_2D && !x_begins, lead_y = !DOWN_2D && !y_begins;
        const int width = int(call.ow) - origin_x, height = int(call.oh) - origin_y;
        constexpr int SPARE = MULTIPLE - 1;  // columns of y that the last tile has more than others, at most
        for (int wanted = int(ceil_div(width, MOST));; ++wanted) {
            outputs = int(round_up(ceil_div(width - SPARE, wanted), MULTIPLE));
            tiles = int(max(ceil_div(width - SPARE, outputs), 1));
            const int64_t widest = max(outputs, width - (tiles - 1) * outputs);
            const int64_t z_columns = (widest - 1 + REACH) * DOWN + !DOWN_2D;
            const int columns = int(max(round_up(ceil_div(z_columns, QUAD), 2), LEAST_COLUMNS));
            threads = columns * LANES;
            x_columns = int((z_columns - 1) / UP) + WINDOW - (QUAD - 1) / UP;
            x_run = int(ceil_div(x_columns, GROUPS)) | 1;  // odd: adjacent columns lie in different halves of the banks
            quads = columns + (READ - 1) / QUAD;
            const size_t step = size_t(X_ROWS * x_run * GROUPS + KEPT * quads * QUAD) * LANES;
            bytes = sizeof(float) * (LANES + round_up(UP_TAPS, QUAD) + round_up(DOWN_TAPS, QUAD) + 2 * step);
            if (threads <= THREADS && bytes <= gpu::max_shared_bytes()) break;
        }
        const int64_t beside = call.n * tiles * ceil_div(call.c, LANES);
        rows = height;
        while (rows >= 2 * LEAST_STRIP && beside * ceil_div(height, rows) < 2 * gpu::multiprocessors()) {
            rows = (rows + 1) / 2;
        }
        rows = int(round_up(ceil_div(height, ceil_div(height, rows)), MULTIPLE)), strips = int(ceil_div(height, rows));
    }
};

// Rows of x on their way to shared memory, V elements at a time.
template <class T, int V, class P>
struct Inputs {
    static constexpr int PARTS = LANES / V;  // of a pixel's channels
    static constexpr int THREADS = LEAST_COLUMNS * LANES, ROW = PARTS * (LEAST_COLUMNS * P::GROUPS + REACH);
    static constexpr int PASSES = P::X_ROWS * ROW <= THREADS ? 1 : P::X_ROWS;  // one takes all rows of a step, or one
    static constexpr int LOADS = (P::X_ROWS / PASSES * ROW + THREADS - 1) / THREADS;  // of a thread and pass
    static constexpr int W = V < QUAD ? V : QUAD;

    const T* next;                       // of the first row to be loaded
    int row, rows, pitch, first_column;  // row: from the first that the block needs
    int row_of, column_of, from, place;  // of the thread's first load; of the others columns are `apart`
    int columns, apart, run;
    gpu::Vec<T, V> parts[PASSES][LOADS];
    bool there[PASSES][LOADS];

    // Loads rows from `start` on, of which the block needs those from `first_row` up to `end_row`.
    FASTGAN_INLINE Inputs(const Sizes& s, const P& plan, const T* x, int64_t sample, int start, int first_row,
                          int end_row, int first_column_)
        : row(start - first_row),
          rows(end_row < first_row ? 0 : end_row - first_row),
          pitch(s.w * s.c),
          first_column(first_column_),
          columns(plan.x_columns),
          run(plan.x_run) {
        const int part = int(threadIdx.x) % PARTS, at = int(threadIdx.x) / PARTS;
        const int channel = int(blockIdx.y) * LANES + part * V;
        row_of = at / columns, column_of = PASSES == P::X_ROWS ? at : at % columns;
        apart = int(blockDim.x) / PARTS;  // a multiple of GROUPS
        next = x + ((sample * s.h + start) * s.w + first_column) * s.c;
        from = row_of * pitch + column_of * s.c + channel;
        place = ((row_of * P::GROUPS + column_of % P::GROUPS) * run + column_of / P::GROUPS) * LANES + part * V;
        if (row_of >= P::X_ROWS) column_of = columns;
        if (channel >= s.c) row_of = 1 << 30;  // beyond all rows
    }

    FASTGAN_INLINE void load(const Sizes& s) {
        GPU_UNROLL
        for (int i = 0; i < PASSES * LOADS; ++i) {
            const int p = i / LOADS, l = i % LOADS, at = column_of + l * apart;
            const bool inside = at < columns && unsigned(first_column + at) < unsigned(s.w);
            there[p][l] = inside && unsigned(row + p + row_of) < unsigned(rows);
            parts[p][l] = gpu::load_or_zeros<V>(there[p][l], next + (p * pitch + from + l * apart * s.c));
        }
        row += P::X_ROWS, next += int64_t(P::X_ROWS) * pitch;
    }

    FASTGAN_INLINE void keep(const float* biases, float* to) const {
        GPU_UNROLL
        for (int l = 0; l < LOADS; ++l) {
            if (column_of + l * apart >= columns) continue;
            GPU_UNROLL
            for (int j = 0; j < PASSES * V; j += W) {
                const int p = j / V, i = j % V;
                const gpu::Vec<float, W> added = gpu::load<W>(biases + place % LANES + i);
                gpu::Vec<float, W> part;
                GPU_UNROLL
                for (int v = 0; v < W; ++v) {
                    part.v[v] = there[p][l] ? gpu::to<float>(parts[p][l].v[i + v]) + added.v[v] : 0.0f;
                }
                gpu::store_shared(to + p * P::GROUPS * run * LANES + l * apart / P::GROUPS * LANES + place + i, part);
            }
        }
    }
};

// The leaky ReLU of the rows of z of a step. Each of the first QUAD lanes of a column has the signs of one column of z.
template <int ROWS, bool READS>
struct Slopes {
    Activation<float> act;
    unsigned* next;                       // of the first row of the next step to be read, or of this step to be written
    int row, count, pitch, column, lane;  // row: from the first that the tile has
    bool has_word;
    unsigned words[ROWS];  // of the next rows to be applied

    // Rows and columns of the signs; `ends` are exclusive.
    FASTGAN_INLINE Slopes(const Activation<float>& act_, const Sizes& s, unsigned* signs, int64_t block, int row_,
                          int first_row, int end_row, int column_, int first_column, int end_column)
        : act(act_), row(row_ - first_row), count(end_row - first_row), pitch(s.signs_w), column(column_) {
        next = signs + (block * s.signs_h + row_) * pitch, lane = int(threadIdx.x) % LANES;
        has_word = signs && lane < QUAD && column >= first_column && column < end_column;
    }

    FASTGAN_INLINE bool inside(int i) const { return has_word && unsigned(row + i) < unsigned(count); }

    FASTGAN_INLINE void load(int i) { words[i] = inside(i) ? next[i * pitch + column] : OUTSIDE; }

    FASTGAN_INLINE void advance() { row += ROWS, next += ROWS * int64_t(pitch); }

    // Row i of the step.
    FASTGAN_INLINE void apply(int i, float (&z)[QUAD]) {
        if constexpr (READS) {
            GPU_UNROLL
            for (int q = 0; q < QUAD; ++q) {
                const unsigned word_of_q = __shfl_sync(gpu::full_mask, words[i], q, LANES);
                z[q] = act.multiply(z[q], word_of_q & BELOW << lane, word_of_q & CLAMPED << lane);
            }
            load(i);
        } else {
            unsigned found[QUAD];
            GPU_UNROLL
            for (int q = 0; q < QUAD; ++q) {
                bool below, clamped;
                z[q] = act.activate(z[q], below, clamped);
                // Of the 16 lanes of this column.
                found[q] = __byte_perm(__ballot_sync(gpu::full_mask, below), __ballot_sync(gpu::full_mask, clamped),
                                       threadIdx.x & LANES ? 0x7632 : 0x5410);
            }
            const unsigned first = lane & 1 ? found[1] : found[0], second = lane & 1 ? found[3] : found[2];
            if (inside(i)) next[i * pitch + column] = lane & 2 ? second : first;
        }
    }
};

// Grid: (samples x strips x tiles, blocks of channels).
template <class T, int V, int UP, int DOWN, Radial RADIAL, bool READS>
__global__ void __launch_bounds__(Columns<UP, DOWN, RADIAL>::THREADS)
    filter_columns(Sizes s, Columns<UP, DOWN, RADIAL> plan, Activation<float> act, const float* up_taps,
                   const float* down_taps, const float* bias, const T* x, T* y, unsigned* signs) {
    using P = Columns<UP, DOWN, RADIAL>;
    constexpr int ROWS = P::ROWS, OUTPUTS = P::OUTPUTS;
    constexpr int LEAD = REACH / P::X_ROWS;        // steps before the first row of z
    constexpr int FIRST_ROW = P::DOWN_2D - REACH;  // of y, from that of the tile, that step 0 completes
    const int strip = int(blockIdx.x) / plan.tiles % plan.strips;
    const int64_t sample = int(blockIdx.x) / plan.tiles / plan.strips, block = sample * gridDim.y + blockIdx.y;
    const int lane = int(threadIdx.x) % LANES, column = int(threadIdx.x) / LANES;
    const int channel = int(blockIdx.y) * LANES + lane;
    const int oy = plan.origin_y + strip * plan.rows, end_y = int(min(oy + plan.rows, s.oh));
    const int tile = int(blockIdx.x) % plan.tiles;
    const int ox = plan.origin_x + tile * plan.outputs, end_x = tile == plan.tiles - 1 ? s.ow : ox + plan.outputs;
    const int first_y = oy < 0 ? 0 : oy, first_x = ox < 0 ? 0 : ox;
    const int zy = oy * DOWN - plan.lead_y, zx = ox * DOWN - plan.lead_x;
    const int z_rows = (end_y - 1 - oy + REACH) * DOWN, steps = (z_rows + !P::DOWN_2D + ROWS - 1) / ROWS;

    DYN_SHARED(float, biases);  // of the channels
    float* const taps_up = biases + LANES;
    float* const taps_down = taps_up + (P::UP_TAPS + QUAD - 1) / QUAD * QUAD;
    float* const rows_of_x = taps_down + (P::DOWN_TAPS + QUAD - 1) / QUAD * QUAD;
    const int x_size = P::X_ROWS * plan.x_run * P::GROUPS * LANES, row_size = plan.quads * QUAD * LANES;
    float* const rows_kept = rows_of_x + 2 * x_size;
    if (threadIdx.x < LANES) biases[threadIdx.x] = bias && channel < s.c ? bias[channel] : 0.0f;
    for (int i = int(threadIdx.x); i < P::UP_TAPS; i += int(blockDim.x)) {
        using Up = typename P::Up;
        taps_up[i] = RADIAL == Radial::up ? up_taps[i] : Up::tap(up_taps, i / Up::X_TAPS, i % Up::X_TAPS, plan.early_x);
    }
    for (int i = int(threadIdx.x); i < P::DOWN_TAPS; i += int(blockDim.x)) {
        taps_down[i] = P::DOWN_2D ? down_taps[i] : P::Down::tap(down_taps, i, plan.lead_x);
    }
    __syncthreads();

    // Rows of x that z needs; step 0 adds the last of those that its first row of z reads.
    const int first_row = -floor_quotient(s.top - oy * DOWN, UP);
    const int end_row = floor_quotient(oy * DOWN + z_rows - 2 - s.top, UP) + REACH + 1;
    const int start = -floor_quotient(s.top - zy, UP) + REACH - 1 + plan.early_y - LEAD * P::X_ROWS;
    Inputs<T, V, P> inputs(s, plan, x, sample, start, first_row < 0 ? 0 : first_row, end_row < s.h ? end_row : s.h,
                           -floor_quotient(s.left - zx, UP) - (P::DOWN_2D && !plan.early_x));
    // A tile reads all signs, and writes those of the rows and columns of z that no other tile begins with.
    const int top = READS ? 0 : first_y * DOWN + s.signs_top, left = READS ? 0 : first_x * DOWN + s.signs_left;
    const int bottom = READS || end_y == s.oh ? s.signs_h : end_y * DOWN + s.signs_top;
    const int right = READS || end_x == s.ow ? s.signs_w : end_x * DOWN + s.signs_left;
    Slopes<ROWS, READS> slopes(act, s, signs, block, zy + s.signs_top, top, bottom,
                               zx + column * QUAD + lane + s.signs_left, left, right);
    const int out_pitch = s.ow * s.c, first_at = (ox + column * OUTPUTS) * s.c + channel;
    T* out = y + (sample * s.oh + oy + FIRST_ROW) * out_pitch;  // the row that step 0 completes
    bool wanted[OUTPUTS];
    GPU_UNROLL
    for (int o = 0; o < OUTPUTS; ++o) {
        const int at = ox + column * OUTPUTS + o;
        wanted[o] = channel < s.c && at >= 0 && at < end_x;
    }

    const auto walk = [&](auto up, auto down) {
        int buffer = 0;
        inputs.load(s);
        inputs.keep(biases, rows_of_x);
        if constexpr (READS) {
            GPU_UNROLL
            for (int i = 0; i < ROWS; ++i) slopes.load(i);
            slopes.advance();
        }
        __syncthreads();
        for (int step = -LEAD; step < steps; ++step, buffer ^= 1) {
            inputs.load(s);
            float* const kept = rows_kept + buffer * P::KEPT * row_size;
            GPU_UNROLL
            for (int r = 0; r < P::X_ROWS; ++r) {
                float in[P::WINDOW];
                const float* here = rows_of_x + buffer * x_size + (r * P::GROUPS * plan.x_run + column) * LANES;
                GPU_UNROLL
                for (int i = 0; i < P::WINDOW; ++i) {
                    in[i] = here[(i % P::GROUPS * plan.x_run + i / P::GROUPS) * LANES + lane];
                }
                up.enter(in);
                GPU_UNROLL
                for (int u = 0; u < UP; ++u) {
                    if (step < 0) continue;  // uniform
                    const int i = r * UP + u;
                    float z[QUAD];
                    up.row(u, z);
                    slopes.apply(i, z);
                    down.take(i, z, Quads{kept + i * P::KEPT / ROWS * row_size + int(threadIdx.x) * QUAD});
                }
            }
            inputs.keep(biases, rows_of_x + (buffer ^ 1) * x_size);
            __syncthreads();
            if (step < 0) continue;  // uniform
            slopes.advance();
            GPU_UNROLL
            for (int k = 0; k < P::Y_ROWS; ++k) {
                float results[OUTPUTS];
                const Quads from{kept + k * P::KEPT / P::Y_ROWS * row_size + int(threadIdx.x) * QUAD};
                down.finish(from, row_size, results);
                const int row = oy + FIRST_ROW + step * P::Y_ROWS + k;
                if (row >= first_y && row < end_y) {
                    GPU_UNROLL
                    for (int o = 0; o < OUTPUTS; ++o) {
                        if (wanted[o]) out[first_at + o * s.c] = gpu::from<T>(results[o]);
                    }
                }
                out += out_pitch;
            }
        }
    };

    if constexpr (RADIAL == Radial::none) {
        walk(typename P::Up(up_taps, nullptr, false), typename P::Down(down_taps, taps_down, plan.lead_y));
    } else {
        const float* const taps = RADIAL == Radial::up ? taps_up : taps_down;
        bool equal = true;
        for (int i = int(threadIdx.x); i < SQUARE; i += int(blockDim.x)) {
            const int r = i / SIDE, k = i % SIDE;
            equal = equal && taps[i] == taps[(SIDE - 1 - r) * SIDE + k] && taps[i] == taps[r * SIDE + SIDE - 1 - k];
        }
        const bool symmetric = __syncthreads_and(equal);
        if constexpr (RADIAL == Radial::up) {
            const typename P::Down down(down_taps, taps_down, plan.lead_y);
            symmetric ? walk(RadialUp<true>(taps), down) : walk(RadialUp<false>(taps), down);
        } else {
            const typename P::Up up(up_taps, taps_up, plan.early_y);
            symmetric ? walk(up, RadialDown<true>(taps)) : walk(up, RadialDown<false>(taps));
        }
    }
}

template <class T, int V, int UP, int DOWN, Radial RADIAL, bool READS>
void launch_columns(const FilteredLreluCall& call, void* stream) {
    const Columns<UP, DOWN, RADIAL> plan(call);
    const int64_t blocks = call.n * plan.strips * plan.tiles;
    if (blocks >= int64_t(1) << 31) throw std::runtime_error("filtered_lrelu: too many tiles");
    gpu::Launch(dim3(unsigned(blocks), unsigned(ceil_div(call.c, LANES))), unsigned(plan.threads), plan.bytes, stream)(
        filter_columns<T, V, UP, DOWN, RADIAL, READS>, Sizes(call), plan, Activation<float>(call),
        (const float*)call.up_taps, (const float*)call.down_taps, (const float*)call.bias, (const T*)call.x, (T*)call.y,
        (unsigned*)(call.writes_signs || call.reads_signs ? call.signs : nullptr));
}

// Launches if the kernel serves the call, else returns false.
template <class T>
bool launch_columns(const FilteredLreluCall& call, void* stream) {
    if (!call.channels_last || call.up_size != REACH * call.up || call.down_size != REACH * call.down) return false;
    if (max(call.w, call.ow) * call.c >= int64_t(1) << 30) return false;  // rows are indexed in 32 bits
    const auto launch = [&](auto up, auto down, auto radial, auto reads) {
        constexpr int UP = decltype(up)::value, DOWN = decltype(down)::value;
        constexpr Radial RADIAL = decltype(radial)::value;
        const bool separable =
            call.up_separable == (RADIAL != Radial::up) && call.down_separable == (RADIAL != Radial::down);
        if (!separable || call.up != UP || call.down != DOWN || call.reads_signs != reads) return false;
        constexpr int V = 16 / sizeof(T);
        call.c % V == 0 && aligned(call.x) ? launch_columns<T, V, UP, DOWN, RADIAL, reads>(call, stream)
                                           : launch_columns<T, 1, UP, DOWN, RADIAL, reads>(call, stream);
        return true;
    };
    using std::integral_constant;
    const integral_constant<int, 2> two;
    const integral_constant<int, 4> four;
    const integral_constant<Radial, Radial::none> none;
    const integral_constant<Radial, Radial::up> radial_up;
    const integral_constant<Radial, Radial::down> radial_down;
    const std::true_type reads;
    const std::false_type finds;
    return launch(two, two, none, finds) || launch(two, two, none, reads) || launch(four, two, none, finds) ||
           launch(four, two, none, reads) || launch(two, four, none, reads) || launch(two, two, radial_down, finds) ||
           launch(two, two, radial_down, reads) || launch(four, two, radial_down, finds) ||
           launch(four, two, radial_down, reads) || launch(two, two, radial_up, reads) ||
           launch(two, four, radial_up, reads);
}

}  // namespace fastgan::cuda
