// image_batch on the GPU: a block takes a piece of an image, a thread 16 bytes of what is written.
#include "common/gpu_values.h"

#include "image_batch/arithmetic.h"

namespace fastgan::cuda::of_image_batch {

constexpr int BLOCK = 256;
constexpr int STEPS = 4;  // of a thread, each of V numbers

template <int V>
constexpr int64_t PIECE = int64_t(BLOCK) * V * STEPS;

// I counts the numbers of an image: in 32 bits where they suffice, for the division by the length of a row.
// An image that is not there is all NaN: to complain about it, the host would have to wait for the device.
template <class T, int V, class I>
__global__ void image_batch(const uint8_t* pixels, const int64_t* index, const uint8_t* mirrored, T* y, int64_t images,
                            I size, I row, I channels, int64_t pieces) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t sample = blockIdx.x / pieces;
    const int64_t image = index ? index[sample] : sample;
    const bool there = image >= 0 && image < images, turned = mirrored && mirrored[sample];
    const uint8_t* x = pixels + (there ? image : 0) * int64_t(size);
    const I begin = I(blockIdx.x % pieces * PIECE<V> + int64_t(threadIdx.x) * V);
    GPU_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        const I i = begin + I(step * BLOCK * V);
        if (i >= size) continue;
        gpu::Vec<uint8_t, V> bytes;
        if (there && !turned) {
            bytes = gpu::load<V>(x + i);
        } else if (there) {  // V numbers of one row; their bytes come one by one, from a line that is in the cache
            const I first = i / row * row, column = i - first;
            I channel = column % channels, pixel = row - channels - (column - channel);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                bytes.v[v] = x[first + pixel + channel];
                if (++channel == channels) channel = 0, pixel -= channels;
            }
        }
        gpu::Vec<T, V> out;
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            out.v[v] = gpu::from<T>(there ? gpu_values::scaled(S(bytes.v[v])) : S(NAN));
        }
        gpu::store(y + sample * int64_t(size) + i, out);
    }
}

template <class T, int V, class I>
void launch(const ImageBatchCall& call, void* stream) {
    const int64_t row = call.w * call.c, size = call.h * row, pieces = ceil_div(size, PIECE<V>);
    gpu::Launch(dim3(unsigned(call.n * pieces)), BLOCK, 0, stream)(
        image_batch<T, V, I>, (const uint8_t*)call.pixels, (const int64_t*)call.index, (const uint8_t*)call.mirrored,
        (T*)call.y, call.images, I(size), I(row), I(call.c), pieces);
}

template <class T>
void of_type(const ImageBatchCall& call, void* stream) {
    constexpr int V = 16 / sizeof(T);
    const int64_t row = call.w * call.c;
    const bool wide = row % V == 0 && aligned(call.y) && reinterpret_cast<uintptr_t>(call.pixels) % V == 0;
    if (call.h * row < int64_t(1) << 31) {
        wide ? launch<T, V, uint32_t>(call, stream) : launch<T, 1, uint32_t>(call, stream);
    } else {
        wide ? launch<T, V, int64_t>(call, stream) : launch<T, 1, int64_t>(call, stream);
    }
}

}  // namespace fastgan::cuda::of_image_batch

namespace fastgan::cuda {

void image_batch(const ImageBatchCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.dtype) {
        case Dtype::float32: return of_image_batch::of_type<float>(call, stream);
        case Dtype::bfloat16: return of_image_batch::of_type<__nv_bfloat16>(call, stream);
        case Dtype::float16: return of_image_batch::of_type<__half>(call, stream);
        case Dtype::float64: return of_image_batch::of_type<double>(call, stream);
    }
}

}  // namespace fastgan::cuda
