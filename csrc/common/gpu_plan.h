// Launch configuration of CUDA kernels: sizes of blocks and grids, dispatch on the dtype, alignment.
//
// simd.h has its own ceil_div, round_up, min, max and arithmetic_bytes: CPU code may share no inline function across
// instruction sets (see there), so its helpers live in the namespace of each.
#pragma once

#include "common/gpu.h"
#include "common/types.h"

namespace fastgan::cuda {

constexpr int BLOCK = 256;            // threads in a block
constexpr int64_t MAX_BLOCKS = 2112;  // 16 for each multiprocessor of an H100; blocks loop over any further work
constexpr int64_t MIN_STEPS = 4;      // loop steps of a thread: fewer would not pay for its start and its sums
constexpr int64_t MAX_GRID_Y = 65535;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
__device__ __host__ inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __host__ inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

// The smallest power of two that is at least `size`, or `limit` (a power of two) if that is less.
inline int power_of_two_from(int64_t size, int limit) {
    int power = 1;
    while (power < size && power < limit) power *= 2;
    return power;
}

// Type of the arithmetic for an activation type.
template <class T>
struct ArithmeticOf {
    using type = float;
};
template <>
struct ArithmeticOf<double> {
    using type = double;
};

// Calls f(T()) with the element type T of a dtype.
template <class F>
void for_dtype(Dtype dtype, const F& f) {
    switch (dtype) {
        case Dtype::float32: return f(float());
        case Dtype::bfloat16: return f(__nv_bfloat16());
#ifdef FASTGAN_FEW_DTYPES  // faster to compile, for tests
        default: throw std::runtime_error("compiled for float32 and bfloat16 only");
#else
        case Dtype::float16: return f(__half());
        case Dtype::float64: return f(double());
#endif
    }
}

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : dtype == Dtype::float64 ? 8 : 2; }
inline int64_t arithmetic_bytes(Dtype dtype) { return dtype == Dtype::float64 ? sizeof(double) : sizeof(float); }

// Number of elements in a 16-byte access.
inline int vector_size(Dtype dtype) { return int(16 / bytes_of(dtype)); }

// Whether all of these addresses (null ones included) allow 16-byte accesses.
template <class... P>
bool aligned(const P*... addresses) {
    return ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}

// Partition of an activation [N, C, P] among blocks. A block has `rows` rows of `columns` threads, which lie along the
// contiguous dimension (channels in NHWC, positions in NCHW). It takes a tile of channels of one sample (NHWC) or
// `rows` channels (NCHW). The positions of a sample are cut into pieces, to give the GPU enough blocks.
struct Split {
    int vector, columns, rows;  // vector: elements in one access
    int64_t tiles;              // tiles of the channels (NHWC), or of the channels of all samples (NCHW)
    int64_t per_sample;         // pieces in a sample
    int64_t positions;          // positions in a piece
};

inline Split split(int64_t n, int64_t c, int64_t p, bool channels_last, int vector, int64_t max_blocks = MAX_BLOCKS,
                   int64_t max_pieces = INT64_MAX, int max_columns = BLOCK) {
    Split plan;
    plan.vector = vector;
    plan.columns = power_of_two_from((channels_last ? c : p) / vector, max_columns);
    plan.rows = BLOCK / plan.columns;
    const int64_t row = int64_t(plan.columns) * vector, step = channels_last ? plan.rows : row;
    plan.tiles = channels_last ? ceil_div(c, row) : ceil_div(n * c, plan.rows);
    const int64_t blocks = channels_last ? plan.tiles * n : plan.tiles;
    const int64_t pieces = min(ceil_div(max_blocks, max(blocks, 1)), ceil_div(ceil_div(p, step), MIN_STEPS));
    plan.positions = max(round_up(ceil_div(p, max(1, min(pieces, max_pieces))), step), step);
    plan.per_sample = max(1, ceil_div(p, plan.positions));  // no piece is empty
    return plan;
}

}  // namespace fastgan::cuda
