// squared_norm and lerp_samples on the GPU: a block takes a piece of a sample. Sums of squares take two stages.
#include "common/gpu_sums.h"

#include "samples/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

constexpr int STEPS = 4;  // loop steps of a thread, each for V numbers

template <int V>
constexpr int64_t PIECE = int64_t(BLOCK) * V * STEPS;

template <int V>
inline int64_t pieces_of(const SamplesCall& call) {
    return ceil_div(call.size, PIECE<V>);
}

// Calls `body(index)` for this thread's vectors of its block's piece.
template <int V, class Body>
FASTGAN_INLINE void for_vectors(int64_t size, int64_t pieces, Body body) {
    const int64_t begin = blockIdx.x % pieces * PIECE<V> + int64_t(threadIdx.x) * V;
    GPU_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        const int64_t i = begin + int64_t(step) * BLOCK * V;
        if (i < size) body(blockIdx.x / pieces * size + i);
    }
}

template <SampleMap MAP, class T, int V>
__global__ void map(const T* a, const T* b, const typename ArithmeticOf<T>::type* weights, T* first, T* second,
                    int64_t size, int64_t pieces) {
    using S = typename ArithmeticOf<T>::type;
    const S weight = weights[blockIdx.x / pieces];
    for_vectors<V>(size, pieces, [&](int64_t i) {
        gpu::Vec<T, V> x = gpu::load<V>(a + i), y = x, one, two;
        if constexpr (MAP == SampleMap::lerp) y = gpu::load<V>(b + i);
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            const Mapped<S> result = mapped<MAP>(gpu::to<S>(x.v[v]), gpu::to<S>(y.v[v]), weight);
            one.v[v] = gpu::from<T>(result.first);
            two.v[v] = gpu::from<T>(result.second);
        }
        gpu::store(first + i, one);
        if constexpr (MAP == SampleMap::split) {
            if (second) gpu::store(second + i, two);
        }
    });
}

template <class T, int V>
__global__ void sum_of_squares(const T* x, typename ArithmeticOf<T>::type* partial, int64_t size, int64_t pieces) {
    using S = typename ArithmeticOf<T>::type;
    S total = 0;
    for_vectors<V>(size, pieces, [&](int64_t i) {
        const gpu::Vec<T, V> values = gpu::load<V>(x + i);
        S here = 0;
        GPU_UNROLL
        for (int v = 0; v < V; ++v) here += gpu::to<S>(values.v[v]) * gpu::to<S>(values.v[v]);
        total += here;
    });
    total = gpu::block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <SampleMap MAP, class T, int V>
void launch_map(const SamplesCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t pieces = pieces_of<V>(call);
    gpu::Launch(dim3(unsigned(call.n * pieces)), BLOCK, 0, stream)(map<MAP, T, V>, (const T*)call.a, (const T*)call.b,
                                                                   (const S*)call.weight, (T*)call.first,
                                                                   (T*)call.second, call.size, pieces);
}

template <class T, int V>
void launch_sum(const SamplesCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t pieces = pieces_of<V>(call);
    gpu::Launch(dim3(unsigned(call.n * pieces)), BLOCK, 0, stream)(sum_of_squares<T, V>, (const T*)call.a,
                                                                   (S*)call.workspace, call.size, pieces);
    gpu::Launch(dim3(unsigned(call.n)), BLOCK, 0, stream)(add_row<S>, (const S*)call.workspace, (S*)call.sums, pieces,
                                                          1.0);
}

bool fits_vectors(const SamplesCall& call) {
    return aligned(call.a, call.b, call.first, call.second) && call.size % vector_size(call.dtype) == 0;
}

template <SampleMap MAP>
void map(const SamplesCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        fits_vectors(call) ? launch_map<MAP, T, 16 / sizeof(T)>(call, stream) : launch_map<MAP, T, 1>(call, stream);
    });
}

}  // namespace

void squared_norm_forward(const SamplesCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        fits_vectors(call) ? launch_sum<T, 16 / sizeof(T)>(call, stream) : launch_sum<T, 1>(call, stream);
    });
}
void squared_norm_backward(const SamplesCall& call, int device, void* stream) {
    map<SampleMap::scale>(call, device, stream);
}
void lerp_samples_forward(const SamplesCall& call, int device, void* stream) {
    map<SampleMap::lerp>(call, device, stream);
}
void lerp_samples_backward(const SamplesCall& call, int device, void* stream) {
    map<SampleMap::split>(call, device, stream);
}

// Bytes of the workspace for accesses to single elements, which have the most pieces.
int64_t squared_norm_workspace(const SamplesCall& call) {
    return call.n * pieces_of<1>(call) * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
