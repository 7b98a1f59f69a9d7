// Sums on the GPU, always in a fixed order and without atomics. Blocks leave partial sums in a workspace, and a second
// kernel adds these up.
#pragma once

#include "common/gpu_values.h"

namespace fastgan::cuda {

// Sum over the lanes of a warp whose numbers differ only in the bits from `first` up to `past` (powers of two); each of
// these lanes gets it. All lanes must call.
template <class S>
FASTGAN_INLINE S sum_lanes(S value, int first, int past) {
    for (int distance = first; distance < past; distance *= 2) {
        value += __shfl_xor_sync(gpu::full_mask, value, distance, gpu::warp_size);
    }
    return value;
}

template <int V>
constexpr int PADDED_BLOCK = BLOCK + gpu::warp_size / V;  // readers of adjacent channels meet different banks
template <int SUMS, int V>
constexpr int COLUMN_SLOTS = SUMS * V * PADDED_BLOCK<V>;

// Sums over the rows of a block, for threads in `columns` columns (a power of two), each with V adjacent channels:
//
//     out[which * stride + channel] = sum over rows of values[which * V + v],   channel = column * V + v < channels
//
// All threads of the block must call. `slots` is shared memory for COLUMN_SLOTS numbers that no thread still reads.
template <int SUMS, int V, class S>
FASTGAN_INLINE void write_sums_of_columns(S (&values)[SUMS * V], int columns, int64_t channels, S* slots, S* out,
                                          int64_t stride) {
    constexpr int PADDED = PADDED_BLOCK<V>;
    const int thread = int(threadIdx.x), lane = thread % gpu::warp_size, warp = thread / gpu::warp_size;
    const bool narrow = columns < gpu::warp_size;  // a warp has several rows, which shuffles add up
    const int slot = narrow ? warp * columns + lane : thread;
    GPU_UNROLL
    for (int i = 0; i < SUMS * V; ++i) {
        values[i] = sum_lanes(values[i], columns, gpu::warp_size);
        if (lane < columns) slots[i * PADDED + slot] = values[i];
    }
    __syncthreads();
    const int row = columns * V, rows = int(blockDim.x) / (narrow ? gpu::warp_size : columns);
    for (int i = thread; i < SUMS * row; i += int(blockDim.x)) {
        const int which = i / row, channel = i % row;
        const S* from = slots + (which * V + channel % V) * PADDED + channel / V;
        S total = from[0];
        for (int r = 1; r < rows; ++r) total += from[r * columns];
        if (channel < channels) out[which * stride + channel] = total;
    }
}

// Sums over each row of `columns` adjacent threads (a power of two); only the first thread of a row gets them. All
// threads of the block must call, once in a kernel.
template <int SUMS, class S>
FASTGAN_INLINE void sum_rows(S (&values)[SUMS], int columns) {
    constexpr int WARPS = BLOCK / gpu::warp_size;
    SHARED(S, slots, [SUMS * WARPS]);
    const int lane = int(threadIdx.x) % gpu::warp_size, warp = int(threadIdx.x) / gpu::warp_size;
    GPU_UNROLL
    for (int i = 0; i < SUMS; ++i) {
        values[i] = sum_lanes(values[i], 1, columns < gpu::warp_size ? columns : gpu::warp_size);
        if (lane == 0) slots[i * WARPS + warp] = values[i];
    }
    if (columns <= gpu::warp_size) return;  // uniform
    __syncthreads();
    if (int(threadIdx.x) % columns != 0) return;
    GPU_UNROLL
    for (int i = 0; i < SUMS; ++i) {
        for (int w = 1; w < columns / gpu::warp_size; ++w) values[i] += slots[i * WARPS + warp + w];
    }
}

// Second stage --------------------------------------------------------------------------------------------------------

// out[group, channel] = sum over its pieces of partial[(group * pieces + piece) * stride + channel]. A group is a
// sample if each sample has a gradient of its own, else the whole batch.
template <class S>
struct PieceSum {
    const S* partial;
    S* out;
    int64_t groups, pieces, stride, channels;
    int slices;  // number of threads for a sum; each takes every slices-th piece
    unsigned first_block;
};

constexpr int SUMMING_BLOCK = 1024;  // threads in a block
constexpr int SUMMED_CHANNELS = 8;   // adjacent channels of a row of threads: 32 bytes, a memory sector

template <class S>
struct PieceSums {
    static constexpr int MAX = 6;
    PieceSum<S> sums[MAX];
    int count = 0;
    unsigned blocks = 0;

