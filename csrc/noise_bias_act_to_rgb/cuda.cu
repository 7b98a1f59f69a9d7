// noise_bias_act_to_rgb on the GPU, in NHWC. A thread keeps its channels and walks over positions. Forward adds up the
// pixels of the image by shuffles; backward takes the sums of the small tensors in two stages.
#include "common/gpu_sums.h"

#include "noise_bias_act/gpu.h"
#include "noise_bias_act_to_rgb/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

// The options and small tensors of a call, or the cotangents of these in place of them.
template <class S>
struct Layer {
    Shape<S> shape;
    const S *to_rgb, *noise, *strength, *bias, *scale, *post;
    S absent_scale;
    int64_t c, p;
    bool noise_per_sample;
};

template <class S>
Layer<S> layer_of(const NoiseBiasActToRGBCall& call) {
    return {{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
            (const S*)call.to_rgb,
            (const S*)call.noise,
            (const S*)call.strength,
            (const S*)call.bias,
            (const S*)call.scale,
            (const S*)call.post,
            S(1),
            call.c,
            call.p,
            call.noise_per_sample};
}
template <class S>
Layer<S> cotangents_of(const NoiseBiasActToRGBCall& call) {
    Layer<S> layer = layer_of<S>(call);
    layer.to_rgb = (const S*)call.gto_rgb, layer.strength = (const S*)call.gstrength;
    layer.bias = (const S*)call.gbias, layer.scale = (const S*)call.gscale, layer.post = (const S*)call.gpost;
    layer.absent_scale = S(0);
    return layer;
}

// Loads V numbers of a row of a small tensor into one member of each Channel; `absent` where the row is null. Rows are
// the same for a block and indices have 32 bits: other addresses would take registers.
template <int V, int K, class S>
FASTGAN_INLINE void load_member(const S* row, unsigned channel, S absent, int which, Channel<K, S> (&channels)[V]) {
    constexpr int W = V * sizeof(S) > 16 ? 16 / sizeof(S) : V;
    GPU_UNROLL
    for (int i = 0; i < V; i += W) {
        gpu::Vec<S, W> part;
        if (row) part = gpu::load<W>(row + channel + i);
        GPU_UNROLL
        for (int w = 0; w < W; ++w) number(channels[i + w], which) = row ? part.v[w] : absent;
    }
}

// The small tensors of V adjacent channels of a sample.
template <int V, int K, class S>
FASTGAN_INLINE void load_channels(const Layer<S>& layer, int64_t sample, unsigned channel, Channel<K, S> (&out)[V]) {
    auto of_sample = [&](const S* tensor, int64_t row) { return tensor ? tensor + row * layer.c : nullptr; };
    load_member<V>(layer.bias, channel, S(0), 0, out);
    load_member<V>(of_sample(layer.scale, sample), channel, layer.absent_scale, 1, out);
    load_member<V>(of_sample(layer.post, sample), channel, S(0), 2, out);
    GPU_UNROLL
    for (int k = 0; k < K; ++k) {
        load_member<V>(of_sample(layer.to_rgb, sample * K + k), channel, S(0), 3 + k, out);
    }
}

template <class S>
FASTGAN_INLINE S noise_at(const Layer<S>& layer, int64_t sample, int64_t position) {
    return layer.noise ? layer.noise[(layer.noise_per_sample ? sample * layer.p : 0) + position] : S(0);
}

constexpr int POSITIONS = 2;  // of a thread at a time; with four, one block would fit on a processor
constexpr int PIXELS = 1024;  // most pixels of a block, times the warps that share one

// A row of threads shares the channels of a position, and walks over a piece of the positions. Grid: pieces of all
// samples. The pixels are written at the end: they do not fill 32 bytes each.
template <class T, int V, int K>
__global__ void to_rgb_forward(Layer<typename ArithmeticOf<T>::type> layer, const T* x, T* y,
                               typename ArithmeticOf<T>::type* rgb, Split plan) {
    using S = typename ArithmeticOf<T>::type;
    SHARED(S, pixels, [PIXELS * K]);
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int width = plan.columns < gpu::warp_size ? plan.columns : gpu::warp_size;
    const int warps = plan.columns / width, stride = PIXELS / warps * K;  // of a row; of the pixels of one of them
    const int64_t sample = blockIdx.x / plan.per_sample, begin = blockIdx.x % plan.per_sample * plan.positions;
    const int count = int(min(layer.p - begin, plan.positions));
    const unsigned c = unsigned(layer.c), channels = unsigned(plan.columns) * V;
    const S strength = layer.strength ? *layer.strength : S(1);
    const int64_t offset = (sample * layer.p + begin) * layer.c;
    const T* const from = x + offset;
    T* const to = y ? y + offset : nullptr;
    Channel<K, S> small[V];
    const bool at_once = c <= channels;
    if (at_once && lane * V < int(c)) load_channels<V>(layer, sample, lane * V, small);
    for (int start = row; start - row < count; start += plan.rows * POSITIONS) {  // uniform, for the shuffles
        S noise[POSITIONS], sums[POSITIONS][K] = {};
        bool live[POSITIONS];
        GPU_UNROLL
        for (int i = 0; i < POSITIONS; ++i) {
            const int position = start + i * plan.rows;
            live[i] = position < count;
            noise[i] = live[i] ? strength * noise_at(layer, sample, begin + position) : S(0);
        }
        for (unsigned channel = unsigned(lane) * V; channel < c; channel += channels) {
            if (!at_once) load_channels<V>(layer, sample, channel, small);
            const unsigned at = unsigned(start) * c + channel, step = unsigned(plan.rows) * c;
            gpu::Vec<T, V> in[POSITIONS];
            GPU_UNROLL
            for (int i = 0; i < POSITIONS; ++i) in[i] = gpu::load_or_zeros<V>(live[i], from + at + i * step);
            GPU_UNROLL
            for (int i = 0; i < POSITIONS; ++i) {
                gpu::Vec<T, V> out;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) {
                    out.v[v] = gpu::from<T>(
                        gpu_values::forward(gpu::to<S>(in[i].v[v]), noise[i], small[v], layer.shape, sums[i]));
                }
                if (to && live[i]) gpu::store(to + at + i * step, out);
            }
        }
        GPU_UNROLL
        for (int i = 0; i < POSITIONS; ++i) {
            GPU_UNROLL
            for (int k = 0; k < K; ++k) {
                const S total = sum_lanes(sums[i][k], 1, width);
                if (lane % width == 0 && live[i]) {
                    pixels[lane / width * stride + (start + i * plan.rows) * K + k] = total;
                }
            }
        }
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < count * K; i += BLOCK) {
        S total = pixels[i];
        for (int warp = 1; warp < warps; ++warp) total += pixels[warp * stride + i];
        rgb[(sample * layer.p + begin) * K + i] = total;
    }
}

