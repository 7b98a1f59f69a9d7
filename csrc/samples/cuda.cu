// squared_norm and lerp_samples on the GPU: a block takes a piece of a sample. The sums of squares are taken in two
// stages, each in a fixed order: no atomics, the same bits every time.
#include "common/gpu_values.h"

#include "samples/arithmetic.h"

namespace fastgan::cuda::of_samples {

using namespace gpu_values;

constexpr int BLOCK = 256;
constexpr int STEPS = 4;  // of a thread, each of V numbers

template <int V>
constexpr int64_t PIECE = int64_t(BLOCK) * V * STEPS;

template <int V>
inline int64_t pieces_of(const SamplesCall& call) {
    return ceil_div(call.size, PIECE<V>);
}

// `body(index)` for the vectors that this thread has of its block's piece.
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

// One block a sample.
template <class S>
__global__ void add_pieces(const S* partial, S* sums, int64_t pieces) {
    S total = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += BLOCK) total += partial[blockIdx.x * pieces + i];
    total = gpu::block_sum(total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
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
    gpu::Launch(dim3(unsigned(call.n)), BLOCK, 0, stream)(add_pieces<S>, (const S*)call.workspace, (S*)call.sums,
                                                          pieces);
}

inline bool may_be_wide(const SamplesCall& call) {
    return aligned(call.a) && aligned(call.b) && aligned(call.first) && aligned(call.second) &&
           call.size % elements_of_16_bytes(call.dtype) == 0;
}

template <SampleMap MAP, class T>
void map_of(const SamplesCall& call, void* stream) {
    may_be_wide(call) ? launch_map<MAP, T, 16 / sizeof(T)>(call, stream) : launch_map<MAP, T, 1>(call, stream);
}

template <class T>
void sum_of(const SamplesCall& call, void* stream) {
    may_be_wide(call) ? launch_sum<T, 16 / sizeof(T)>(call, stream) : launch_sum<T, 1>(call, stream);
}

template <SampleMap MAP>
void map_for_dtype(const SamplesCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.dtype) {
        case Dtype::float32: return map_of<MAP, float>(call, stream);
        case Dtype::bfloat16: return map_of<MAP, __nv_bfloat16>(call, stream);
        case Dtype::float16: return map_of<MAP, __half>(call, stream);
        case Dtype::float64: return map_of<MAP, double>(call, stream);
    }
}

}  // namespace fastgan::cuda::of_samples

namespace fastgan::cuda {

void squared_norm_forward(const SamplesCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.dtype) {
        case Dtype::float32: return of_samples::sum_of<float>(call, stream);
        case Dtype::bfloat16: return of_samples::sum_of<__nv_bfloat16>(call, stream);
        case Dtype::float16: return of_samples::sum_of<__half>(call, stream);
        case Dtype::float64: return of_samples::sum_of<double>(call, stream);
    }
}
void squared_norm_backward(const SamplesCall& call, int device, void* stream) {
    of_samples::map_for_dtype<of_samples::SampleMap::scale>(call, device, stream);
}
void lerp_samples_forward(const SamplesCall& call, int device, void* stream) {
    of_samples::map_for_dtype<of_samples::SampleMap::lerp>(call, device, stream);
}
void lerp_samples_backward(const SamplesCall& call, int device, void* stream) {
    of_samples::map_for_dtype<of_samples::SampleMap::split>(call, device, stream);
}

// Bytes, for the narrowest vectors: they make the most pieces.
int64_t squared_norm_workspace(const SamplesCall& call) {
    return call.n * of_samples::pieces_of<1>(call) * (call.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

}  // namespace fastgan::cuda
