// filtered_lrelu in NHWC with separable filters of 6 taps a factor: those of StyleGAN3. A thread takes one channel and
// QUAD adjacent columns of z, and walks down. In registers it keeps the last rows of x, upsampled along x, and the sums
// of the rows of y that are not complete. A complete row, not yet filtered along x, goes to shared memory, where QUAD
// threads' columns become those of their neighbours' outputs.
//
// A step makes ROWS rows of z. While it computes, it loads the rows of x and the signs of the next step. Shared memory
// holds two steps, so that a step has one barrier.
#pragma once

#include "filtered_lrelu/gpu.h"

namespace fastgan::cuda {

constexpr int REACH = 6;  // inputs of an output along an axis: taps of a filter by its factor
constexpr int QUAD = 4;   // columns of z of a thread
constexpr int MAX_THREADS = 512;
constexpr int LEAST_STRIP = 16;  // rows of y of a strip: it computes 5 * down rows of z that its neighbour computes too

template <int UP, int DOWN>
struct Columns {
    static constexpr int ROWS = UP > DOWN ? UP : DOWN;              // of z, of a step
    static constexpr int X_ROWS = ROWS / UP, Y_ROWS = ROWS / DOWN;  // of a step
    static constexpr int GROUPS = QUAD / UP;     // columns of z of a thread that read the same inputs
    static constexpr int OUTPUTS = QUAD / DOWN;  // columns of y of a thread
    static constexpr int MAX_OUTPUTS = (MAX_THREADS / LANES * QUAD - (UP - 1) - REACH * DOWN) / DOWN + 1;

    int tiles, outputs, threads;  // tiles across; outputs: columns of y of a tile; threads: of a block
    int strips, rows;             // rows: of y, of a strip
    int x_columns, x_run, y_run;  // runs: columns of x and y that lie QUAD threads' columns apart, in shared memory
    size_t bytes;