// A row of threads takes some adjacent channels, and walks over the positions of a piece. Grid: (pieces of all samples,
// tiles of channels). Sums: `partial` [pieces, NUMBERS, C], `strengths` [blocks]. In a double backward a row lies within
// a warp, and its part of the image's gradient goes to `ddrgb` [tiles, N, P, K].
template <class T, int V, int K, bool TWICE>
__global__ void to_rgb_backward(Layer<typename ArithmeticOf<T>::type> layer,
                                Layer<typename ArithmeticOf<T>::type> cotangents, int64_t n, Split plan, const T* dy,
                                const T* x, const T* gx, const typename ArithmeticOf<T>::type* drgb, T* ddy, T* dx,
                                typename ArithmeticOf<T>::type* ddrgb, typename ArithmeticOf<T>::type* partial,
                                typename ArithmeticOf<T>::type* strengths) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int STEPS = V * sizeof(T) == 8 && !TWICE ? 2 : 1;  // positions loaded at a time
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t c = layer.c, p = layer.p;
    const int64_t first_channel = int64_t(blockIdx.y) * plan.columns * V, channel = first_channel + lane * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample;
    const int64_t begin = piece % plan.per_sample * plan.positions;
    const int64_t end = min(begin + plan.positions, p);
    const S strength = layer.strength ? *layer.strength : S(1);
    const S gstrength = cotangents.strength ? *cotangents.strength : S(0);

    Channel<K, S> small[V] = {}, total[V] = {};
    [[maybe_unused]] Channel<K, S> cotangent[V] = {};
    S strength_sum = 0;
    const bool live = channel < c;
    if (live) {
        load_channels<V>(layer, sample, channel, small);
        if constexpr (TWICE) load_channels<V>(cotangents, sample, channel, cotangent);
    }
    const int64_t row_step = plan.rows * c;
    int64_t pixel_at = sample * p + begin + row, at = pixel_at * c + channel;
    const S* noise = layer.noise ? layer.noise + (layer.noise_per_sample ? sample * p : 0) : nullptr;
    for (int64_t start = begin; start < end; start += STEPS * plan.rows) {  // uniform, for the shuffles
        gpu::Vec<T, V> a[STEPS], b[STEPS], d[STEPS];
        S noise_here[STEPS], pixel[STEPS][K];
        GPU_UNROLL
        for (int i = 0; i < STEPS; ++i) {
            const int64_t position = start + row + i * plan.rows;
            if (!live || position >= end) continue;
            a[i] = gpu::load_or_zeros<V>(dy, dy + at + i * row_step);
            b[i] = gpu::load<V>(x + at + i * row_step);
            if constexpr (TWICE) d[i] = gpu::load<V>(gx + at + i * row_step);
            noise_here[i] = noise ? noise[position] : S(0);
            const S* from = drgb + (pixel_at + i * plan.rows) * K;
            GPU_UNROLL
            for (int k = 0; k < K; ++k) pixel[i][k] = from[k];
        }
        GPU_UNROLL
        for (int i = 0; i < STEPS; ++i) {
            const int64_t position = start + row + i * plan.rows;
            [[maybe_unused]] S image[K] = {};
            if (live && position < end) {
                gpu::Vec<T, V> out;
                [[maybe_unused]] gpu::Vec<T, V> also;
                S du = 0;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) {
                    const S dy_here = gpu::to<S>(a[i].v[v]), x_here = gpu::to<S>(b[i].v[v]);
                    if constexpr (TWICE) {
                        const SecondGradients<S> found = gpu_values::double_backward(
                            dy_here, x_here, gpu::to<S>(d[i].v[v]), strength * noise_here[i], gstrength * noise_here[i],
                            pixel[i], small[v], cotangent[v], layer.shape, total[v], image);
                        also.v[v] = gpu::from<T>(found.ddy);
                        out.v[v] = gpu::from<T>(found.dx);
                        du += found.du;
                    } else {
                        const Gradients<S> found = gpu_values::backward(dy_here, x_here, strength * noise_here[i],
                                                                        pixel[i], small[v], layer.shape, total[v]);
                        out.v[v] = gpu::from<T>(found.dx);
                        du += found.du;
                    }
                }
                strength_sum += du * noise_here[i];
                gpu::store(dx + at + i * row_step, out);
                if constexpr (TWICE) {
                    if (ddy) gpu::store(ddy + at + i * row_step, also);
                }
            }
            if constexpr (TWICE) {
                S* to = ddrgb + (int64_t(blockIdx.y) * n * p + pixel_at + i * plan.rows) * K;
                GPU_UNROLL
                for (int k = 0; k < K; ++k) {
                    const S sum = sum_lanes(image[k], 1, plan.columns);
                    if (lane == 0 && position < end) to[k] = sum;
                }
            }
        }
        at += STEPS * row_step;
        pixel_at += STEPS * plan.rows;
    }

    strength_sum = gpu::block_sum(strength_sum);
    if (threadIdx.x == 0) strengths[blockIdx.x * gridDim.y + blockIdx.y] = strength_sum;
    constexpr int SUMS = NUMBERS<K>, size = COLUMN_SLOTS<SUMS, V>;
    SHARED(S, slots, [size]);
    S values[SUMS * V];
    GPU_UNROLL
    for (int i = 0; i < SUMS * V; ++i) values[i] = number(total[i % V], i / V);
    write_sums_of_columns<SUMS, V>(values, plan.columns, c - first_channel, &slots[0],
                                   partial + piece * SUMS * c + first_channel, c);
}

