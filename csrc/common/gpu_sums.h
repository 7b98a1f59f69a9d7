// The second stage of sums over samples and positions: each piece of the work has left its own, and these are added up
// in a fixed order.
#pragma once

#include "common/gpu_values.h"

namespace fastgan::cuda {

constexpr int BLOCK = 256;  // threads of every block

// Adds up `pieces` sums of each channel, [pieces, sums, C]. Grid: (groups, tiles of 32 channels); a group is a sample
// where the gradient is one a sample. out: [groups, C]; block: 32 channels x 8 slices of the pieces.
template <class S>
__global__ void add_pieces(const S* partial, S* out, int64_t pieces, int64_t c, int sums, int which) {
    SHARED(S, slices, [8][32]);
    const int lane = int(threadIdx.x) % 32, slice = int(threadIdx.x) / 32;
    const int64_t channel = int64_t(blockIdx.y) * 32 + lane, group = blockIdx.x;
    S total = 0;
    if (channel < c) {
        for (int64_t i = slice; i < pieces; i += 8)
            total += partial[((group * pieces + i) * sums + which) * c + channel];
    }
    slices[slice][lane] = total;
    __syncthreads();
    if (slice == 0 && channel < c) {
        for (int i = 1; i < 8; ++i) total += slices[i][lane];
        out[group * c + channel] = total;
    }
}

// The sum of all channels' sums: for a strength that all channels share. One block.
template <class S>
__global__ void add_channels(const S* channels, S* out, int64_t c) {
    S total[1] = {0};
    for (int64_t i = threadIdx.x; i < c; i += BLOCK) total[0] += channels[i];
    gpu::block_sum(total);
    if (threadIdx.x == 0) *out = total[0];
}

}  // namespace fastgan::cuda
