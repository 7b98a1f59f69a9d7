// Sums on the GPU, always in a fixed order and without atomics. Blocks leave partial sums in a workspace, and a second
// kernel adds these up.
#pragma once

#include "common/gpu_values.h"

namespace fastgan::cuda {

// Sum over `count` threads (a power of two) that are `stride` apart, of which this one is number `index`: valid in the
// first. All threads of the block must call.
template <class S>
FASTGAN_INLINE S sum_in_block(S value, int index, int count, int stride) {
    SHARED(S, slots, [BLOCK]);
    __syncthreads();
    slots[threadIdx.x] = value;
    for (int half = count / 2; half > 0; half /= 2) {
        __syncthreads();
        if (index < half) slots[threadIdx.x] += slots[threadIdx.x + half * stride];
    }
    return slots[threadIdx.x];
}

// out[group, channel] = sum over pieces of partial[group, piece, which, channel], with `sums` sums a piece. A group is
// a sample for a gradient per sample, else everything. Grid: (groups, tiles of 32 channels), block: 32 channels x 8
// slices.
template <class S>
__global__ void add_pieces(const S* partial, S* out, int64_t pieces, int64_t c, int sums, int which) {
    SHARED(S, slices, [8][32]);
    const int lane = int(threadIdx.x) % 32, slice = int(threadIdx.x) / 32;
    const int64_t channel = int64_t(blockIdx.y) * 32 + lane, group = blockIdx.x;
    S total = 0;
    if (channel < c) {
        const S* from = partial + (group * pieces * sums + which) * c + channel;
        for (int64_t i = slice; i < pieces; i += 8) total += from[i * sums * c];
    }
    slices[slice][lane] = total;
    __syncthreads();
    if (slice == 0 && channel < c) {
        for (int i = 1; i < 8; ++i) total += slices[i][lane];
        out[group * c + channel] = total;
    }
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