// The gradient of the noise: what the sum over channels takes of backward, strength * du (see noise_gradient_nhwc).
template <class T, int VECTOR, int K>
struct NoiseElement {
    static constexpr int V = VECTOR;
    using S = typename ArithmeticOf<T>::type;
    struct Position {
        S strength, noise, pixel[K];
    };
    struct Channels {
        Channel<K, S> small[V];
    };
    struct Loaded {
        gpu::Vec<T, V> dy, x;
    };

    Layer<S> layer;
    const T *dy, *x;
    const S* drgb;

    FASTGAN_INLINE Position at(int64_t sample, int64_t position) const {
        Position found;
        found.strength = layer.strength ? *layer.strength : S(1);
        found.noise = found.strength * noise_at(layer, sample, position);
        const S* from = drgb + (sample * layer.p + position) * K;
        GPU_UNROLL
        for (int k = 0; k < K; ++k) found.pixel[k] = from[k];
        return found;
    }
    FASTGAN_INLINE Channels channels(int64_t sample, int64_t channel) const {
        Channels found;
        load_channels<V>(layer, sample, unsigned(channel), found.small);
        return found;
    }
    FASTGAN_INLINE Loaded load(int64_t i) const {
        return {gpu::load_or_zeros<V>(dy != nullptr, dy + i), gpu::load<V>(x + i)};
    }
    FASTGAN_INLINE S noise_gradient(const Loaded& in, const Channels& channels, const Position& at) const {
        S du = 0;
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            Channel<K, S> unused{};
            du += gpu_values::backward(gpu::to<S>(in.dy.v[v]), gpu::to<S>(in.x.v[v]), at.noise, at.pixel,
                                       channels.small[v], layer.shape, unused)
                      .du;
        }
        return at.strength * du;
    }
};

