// minibatch_stddev on the GPU. A thread takes one element of every member at a time, not a vector: rows of y have an
// odd length in NHWC, and the layer works on 4x4 images. Sums are taken in two stages.
#include "common/gpu_sums.h"

#include "minibatch_stddev/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

constexpr int64_t PIECE = 2 * BLOCK;  // places (each in all members of a group) in a piece

// Grid: [groups, features, pieces]. k: [groups, features], gradients of the maps; partial: sums of the pieces.
template <int ORDER, class T>
__global__ void walk(MinibatchStddevCall call, FeatureRows f, const typename ArithmeticOf<T>::type* k,
                     typename ArithmeticOf<T>::type* partial) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t groups = call.groups, parts = (f.run + f.run_of_piece - 1) / f.run_of_piece;
    const int64_t piece = blockIdx.x % f.pieces, which = blockIdx.x / f.pieces;
    const int64_t group = which / call.features, feature = which % call.features;
    const int64_t row = piece / parts * f.rows_of_piece, begin = piece % parts * f.run_of_piece;
    const int64_t rows = min(f.rows - row, f.rows_of_piece);
    const int64_t run = min(f.run - begin, f.run_of_piece);
    const int64_t d_row = ORDER == 1 ? f.y_row : f.x_row, d_sample = ORDER == 1 ? f.y_sample : f.x_sample;
    const int64_t x_member = groups * f.x_sample, d_member = groups * d_sample;
    const S weight = ORDER ? k[which] : S(0), share = S(1) / S(call.size), eps = S(1e-8);
    S total = 0;
    for (int64_t i = threadIdx.x; i < rows * run; i += BLOCK) {
        const int64_t at_row = row + i / run, at = feature * f.run + begin + i % run;
        const T* x = (const T*)call.x + group * f.x_sample + at_row * f.x_row + at;
        const T* d = (const T*)(ORDER == 1 ? call.dy : call.gx) + group * d_sample + at_row * d_row + at;
        T* dx = (T*)call.dx + (x - (const T*)call.x);
        total += members<ORDER>(
            call.size, share, eps, weight, [&](int64_t g) { return gpu::to<S>(x[g * x_member]); },
            [&](int64_t g) { return gpu::to<S>(d[g * d_member]); },
            [&](int64_t g, S value) { dx[g * x_member] = gpu::from<T>(value); });
    }
    if constexpr (ORDER != 1) {
        total = gpu::block_sum(total);
        if (threadIdx.x == 0) partial[blockIdx.x] = total;
    }
}

// Gradient of each map, summed over positions and members. Grid: [groups, features].
template <class T>
__global__ void gradient_of_maps(MinibatchStddevCall call, int64_t y_sample, typename ArithmeticOf<T>::type* k) {
    using S = typename ArithmeticOf<T>::type;
    const int64_t group = blockIdx.x / call.features, feature = blockIdx.x % call.features;
    const int64_t step = call.channels_last ? call.c + call.features : 1;
    const T* from = (const T*)call.dy + group * y_sample + (call.c + feature) * (call.channels_last ? 1 : call.p);
    S total = 0;
    for (int64_t i = threadIdx.x; i < call.size * call.p; i += BLOCK) {
        total += gpu::to<S>(from[i / call.p * call.groups * y_sample + i % call.p * step]);
    }
    total = gpu::block_sum(total);
    if (threadIdx.x == 0) k[blockIdx.x] = total * S(call.share);
}

// to = [from, maps]. Grid: [samples, tiles of a sample of `to`].
template <class T>
__global__ void append(MinibatchStddevCall call, const T* from, const typename ArithmeticOf<T>::type* maps, T* to,
                       int64_t y_sample, int64_t tiles) {
    const int64_t sample = blockIdx.x / tiles, i = blockIdx.x % tiles * BLOCK + threadIdx.x;
    if (i >= y_sample) return;  // allowed, since no barrier follows
    const int64_t c = call.c, all = c + call.features;
    const int64_t channel = call.channels_last ? i % all : i / call.p;
    const int64_t at = sample * c * call.p + (call.channels_last ? i / all * c + channel : i);
    to[sample * y_sample + i] =
        channel < c ? from[at] : gpu::from<T>(maps[sample % call.groups * call.features + channel - c]);
}

template <int ORDER, class T>
void run(const MinibatchStddevCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const FeatureRows f(call, PIECE);
    S *k = (S*)call.workspace, *sums = k + call.sums(), *partial = sums + call.sums();
    const dim3 each(unsigned(call.sums()));
    if constexpr (ORDER > 0) gpu::Launch(each, BLOCK, 0, stream)(gradient_of_maps<T>, call, f.y_sample, k);
    gpu::Launch(dim3(unsigned(call.sums() * f.pieces)), BLOCK, 0, stream)(walk<ORDER, T>, call, f, (const S*)k,
                                                                          partial);
    if constexpr (ORDER != 1) {
        // Forward takes the mean of s over the places of a feature, double backward also over the members.
        const double factor = ORDER == 0 ? call.share * call.size : call.share;
        gpu::Launch(each, BLOCK, 0, stream)(add_row<S>, (const S*)partial, sums, f.pieces, factor);
        const int64_t tiles = ceil_div(f.y_sample, BLOCK);
        gpu::Launch(dim3(unsigned(call.n * tiles)), BLOCK, 0, stream)(
            append<T>, call, (const T*)(ORDER == 0 ? call.x : call.gx), (const S*)sums, (T*)call.appended, f.y_sample,
            tiles);
    }
}

template <int ORDER>
void run(const MinibatchStddevCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) { run<ORDER, decltype(element)>(call, stream); });
}

}  // namespace

void minibatch_stddev(const MinibatchStddevCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.order) {
        case 0: return run<0>(call, stream);
        case 1: return run<1>(call, stream);
        default: return run<2>(call, stream);
    }
}

int64_t minibatch_stddev_workspace(const MinibatchStddevCall& call) {
    return call.sums() * (2 + FeatureRows(call, PIECE).pieces) * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
