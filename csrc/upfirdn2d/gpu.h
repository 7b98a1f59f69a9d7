// upfirdn2d on the GPU: code that its kernels share with fused kernels that filter.
#pragma once

#include "common/gpu_values.h"
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

// Adds RUN adjacent outputs of a row, [RUN, V], to `total`, for V channels in NHWC and a separable filter of 4 taps.
// `image` points to the first of these channels in the sample. With UP = 2 the output `ox` must start at an input, not
// between two.
template <int UP, int DOWN, int RUN, int V, class T, class S>
FASTGAN_INLINE void add_run(const Geometry& g, const S* arranged, const T* image, int64_t oy, int64_t ox,
                            S (&total)[RUN][V]) {
    constexpr int INPUTS = UP == 2 ? RUN / 2 + 2 : (RUN - 1) * DOWN + 4, ROWS = 4 / UP;
    static_assert(UP == 1 || RUN % 2 == 0, "a run begins and ends between the same two inputs");
    const int64_t start_y = oy * DOWN - g.y.before, first_column = (ox * DOWN - g.x.before) / UP;
    const int phase_y = UP == 2 ? int(start_y & 1) : 0;
    const int64_t first_row = (start_y + phase_y) / UP;  // the dividend is even with UP = 2
    GPU_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const int64_t iy = first_row + r;
        if (iy < 0 || iy >= g.y.size) continue;
        const S weight_y = arranged[4 + phase_y + UP * r];
        S weight[4];
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) weight[i] = weight_y * arranged[i];
        const T* from = image + iy * g.x.size * g.c;
        GPU_UNROLL
        for (int i = 0; i < INPUTS; ++i) {
            const int64_t ix = first_column + i;
            if (ix < 0 || ix >= g.x.size) continue;
            const gpu::Vec<T, V> value = gpu::load<V>(from + ix * g.c);
            GPU_UNROLL
            for (int o = 0; o < RUN; ++o) {
                const int tap = UP == 2 ? o % 2 + 2 * (i - (o + 1) / 2) : i - o * DOWN;
                if (tap < 0 || tap >= 4) continue;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) total[o][v] += weight[tap] * gpu::to<S>(value.v[v]);
            }
        }
    }
}

// A launch with one row of blocks for each row of outputs, whose `jobs` the threads loop over.
struct RowGrid {
    dim3 grid;  // (rows of all samples, parts of a row)
    unsigned threads;

    RowGrid(const Upfirdn2dCall& call, int64_t jobs) {
        if (jobs > (int64_t(1) << 30)) throw std::runtime_error("upfirdn2d: a row of the image is too long");
        threads = unsigned(jobs < BLOCK ? round_up(jobs, gpu::warp_size) : BLOCK);
        grid = dim3(unsigned(call.n * call.oh), unsigned(min(ceil_div(jobs, threads), MAX_GRID_Y)));
    }
};

}  // namespace fastgan::cuda