    explicit Columns(const FilteredLreluCall& call) {
        tiles = int(ceil_div(call.ow, MAX_OUTPUTS)), outputs = int(ceil_div(call.ow, tiles));
        const int64_t z_columns = (outputs - 1) * DOWN + REACH * DOWN + UP - 1;
        const int columns = int(max(round_up(ceil_div(z_columns, QUAD), 2), 4));
        threads = columns * LANES;
        x_columns = columns * GROUPS + REACH - 1;
        x_run =
            int(ceil_div(x_columns, GROUPS)) | 1;  // odd, so that adjacent columns lie in different halves of the banks
        y_run = columns + 2;                       // columns before the first output, and those of an output too many
        bytes = sizeof(float) * LANES * (2 * size_t(X_ROWS * x_run * GROUPS + Y_ROWS * y_run * QUAD) + 1 + 2);
        const int64_t beside = call.n * tiles * ceil_div(call.c, LANES);
        rows = int(call.oh);
        while (rows >= 2 * LEAST_STRIP && beside * ceil_div(call.oh, rows) < 2 * gpu::multiprocessors()) {
            rows = (rows + 1) / 2;
        }
        strips = int(ceil_div(call.oh, rows)), rows = int(ceil_div(call.oh, strips));
    }
};

// Grid: (samples x strips x tiles, blocks of channels).
template <class T, int UP, int DOWN, bool READS>
__global__ void __launch_bounds__(MAX_THREADS)
    filter_columns(Sizes s, Columns<UP, DOWN> plan, Activation<float> act, float up_gain, const float* up_taps,
                   const float* down_taps, const float* bias, const T* x, T* y, unsigned* signs) {
    using P = Columns<UP, DOWN>;
    constexpr int ROWS = P::ROWS, X_ROWS = P::X_ROWS, Y_ROWS = P::Y_ROWS, GROUPS = P::GROUPS, OUTPUTS = P::OUTPUTS;
    constexpr int V = 16 / sizeof(T), PARTS = LANES / V;        // of a pixel's channels, 16 bytes each
    constexpr int LOADS = X_ROWS * PARTS * GROUPS / LANES + 1;  // of a thread and step
    constexpr int LEAD = (REACH - 1 + X_ROWS - 1) / X_ROWS;     // steps before the first row of z
    const int strip = int(blockIdx.x) / plan.tiles % plan.strips;
    const int64_t sample = int(blockIdx.x) / plan.tiles / plan.strips, block = sample * gridDim.y + blockIdx.y;
    const int lane = int(threadIdx.x) % LANES, column = int(threadIdx.x) / LANES;
    const int first_channel = int(blockIdx.y) * LANES, channel = first_channel + lane;

    // Steps and threads begin at rows and columns of z from where on the next UP read the same inputs.
    const int oy = strip * plan.rows, end_y = int(min(oy + plan.rows, s.oh));
    const int ox = int(blockIdx.x) % plan.tiles * plan.outputs, end_x = int(min(ox + plan.outputs, s.ow));
    const int shift = floor_remainder(ox * DOWN - s.left - 1, UP);
    const int zy = oy * DOWN - floor_remainder(oy * DOWN - s.top - 1, UP), zx = ox * DOWN - shift;
    const int first_row = floor_quotient(zy - s.top - 1, UP) + 1 + (REACH - 1) - LEAD * X_ROWS;  // of x, that is loaded
    const int first_column = floor_quotient(zx - s.left - 1, UP) + 1;
    const int phase = floor_remainder(zy, DOWN);
    const int steps = ((end_y - 1) * DOWN + REACH * DOWN - zy + ROWS - 1) / ROWS;

    DYN_SHARED(float, small);  // the bias of the channels, and the taps of `down`
    float* const taps_x = small + LANES;
    const int x_size = X_ROWS * plan.x_run * GROUPS * LANES, y_size = plan.y_run * QUAD * LANES;
    float* const rows_of_x = taps_x + 2 * LANES;
    float* const rows_of_y = rows_of_x + 2 * x_size;
    if (threadIdx.x < LANES) small[threadIdx.x] = bias && channel < s.c ? bias[channel] : 0.0f;
    for (int i = int(threadIdx.x); i < REACH * DOWN; i += int(blockDim.x)) taps_x[i] = down_taps[i];
    __syncthreads();

    // Taps. Those of `down` are in the order in which the rows of a step meet the sums, the oldest first.
    float taps_up[UP][REACH], taps_down[DOWN][REACH];
    GPU_UNROLL
    for (int i = 0; i < UP * REACH; ++i) taps_up[i % UP][i / UP] = up_taps[UP - 1 - i % UP + i / UP * UP];
    GPU_UNROLL
    for (int i = 0; i < DOWN * REACH; ++i) {
        taps_down[i % DOWN][i / DOWN] = down_taps[(phase + i) % DOWN + (REACH - 1 - i / DOWN) * DOWN];
    }

    // Loads of x: the thread's parts of pixels.
    int row_of[LOADS], place_of[LOADS], from[LOADS];
    bool inside[LOADS];
    GPU_UNROLL
    for (int l = 0; l < LOADS; ++l) {
        const int i = int(threadIdx.x) + l * int(blockDim.x), part = i % PARTS, at = i / PARTS % plan.x_columns;
        const int ix = first_column + at, first = first_channel + part * V;
        row_of[l] = i / PARTS / plan.x_columns;
        place_of[l] = ((row_of[l] * GROUPS + at % GROUPS) * plan.x_run + at / GROUPS) * LANES + part * V;
        inside[l] = row_of[l] < X_ROWS && ix >= 0 && ix < s.w && first < s.c;
        from[l] = ix * s.c + first;
    }
    gpu::Vec<T, V> next[LOADS];
    bool there[LOADS];
    const auto load_x = [&](int step) {
        GPU_UNROLL
        for (int l = 0; l < LOADS; ++l) {
            const int iy = first_row + (step + LEAD) * X_ROWS + row_of[l];
            there[l] = inside[l] && iy >= 0 && iy < s.h;
            next[l] = gpu::load_or_zeros<V>(there[l], x + (sample * s.h + iy) * s.w * s.c + from[l]);
        }
    };
    const auto keep_x = [&](float* to) {
        GPU_UNROLL
        for (int l = 0; l < LOADS; ++l) {
            if (row_of[l] >= X_ROWS) continue;
            GPU_UNROLL
            for (int i = 0; i < V / 4; ++i) {
                const gpu::Vec<float, 4> added = gpu::load<4>(small + place_of[l] % LANES + i * 4);
                gpu::Vec<float, 4> four;
                GPU_UNROLL
                for (int v = 0; v < 4; ++v) {
                    four.v[v] = there[l] ? gpu::to<float>(next[l].v[i * 4 + v]) + added.v[v] : 0.0f;
                }
                gpu::store_shared(to + place_of[l] + i * 4, four);
            }
        }
    };

    // Places of the thread's columns in a row of y: the first output reads the columns from QUAD on.
    int place_in_y[QUAD];
    GPU_UNROLL
    for (int q = 0; q < QUAD; ++q) {
        const int at = column * QUAD + q - shift + QUAD;
        place_in_y[q] = (at % QUAD * plan.y_run + at / QUAD) * LANES + lane;
    }

    // Signs: each of the first QUAD lanes of a column has the word of one column of z.
    const int z_column = zx + column * QUAD + lane;
    const int end_of_signs = end_x == s.ow ? s.z_w : end_x * DOWN, end_row = end_y == s.oh ? s.z_h : end_y * DOWN;
    const bool has_word = lane < QUAD && z_column >= ox * DOWN && z_column < end_of_signs;
    unsigned words[ROWS], next_words[ROWS];
    const auto load_words = [&](int step) {
        GPU_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const int row = zy + step * ROWS + i;
            next_words[i] = lane < QUAD ? read_signs(signs_of(signs, s, block, row), s, z_column) : OUTSIDE;
        }
    };

