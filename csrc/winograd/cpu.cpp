// winograd on the CPU, compiled once per instruction set.
//
// A tile of 4x4 outputs reads 6x6 inputs and costs 36 multiplications for each pair of channels, in place of 144: the
// convolution is a product of polynomials of two variables, taken at 6x6 points. For each point it is a matrix product,
// tiles [tiles, inputs] by weights [inputs, outputs].
//
// Tiles are computed in blocks, whose 36 matrices stay in the cache between the transform of the input, the products and
// the transform of the output. The sums of a tile do not depend on its block, so results do not depend on the number of
// threads.
#include "common/simd.h"

#include "winograd/call.h"

namespace FASTGAN_ISA {

using fastgan::WinogradCall;

namespace {

typedef VFloat V;
constexpr int LANES = lanes<V>();
constexpr int PANEL = 32;        // outputs in a panel of the weight
constexpr int WIDE = 2 * LANES;  // outputs computed at once: two vectors
constexpr int POINTS = 6;        // along one axis: 0, +-A, +-B and infinity
constexpr int OUT = 4;           // outputs of a tile along one axis
#if defined(__AVX512F__)
constexpr int TALL = 8;  // tiles computed at once, times two vectors of outputs: 16 sums in 32 registers
#else
constexpr int TALL = 6;  // 12 sums in 16 registers
#endif
constexpr int BLOCK = 48;  // tiles in a block: a multiple of TALL

// The points +-A and +-B lie around 1, so that their powers up to A^3 and B^4 stay small: less is lost by rounding than
// with 1 and 2. A^2 = 1/2, B^2 = 2.
constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f;

struct Plan {
    int64_t height, width;         // of y
    int64_t rows, columns, tiles;  // tiles of an image along both axes; of all images
    int64_t outputs;               // with padding to whole panels
    int64_t block, blocks;         // tiles in a block, and number of blocks
    int64_t x_step, y_step;        // floats from one point's matrix to the next
    int64_t space;                 // floats of a thread's workspace
};

Plan plan_of(const WinogradCall& call) {
    Plan p;
    p.height = call.height + 2 * call.padding - 2, p.width = call.width + 2 * call.padding - 2;
    p.rows = ceil_div(p.height, OUT), p.columns = ceil_div(p.width, OUT);
    p.tiles = call.n * p.rows * p.columns;
    p.outputs = round_up(call.outputs, PANEL);
    p.block = min(BLOCK, round_up(ceil_div(p.tiles, max_threads()), TALL));
    p.blocks = ceil_div(p.tiles, p.block);
    // One more vector: 36 addresses a power of two apart would share few sets of the cache.
    p.x_step = p.block * call.inputs + 16, p.y_step = p.block * p.outputs + 16;
    p.space = round_up(POINTS * POINTS * (p.x_step + p.y_step), 16);
    return p;
}

// Transforms ----------------------------------------------------------------------------------------------------------

// 6 inputs, along one axis, to their values at the points.
inline void transform_input(const V* d, int step, V* to, int to_step) {
    const V even_a = d[4 * step] - 2.0f * d[2 * step], odd_a = A * (d[3 * step] - 2.0f * d[step]);
    const V even_b = d[4 * step] - 0.5f * d[2 * step], odd_b = B * (d[3 * step] - 0.5f * d[step]);
    to[0] = d[0] - 2.5f * d[2 * step] + d[4 * step];
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
    to[5 * to_step] = d[step] - 2.5f * d[3 * step] + d[5 * step];
}

// 4 outputs from the products at the points.
inline void transform_output(const V* m, int step, V* to, int to_step) {
    const V sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const V sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum_a + sum_b;
    to[to_step] = A * difference_a + B * difference_b;
    to[2 * to_step] = 0.5f * sum_a + 2.0f * sum_b;
    to[3 * to_step] = 0.5f * A * difference_a + 2.0f * B * difference_b + m[5 * step];
}

struct Tile {
    int64_t image, row, column;  // of its first output
};

Tile tile_of(const Plan& p, int64_t number) {
    const int64_t in_image = number % (p.rows * p.columns);
    return {number / (p.rows * p.columns), in_image / p.columns * OUT, in_image % p.columns * OUT};
}

// Transforms the inputs of one tile. Output: [point, tile, input].
void take_tile(const WinogradCall& call, const Plan& p, const Tile& tile, float* to) {
    const float* image = (const float*)call.x + tile.image * call.height * call.width * call.inputs;
    const float* pixels[POINTS][POINTS];  // null outside of the image
    for (int i = 0; i < POINTS; ++i) {
        for (int j = 0; j < POINTS; ++j) {
            const int64_t y = tile.row + i - call.padding, x = tile.column + j - call.padding;
            const bool inside = y >= 0 && y < call.height && x >= 0 && x < call.width;
            pixels[i][j] = inside ? image + (y * call.width + x) * call.inputs : nullptr;
        }
    }
    for (int64_t c = 0; c < call.inputs; c += LANES) {
        const int64_t left = call.inputs - c;
        V rows[POINTS][POINTS], points[POINTS];
#pragma GCC unroll 6
        for (int i = 0; i < POINTS; ++i) {
            V d[POINTS];
#pragma GCC unroll 6
            for (int j = 0; j < POINTS; ++j) {
                const float* from = pixels[i][j];
                d[j] = !from ? V{} : left >= LANES ? load(from + c) : load_n(from + c, left);
            }
            transform_input(d, 1, rows[i], 1);
        }
#pragma GCC unroll 6
        for (int j = 0; j < POINTS; ++j) {
            transform_input(rows[0] + j, POINTS, points, 1);
#pragma GCC unroll 6
            for (int i = 0; i < POINTS; ++i) {
                float* there = to + (i * POINTS + j) * p.x_step + c;
                left >= LANES ? store(there, points[i]) : store_n(there, points[i], left);
            }
        }
    }
}

// Writes the outputs of one tile from [point, tile, output].
void give_tile(const WinogradCall& call, const Plan& p, const Tile& tile, const float* from) {
    float* image = (float*)call.y + tile.image * p.height * p.width * call.outputs;
    const int64_t height = min(OUT, p.height - tile.row), width = min(OUT, p.width - tile.column);
    for (int64_t o = 0; o < call.outputs; o += LANES) {
        const int64_t left = call.outputs - o;
        V columns[OUT][POINTS], outputs[OUT];
#pragma GCC unroll 6
        for (int j = 0; j < POINTS; ++j) {
            V m[POINTS];
#pragma GCC unroll 6
            for (int i = 0; i < POINTS; ++i) m[i] = load(from + (i * POINTS + j) * p.y_step + o);
            transform_output(m, 1, columns[0] + j, POINTS);
        }
        for (int64_t i = 0; i < height; ++i) {
            transform_output(columns[i], 1, outputs, 1);
            float* there = image + ((tile.row + i) * p.width + tile.column) * call.outputs + o;
            for (int64_t j = 0; j < width; ++j, there += call.outputs) {
                left >= LANES ? store(there, outputs[j]) : store_n(there, outputs[j], left);
            }
        }
    }
}

// Products --------------------------------------------------------------------------------------------------------------

// TALL tiles [tile, input] times WIDE outputs of a panel [input, output].
inline void multiply(const float* x, int64_t inputs, const float* weight, float* y, int64_t outputs) {
    V sums[TALL][2] = {};
    for (int64_t c = 0; c < inputs; ++c, weight += PANEL) {
        const V first = load(weight), second = load(weight + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < TALL; ++i) {
            const V factor = broadcast<V>(x[i * inputs + c]);
            sums[i][0] += factor * first;
            sums[i][1] += factor * second;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TALL; ++i) {
        store(y + i * outputs, sums[i][0]);
        store(y + i * outputs + LANES, sums[i][1]);
    }
}

void run_block(const WinogradCall& call, const Plan& p, int64_t block, float* space) {
    const int64_t first = block * p.block, tiles = min(p.block, p.tiles - first), padded = round_up(tiles, TALL);
    float *x = space, *y = space + POINTS * POINTS * p.x_step;
    for (int64_t i = 0; i < tiles; ++i) take_tile(call, p, tile_of(p, first + i), x + i * call.inputs);
    for (int point = 0; point < POINTS * POINTS; ++point) {
        float *from = x + point * p.x_step, *to = y + point * p.y_step;
        memset(from + tiles * call.inputs, 0, (padded - tiles) * call.inputs * sizeof(float));
        const float* weight = (const float*)call.weight + point * p.outputs * call.inputs;
        for (int64_t o = 0; o < call.outputs; o += WIDE) {
            const float* panel = weight + o / PANEL * PANEL * call.inputs + o % PANEL;
            for (int64_t i = 0; i < padded; i += TALL) {
                multiply(from + i * call.inputs, call.inputs, panel, to + i * p.outputs + o, p.outputs);
            }
        }
    }
    for (int64_t i = 0; i < tiles; ++i) give_tile(call, p, tile_of(p, first + i), y + i * p.outputs);
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void winograd(const WinogradCall& call) {
    const Plan p = plan_of(call);
    parallel_for(p.blocks, p.blocks > 1,
                 [&](int64_t block) { run_block(call, p, block, (float*)call.workspace + thread_index() * p.space); });
}

int64_t winograd_workspace(const WinogradCall& call) {
    const Plan p = plan_of(call);
    return (p.blocks > 1 ? max_threads() : 1) * p.space * sizeof(float);
}

}  // namespace FASTGAN_ISA
