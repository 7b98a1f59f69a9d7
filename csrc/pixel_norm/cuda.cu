// pixel_norm on the GPU. In NHWC some lanes of a warp share the channels of a position. In NCHW a block has columns of
// positions times slices of the channels. Activations are read twice, the second time from the L1 cache.
#include "common/gpu_values.h"

#include "pixel_norm/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

template <class T>
struct Tensors {
    const T *x, *dy, *gx;
    T *first, *second;
};

// Calls `body(v, x, dy, gx)` for each of the V elements from index i on; arguments that ORDER does not use are x again.
template <int ORDER, int V, class T, class Body>
FASTGAN_INLINE void with(const Tensors<T>& tensors, int64_t i, Body body) {
    using S = typename ArithmeticOf<T>::type;
    gpu::Vec<T, V> a = gpu::load<V>(tensors.x + i), b = a, c = a;
    if constexpr (ORDER >= 1) b = gpu::load<V>(tensors.dy + i);
    if constexpr (ORDER == 2) c = gpu::load<V>(tensors.gx + i);
    GPU_UNROLL
    for (int v = 0; v < V; ++v) body(v, gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), gpu::to<S>(c.v[v]));
}

// Writes the results at the V elements from index i on; `factors_of(v)` returns the factors of the v-th.
template <int ORDER, int V, class T, class FactorsOf>
FASTGAN_INLINE void write(const Tensors<T>& tensors, int64_t i, FactorsOf factors_of) {
    using S = typename ArithmeticOf<T>::type;
    gpu::Vec<T, V> one, two;
    with<ORDER, V>(tensors, i, [&](int v, S x, S dy, S gx) {
        const Results<S> result = results<ORDER>(factors_of(v), x, dy, gx);
        one.v[v] = gpu::from<T>(result.first);
        two.v[v] = gpu::from<T>(result.second);
    });
    gpu::store(tensors.first + i, one);
    if constexpr (ORDER == 2) gpu::store(tensors.second + i, two);
}

template <class S>
FASTGAN_INLINE S& product(Products<S>& sums, int which) {
    return which == 0 ? sums.xx : which == 1 ? sums.xd : which == 2 ? sums.xg : sums.dg;
}

// NHWC. `lanes` lanes, a power of two up to 32, share one position.
template <int ORDER, class T, int V>
__global__ void nhwc(Tensors<T> tensors, int64_t rows, int64_t c, int lanes, double eps) {
    using S = typename ArithmeticOf<T>::type;
    const int lane = int(threadIdx.x) % lanes;
    const int64_t row = int64_t(blockIdx.x) * (BLOCK / lanes) + int(threadIdx.x) / lanes;
    const bool live = row < rows;
    Products<S> sums{};
    if (live) {
        for (int64_t j = int64_t(lane) * V; j < c; j += int64_t(lanes) * V) {
            with<ORDER, V>(tensors, row * c + j, [&](int, S x, S dy, S gx) { add_products<ORDER>(sums, x, dy, gx); });
        }
    }
    GPU_UNROLL
    for (int which = 0; which < PRODUCTS<ORDER>; ++which) {
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            product(sums, which) += __shfl_xor_sync(gpu::full_mask, product(sums, which), distance);
        }
    }
    if (live) {
        const Factors<S> f = factors<ORDER>(sums, S(1) / S(c), S(eps));
        for (int64_t j = int64_t(lane) * V; j < c; j += int64_t(lanes) * V) {
            write<ORDER, V>(tensors, row * c + j, [&](int) { return f; });
        }
    }
}