// Elements of a thread's access in backward: a thread keeps the small tensors and the sums of its channels in registers.
template <class T>
constexpr int BACKWARD_VECTOR = sizeof(T) == 8 ? 2 : 4;

Split plan_of(const NoiseBiasActToRGBCall& call, int vector, bool twice) {
    return split(call.n, call.c, call.p, true, vector, MAX_BLOCKS, INT64_MAX, twice ? gpu::warp_size : BLOCK);
}

template <class T, int V, int K>
void launch_forward(const NoiseBiasActToRGBCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    Split plan = split(call.n, call.c, call.p, true, V);
    plan.positions = min(plan.positions, PIXELS / max(1, plan.columns / gpu::warp_size));
    plan.per_sample = ceil_div(call.p, plan.positions);
    const dim3 grid(unsigned(call.n * plan.per_sample));
    gpu::Launch(grid, BLOCK, 0, stream)(to_rgb_forward<T, V, K>, layer_of<S>(call), (const T*)call.x, (T*)call.y,
                                        (S*)call.rgb, plan);
}

template <class T, int V, int K, bool TWICE>
void launch_backward(const NoiseBiasActToRGBCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Split plan = plan_of(call, V, TWICE);
    const int64_t n = call.n, c = call.c, pieces = n * plan.per_sample, image = n * call.p * K;
    const dim3 grid{unsigned(pieces), unsigned(plan.tiles)};
    S* partial = (S*)call.workspace;
    S* strengths = partial + pieces * NUMBERS<K> * c;
    S* ddrgb = plan.tiles > 1 ? strengths + pieces * plan.tiles : (S*)call.ddrgb;
    gpu::Launch(grid, BLOCK, 0, stream)(to_rgb_backward<T, V, K, TWICE>, layer_of<S>(call), cotangents_of<S>(call), n,
                                        plan, (const T*)call.dy, (const T*)call.x, (const T*)call.gx,
                                        (const S*)call.drgb, (T*)call.ddy, (T*)call.dx, ddrgb, partial, strengths);
    PieceSums<S> list;
    const int64_t per_sample = plan.per_sample, stride = NUMBERS<K> * c;
    list.add(partial, call.dbias, 1, pieces, stride, c);
    list.add(partial + c, call.dscale, n, per_sample, stride, c);
    list.add(partial + 2 * c, call.dpost, n, per_sample, stride, c);
    list.add(partial + 3 * c, call.dto_rgb, n, per_sample, stride, K * c);
    list.add(strengths, call.dstrength, 1, pieces * plan.tiles, 1, 1);
    if (TWICE && plan.tiles > 1) list.add(ddrgb, call.ddrgb, 1, plan.tiles, image, image);
    list.launch(stream);
}

