// image_batch on the GPU: a block takes a piece of an image, a thread 16 bytes of the output at a time.
#include "common/gpu_values.h"

#include "image_batch/arithmetic.h"

namespace fastgan::cuda {
namespace {

constexpr int STEPS = 4;  // loop steps of a thread, each for V numbers

template <int V>
constexpr int64_t PIECE = int64_t(BLOCK) * V * STEPS;

// I is the type of indices within an image: 32 bits where they suffice, since the division by a row's length is slow.
// An image whose index is out of range becomes NaN: to raise an error, the host would have to wait for the device.
template <class T, int V, class I>
__global__ void convert(const uint8_t* pixels, const int64_t* index, const uint8_t* mirrored, T* y, int64_t images,
                        I size, I row, I channels, int64_t pieces) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t sample = blockIdx.x / pieces;
    const int64_t image = index ? index[sample] : sample;
    const bool exists = image >= 0 && image < images, mirror = mirrored && mirrored[sample];
    const uint8_t* x = pixels + (exists ? image : 0) * int64_t(size);
    const I begin = I(blockIdx.x % pieces * PIECE<V> + int64_t(threadIdx.x) * V);
    GPU_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        const I i = begin + I(step * BLOCK * V);
        if (i >= size) continue;
        gpu::Vec<uint8_t, V> bytes;
        if (exists && !mirror) {
            bytes = gpu::load<V>(x + i);
        } else if (exists) {  // V elements of one row, byte by byte from a cache line
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
            out.v[v] = gpu::from<T>(exists ? gpu_values::scaled(S(bytes.v[v])) : S(NAN));
        }
        gpu::store(y + sample * int64_t(size) + i, out);
    }
}

template <class T, int V, class I>
void launch(const ImageBatchCall& call, void* stream) {
    const int64_t row = call.w * call.c, size = call.h * row, pieces = ceil_div(size, PIECE<V>);
    gpu::Launch(dim3(unsigned(call.n * pieces)), BLOCK, 0, stream)(
        convert<T, V, I>, (const uint8_t*)call.pixels, (const int64_t*)call.index, (const uint8_t*)call.mirrored,
        (T*)call.y, call.images, I(size), I(row), I(call.c), pieces);
}

}  // namespace

void image_batch(const ImageBatchCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = 16 / sizeof(T);
        const int64_t row = call.w * call.c;
        const bool vectors = row % V == 0 && aligned(call.y) && reinterpret_cast<uintptr_t>(call.pixels) % V == 0;
        if (call.h * row < int64_t(1) << 31) {
            vectors ? launch<T, V, uint32_t>(call, stream) : launch<T, 1, uint32_t>(call, stream);
        } else {
            vectors ? launch<T, V, int64_t>(call, stream) : launch<T, 1, int64_t>(call, stream);
        }
    });
}

}  // namespace fastgan::cuda