    // Adds a sum to the list, if it is wanted.
    void add(const S* partial, void* out, int64_t groups, int64_t pieces, int64_t stride, int64_t channels) {
        if (!out) return;
        const int slices = power_of_two_from(max(ceil_div(pieces, 8), 4), SUMMING_BLOCK / SUMMED_CHANNELS);
        sums[count++] = {partial, (S*)out, groups, pieces, stride, channels, slices, blocks};
        const int64_t rows = groups * ceil_div(channels, SUMMED_CHANNELS);
        blocks += unsigned(ceil_div(rows * slices, SUMMING_BLOCK / SUMMED_CHANNELS));
    }

    void launch(void* stream) const;
};

// Computes all sums of the list. A row of 8 * slices threads takes 8 channels of a group.
template <class S>
__global__ void add_pieces(PieceSums<S> list) {
    SHARED(S, slots, [SUMMING_BLOCK]);
    int which = 0;
    for (int i = 1; i < list.count; ++i) {
        if (blockIdx.x >= list.sums[i].first_block) which = i;
    }
    const PieceSum<S>& sum = list.sums[which];
    const int thread = int(threadIdx.x), row_threads = SUMMED_CHANNELS * sum.slices;
    const int64_t tiles = (sum.channels + SUMMED_CHANNELS - 1) / SUMMED_CHANNELS;
    const int64_t row = int64_t(blockIdx.x - sum.first_block) * (SUMMING_BLOCK / row_threads) + thread / row_threads;
    const int64_t group = row / tiles, channel = row % tiles * SUMMED_CHANNELS + thread % SUMMED_CHANNELS;
    const int slice = thread % row_threads / SUMMED_CHANNELS;
    const bool live = group < sum.groups && channel < sum.channels;
    S total = 0;
    if (live) {
        const S* from = sum.partial + group * sum.pieces * sum.stride + channel;
        for (int64_t piece = slice; piece < sum.pieces; piece += sum.slices) total += from[piece * sum.stride];
    }
    slots[thread] = sum_lanes(total, SUMMED_CHANNELS, gpu::warp_size);  // a row has whole warps
    __syncthreads();
    if (thread % row_threads >= gpu::warp_size) return;  // the first warp of each row adds up the others
    total = 0;
    for (int i = thread % gpu::warp_size; i < row_threads / gpu::warp_size * SUMMED_CHANNELS; i += gpu::warp_size) {
        total += slots[thread / row_threads * row_threads + i / SUMMED_CHANNELS * gpu::warp_size + i % SUMMED_CHANNELS];
    }
    total = sum_lanes(total, SUMMED_CHANNELS, gpu::warp_size);
    if (live && slice == 0) sum.out[group * sum.channels + channel] = total;
}

template <class S>
void PieceSums<S>::launch(void* stream) const {
    if (count) gpu::Launch(blocks, SUMMING_BLOCK, 0, stream)(add_pieces<S>, *this);
}

// out[row] = factor * sum of the row's `count` numbers. One block for each row.
template <class S>
__global__ void add_row(const S* rows, S* out, int64_t count, double factor) {
    S total = 0;
    for (int64_t i = threadIdx.x; i < count; i += BLOCK) total += rows[blockIdx.x * count + i];
    total = gpu::block_sum(total);
    if (threadIdx.x == 0) out[blockIdx.x] = total * S(factor);
}

}  // namespace fastgan::cuda