// NCHW. Block: `columns` columns of V adjacent positions, times slices of the channels. Grid: tiles of all samples.
template <int ORDER, class T, int V>
__global__ void nchw(Tensors<T> tensors, int64_t c, int64_t p, int64_t tiles, int columns, double eps) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int SLOTS = PRODUCTS<ORDER> * V * BLOCK, WARPS = BLOCK / gpu::warp_size;
    SHARED(S, slots, [SLOTS]);
    const int thread = int(threadIdx.x), lane = thread % columns, slice = thread / columns, slices = BLOCK / columns;
    const int64_t sample = blockIdx.x / tiles, position = (blockIdx.x % tiles * columns + lane) * V;
    const int64_t at = sample * c * p + position;
    const bool live = position < p;
    Products<S> sums[V] = {};
    if (live) {
        for (int64_t j = slice; j < c; j += slices) {
            with<ORDER, V>(tensors, at + j * p,
                           [&](int v, S x, S dy, S gx) { add_products<ORDER>(sums[v], x, dy, gx); });
        }
    }
    // A warp adds up its slices by shuffles, the block those of its warps; every thread gets the sums.
    GPU_UNROLL
    for (int i = 0; i < PRODUCTS<ORDER> * V; ++i) {
        S& sum = product(sums[i % V], i / V);
        for (int distance = columns; distance < gpu::warp_size; distance *= 2) {
            sum += __shfl_xor_sync(gpu::full_mask, sum, distance);
        }
        slots[i * BLOCK + thread] = sum;
    }
    __syncthreads();
    for (int i = thread; i < PRODUCTS<ORDER> * V * columns; i += BLOCK) {
        S* from = &slots[i / columns * BLOCK + i % columns];
        S parts[WARPS];
        GPU_UNROLL
        for (int w = 0; w < WARPS; ++w) parts[w] = from[w * gpu::warp_size];
        GPU_UNROLL
        for (int half = WARPS / 2; half > 0; half /= 2) {
            GPU_UNROLL
            for (int w = 0; w < half; ++w) parts[w] += parts[w + half];
        }
        from[0] = parts[0];
    }
    __syncthreads();
    GPU_UNROLL
    for (int i = 0; i < PRODUCTS<ORDER> * V; ++i) product(sums[i % V], i / V) = slots[i * BLOCK + lane];
    if (live) {
        Factors<S> f[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) f[v] = factors<ORDER>(sums[v], S(1) / S(c), S(eps));
        for (int64_t j = slice; j < c; j += slices) {
            write<ORDER, V>(tensors, at + j * p, [&](int v) { return f[v]; });
        }
    }
}

template <int ORDER, class T, int V>
void launch(const PixelNormCall& call, void* stream) {
    const Tensors<T> tensors{(const T*)call.x, (const T*)call.dy, (const T*)call.gx, (T*)call.first, (T*)call.second};
    if (call.channels_last) {
        const int lanes = power_of_two_from(ceil_div(call.c, V), gpu::warp_size);
        const int64_t rows = call.n * call.p;
        const dim3 grid(unsigned(ceil_div(rows, BLOCK / lanes)));
        gpu::Launch(grid, BLOCK, 0, stream)(nhwc<ORDER, T, V>, tensors, rows, call.c, lanes, call.eps);
    } else {
        const int columns = power_of_two_from(ceil_div(call.p, V), gpu::warp_size);
        const int64_t tiles = ceil_div(call.p, int64_t(columns) * V);
        const dim3 grid(unsigned(call.n * tiles));
        gpu::Launch(grid, BLOCK, 0, stream)(nchw<ORDER, T, V>, tensors, call.c, call.p, tiles, columns, call.eps);
    }
}

template <int ORDER>
void run(const PixelNormCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        // Second derivatives of 8 positions would not fit into the registers.
        constexpr int V = ORDER == 2 && sizeof(T) == 2 ? 4 : 16 / sizeof(T);
        const bool vectors = aligned(call.x, call.dy, call.gx, call.first, call.second) &&
                             (call.channels_last ? call.c : call.p) % V == 0;
        vectors ? launch<ORDER, T, V>(call, stream) : launch<ORDER, T, 1>(call, stream);
    });
}

}  // namespace

void pixel_norm(const PixelNormCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.order) {
        case 0: return run<0>(call, stream);
        case 1: return run<1>(call, stream);
        default: return run<2>(call, stream);
    }
}

}  // namespace fastgan::cuda