    int buffer = 0;
    load_x(-LEAD);
    keep_x(rows_of_x);
    if constexpr (READS) load_words(-LEAD);
    __syncthreads();
    float inputs[REACH][QUAD] = {};  // rows of x, upsampled along x
    float sums[REACH][QUAD] = {};    // of the open rows of y
    for (int step = -LEAD; step < steps; ++step, buffer ^= 1) {
        if constexpr (READS) {
            GPU_UNROLL
            for (int i = 0; i < ROWS; ++i) words[i] = next_words[i];
            load_words(step + 1);
        }
        load_x(step + 1);
        float* const to_y = rows_of_y + buffer * Y_ROWS * y_size;
        GPU_UNROLL
        for (int r = 0; r < X_ROWS; ++r) {
            GPU_UNROLL
            for (int i = 0; i < (REACH - 1) * QUAD; ++i) inputs[i / QUAD][i % QUAD] = inputs[i / QUAD + 1][i % QUAD];
            const float* here = rows_of_x + buffer * x_size + (r * GROUPS * plan.x_run + column) * LANES + lane;
            GPU_UNROLL
            for (int q = 0; q < QUAD; ++q) inputs[REACH - 1][q] = 0;
            GPU_UNROLL
            for (int i = 0; i < GROUPS - 1 + REACH; ++i) {
                const float value = here[(i % GROUPS * plan.x_run + i / GROUPS) * LANES];
                GPU_UNROLL
                for (int q = 0; q < QUAD; ++q) {
                    const int t = i - q / UP;
                    if (t >= 0 && t < REACH) inputs[REACH - 1][q] += taps_up[q % UP][t] * value;
                }
            }
            if (step < 0) continue;  // uniform
            GPU_UNROLL
            for (int u = 0; u < UP; ++u) {
                const int i = r * UP + u, row = zy + step * ROWS + i;
                unsigned word = 0;
                GPU_UNROLL
                for (int q = 0; q < QUAD; ++q) {
                    float z = 0;
                    GPU_UNROLL
                    for (int t = 0; t < REACH; ++t) z += taps_up[u][t] * inputs[t][q];
                    z *= up_gain;
                    if constexpr (READS) {
                        z = act.multiply(z, __shfl_sync(gpu::full_mask, words[i], q, LANES) >> lane);
                    } else {
                        unsigned found;
                        z = act.activate(z, found);
                        const unsigned half = threadIdx.x & LANES;  // of the warp
                        const unsigned below = __ballot_sync(gpu::full_mask, found & BELOW) >> half & (CLAMPED - 1);
                        const unsigned clamped = __ballot_sync(gpu::full_mask, found & CLAMPED) >> half;
                        if (lane == q) word = below | clamped << LANES;
                    }
                    GPU_UNROLL
                    for (int t = 0; t < REACH; ++t) sums[t][q] += taps_down[i % DOWN][t] * z;
                }
                if constexpr (!READS) {
                    if (signs && has_word && row >= oy * DOWN && row < end_row) {
                        signs_of(signs, s, block, row)[z_column] = word;
                    }
                }
                if ((phase + i) % DOWN == DOWN - 1) {  // uniform: the oldest row of y is complete
                    GPU_UNROLL
                    for (int q = 0; q < QUAD; ++q) to_y[i / DOWN * y_size + place_in_y[q]] = sums[0][q];
                    GPU_UNROLL
                    for (int j = 0; j < REACH * QUAD; ++j) {
                        sums[j / QUAD][j % QUAD] = j / QUAD < REACH - 1 ? sums[j / QUAD + 1][j % QUAD] : 0.0f;
                    }
                }
            }
        }
        keep_x(rows_of_x + (buffer ^ 1) * x_size);
        __syncthreads();
        if (step < 0) continue;  // uniform
        GPU_UNROLL
        for (int k = 0; k < Y_ROWS; ++k) {
            const int row = floor_quotient(zy + step * ROWS + k * DOWN, DOWN) + 1 - REACH;
            if (row < oy || row >= end_y || channel >= s.c || ox + column * OUTPUTS >= end_x) continue;
            const float* in = rows_of_y + (buffer * Y_ROWS + k) * y_size + (column + 1) * LANES + lane;
            T* out = y + ((sample * s.oh + row) * s.ow + ox + column * OUTPUTS) * s.c + channel;
            float totals[OUTPUTS] = {};
            GPU_UNROLL
            for (int i = 0; i < (OUTPUTS - 1 + REACH) * DOWN; ++i) {
                const float value = in[(i % QUAD * plan.y_run + i / QUAD) * LANES];
                GPU_UNROLL
                for (int o = 0; o < OUTPUTS; ++o) {
                    const int t = i - o * DOWN;
                    if (t >= 0 && t < REACH * DOWN) totals[o] += taps_x[t] * value;
                }
            }
            GPU_UNROLL
            for (int o = 0; o < OUTPUTS; ++o) {
                if (ox + column * OUTPUTS + o < end_x) out[o * s.c] = gpu::from<T>(totals[o]);
            }
        }
    }
}