// Calls `body(element, vector, channels)` for the dtype, the vector size and the number of image channels.
template <class Body>
void for_kernel(const NoiseBiasActToRGBCall& call, Body body) {
    using std::integral_constant;
    for_dtype(call.dtype, [&](auto element) {
        constexpr int V = 16 / sizeof(element);
        const bool vectors = call.c % V == 0 && aligned(call.x, call.y, call.dy, call.dx, call.gx, call.ddy) &&
                             aligned(call.bias, call.scale, call.post, call.to_rgb) &&
                             aligned(call.gbias, call.gscale, call.gpost, call.gto_rgb);
        auto with_vector = [&](auto vector) {
            switch (call.k) {
                case 1: return body(element, vector, integral_constant<int, 1>());
                case 3: return body(element, vector, integral_constant<int, 3>());
                default: return body(element, vector, integral_constant<int, 4>());
            }
        };
        vectors ? with_vector(integral_constant<int, V>()) : with_vector(integral_constant<int, 1>());
    });
}

template <bool TWICE>
void run_backward(const NoiseBiasActToRGBCall& call, void* stream) {
    for_kernel(call, [&](auto element, auto vector, auto channels) {
        using T = decltype(element);
        constexpr int V = vector == 1 ? 1 : BACKWARD_VECTOR<T>;
        launch_backward<T, V, channels, TWICE>(call, stream);
    });
}

}  // namespace

void noise_bias_act_to_rgb_forward(const NoiseBiasActToRGBCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_kernel(call, [&](auto element, auto vector, auto channels) {
        launch_forward<decltype(element), vector, channels>(call, stream);
    });
}

void noise_bias_act_to_rgb_backward(const NoiseBiasActToRGBCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    run_backward<false>(call, stream);
    if (!call.dnoise) return;
    for_kernel(call, [&](auto element, auto vector, auto channels) {
        using T = decltype(element);
        using S = typename ArithmeticOf<T>::type;
        using E = NoiseElement<T, vector == 1 ? 1 : BACKWARD_VECTOR<T>, channels>;
        const E noisy{layer_of<S>(call), (const T*)call.dy, (const T*)call.x, (const S*)call.drgb};
        launch_noise_gradient_nhwc(noisy, call.n, call.c, call.p, call.dnoise, stream);
    });
}

void noise_bias_act_to_rgb_double_backward(const NoiseBiasActToRGBCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    run_backward<true>(call, stream);
}

// Bytes of the workspace: the sums of all pieces, a number for each block, and the tiles' parts of the image's gradient,
// at the vector size with most of them.
int64_t noise_bias_act_to_rgb_workspace(const NoiseBiasActToRGBCall& call) {
    if (call.rgb) return 0;  // forward
    int64_t elements = 0;
    for (int vector : {1, call.dtype == Dtype::float64 ? 2 : 4}) {
        const Split plan = plan_of(call, vector, call.ddrgb != nullptr);
        const int64_t pieces = call.n * plan.per_sample;
        const int64_t image = call.ddrgb ? plan.tiles * call.n * call.p * call.k : 0;
        elements = max(elements, pieces * ((3 + call.k) * call.c + plan.tiles) + image);
    }
    return elements * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