template <class T, int UP, int DOWN, bool READS>
void launch_columns(const FilteredLreluCall& call, void* stream) {
    const Columns<UP, DOWN> plan(call);
    const int64_t blocks = call.n * plan.strips * plan.tiles;
    if (blocks >= int64_t(1) << 31) throw std::runtime_error("filtered_lrelu: too many tiles");
    gpu::Launch(dim3(unsigned(blocks), unsigned(ceil_div(call.c, LANES))), unsigned(plan.threads), plan.bytes, stream)(
        filter_columns<T, UP, DOWN, READS>, Sizes(call), plan, Activation<float>(call), float(call.up_gain),
        (const float*)call.up_taps, (const float*)call.down_taps, (const float*)call.bias, (const T*)call.x, (T*)call.y,
        (unsigned*)(call.writes_signs || call.reads_signs ? call.signs : nullptr));
}

// Launches if the kernel serves the call, else returns false.
template <class T>
bool launch_columns(const FilteredLreluCall& call, void* stream) {
    const bool fits = call.channels_last && call.c % (16 / int64_t(sizeof(T))) == 0 && call.up_separable &&
                      call.down_separable && call.up_size == REACH * call.up && call.down_size == REACH * call.down &&
                      aligned(call.x);
    if (!fits) return false;
    const auto is = [&](int up, int down) { return call.up == up && call.down == down; };
    const auto launch = [&](auto up, auto down) {
        constexpr int UP = decltype(up)::value, DOWN = decltype(down)::value;
        call.reads_signs ? launch_columns<T, UP, DOWN, true>(call, stream)
                         : launch_columns<T, UP, DOWN, false>(call, stream);
        return true;
    };
    using std::integral_constant;
    const integral_constant<int, 2> two;
    const integral_constant<int, 4> four;
    if (is(2, 2)) return launch(two, two);
    if (is(4, 2)) return launch(four, two);
    if (is(2, 4) && call.reads_signs) {
        launch_columns<T, 2, 4, true>(call, stream);
        return true;
    }
    return false;
}

}  // namespace fastgan::cuda
