// filtered_noise_bias_act on the GPU: NHWC, 16 bytes of channels a thread, some adjacent outputs of a row, whose filtered
// values stay in registers. The backward pass filters x again instead of reading what the forward pass would have had to
// write. Its sums are taken in two stages of fixed order; the second, of a few numbers a channel, is the launcher's.
#include "upfirdn2d/gpu.h"

#include "noise_bias_act/arithmetic.h"

#include "filtered_noise_bias_act/call.h"

namespace fastgan::cuda {

using namespace gpu_values;

constexpr int BLOCK = 256;
constexpr int MAX_BLOCKS = 2112;  // 16 for each of an H100's multiprocessors; more work than that is looped over
constexpr int FORWARD_RUN = 4, BACKWARD_RUN = 2;  // outputs of a thread at once
constexpr Act ACT = Act::piecewise_linear;

template <class S>
struct Epilogue {
    Shape<S> shape;
    const S *noise, *strength, *bias, *scale, *post;
    bool noise_per_sample, strength_per_channel;

    explicit Epilogue(const NoiseBiasActCall& call)
        : shape{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
          noise((const S*)call.noise),
          strength((const S*)call.strength),
          bias((const S*)call.bias),
          scale((const S*)call.scale),
          post((const S*)call.post),
          noise_per_sample(call.noise_per_sample),
          strength_per_channel(call.strength_per_channel) {}

    // Of one channel of one sample, without the noise.
    FASTGAN_INLINE Small<S> small(int64_t sample, int64_t channel, int64_t c) const {
        return {scale ? scale[sample * c + channel] : S(1),
                strength ? strength[strength_per_channel ? channel : 0] : S(1), bias ? bias[channel] : S(0),
                post ? post[sample * c + channel] : S(1), S(0)};
    }
    FASTGAN_INLINE S noise_at(int64_t sample, int64_t position, int64_t positions) const {
        return noise ? noise[(noise_per_sample ? sample * positions : 0) + position] : S(0);
    }
};

// Grid: (rows of all samples, parts of a row).
template <class T, int V>
__global__ void filtered_forward(Geometry g, Epilogue<typename ArithmeticOf<T>::type> epilogue, int runs, int vectors,
                                 const typename ArithmeticOf<T>::type* taps, const T* x, T* y) {
    using S = typename ArithmeticOf<T>::type;
    SHARED(S, arranged, [8]);
    arrange_taps(g, taps, arranged);
    const int64_t row = blockIdx.x, sample = row / g.oh, oy = row % g.oh;
    for (int job = int(blockIdx.y * blockDim.x + threadIdx.x); job < runs * vectors;
         job += int(gridDim.y * blockDim.x)) {
        const int64_t channel = int64_t(job % vectors) * V, ox = int64_t(job / vectors) * FORWARD_RUN;
        S total[FORWARD_RUN][V] = {};
        add_run<1, 1>(g, arranged, x + sample * g.y.size * g.x.size * g.c + channel, oy, ox, total);
        S noise[FORWARD_RUN];
        GPU_UNROLL
        for (int o = 0; o < FORWARD_RUN; ++o) {
            noise[o] = ox + o < g.ow ? epilogue.noise_at(sample, oy * g.ow + ox + o, g.oh * g.ow) : S(0);
        }
        gpu::Vec<T, V> out[FORWARD_RUN];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            Small<S> small = epilogue.small(sample, channel + v, g.c);
            GPU_UNROLL
            for (int o = 0; o < FORWARD_RUN; ++o) {
                small.noise = noise[o];
                out[o].v[v] = gpu::from<T>(gpu_values::forward<ACT, true>(total[o][v], small, epilogue.shape));
            }
        }
        GPU_UNROLL
        for (int o = 0; o < FORWARD_RUN; ++o) {
            if (ox + o < g.ow) gpu::store(y + (row * g.ow + ox + o) * g.c + channel, out[o]);
        }
    }
}

// How the backward pass is cut up, from the shape alone: `wide` threads along the channels, `rows` of them to a block.
struct Plan {
    int wide, rows;
    int64_t tiles;       // of the channels
    int64_t runs;        // of a row of outputs
    int64_t per_sample;  // pieces that a sample's runs are cut into
    int64_t length;      // runs of a piece
};

inline Plan plan_of(const FilteredNoiseBiasActCall& call) {
    Plan plan;
    const int64_t vectors = call.filter.c / elements_of_16_bytes(call.filter.dtype);
    plan.wide = 1;
    while (plan.wide < vectors && plan.wide < BLOCK) plan.wide *= 2;
    plan.rows = BLOCK / plan.wide;
    plan.tiles = ceil_div(vectors, plan.wide);
    plan.runs = ceil_div(call.filter.ow, BACKWARD_RUN);
    const int64_t all = plan.runs * call.filter.oh, steps = ceil_div(all, plan.rows);
    plan.per_sample = ceil_div(MAX_BLOCKS, plan.tiles * call.filter.n);
    if (plan.per_sample > ceil_div(steps, 4)) plan.per_sample = ceil_div(steps, 4);
    plan.length = ceil_div(ceil_div(all, plan.per_sample), plan.rows) * plan.rows;
    return plan;
}

// A thread keeps its channels and walks over runs; the rows of a block are added up at the end. Grid: (pieces of all
// samples, tiles of channels). `du` is the gradient of the filter's output; sums: [pieces, 4, C].
template <class T, int V>
__global__ void filtered_backward(Geometry g, Epilogue<typename ArithmeticOf<T>::type> epilogue, Plan plan,
                                  const typename ArithmeticOf<T>::type* taps, const T* x, const T* dy, T* du,
                                  typename ArithmeticOf<T>::type* sums) {
    using S = typename ArithmeticOf<T>::type;
    SHARED(S, arranged, [8]);
    arrange_taps(g, taps, arranged);
    const int lane = int(threadIdx.x) % plan.wide, row = int(threadIdx.x) / plan.wide;
    const int64_t channel = (int64_t(blockIdx.y) * plan.wide + lane) * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample, all = plan.runs * g.oh;
    const int64_t begin = piece % plan.per_sample * plan.length;
    const int64_t end = begin + plan.length < all ? begin + plan.length : all;
    const bool live = channel < g.c;

    Sums<S> total[V] = {};
    if (live) {
        Small<S> small[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) small[v] = epilogue.small(sample, channel + v, g.c);
        for (int64_t run = begin + row; run < end; run += plan.rows) {
            const int64_t oy = run / plan.runs, ox = run % plan.runs * BACKWARD_RUN;
            S filtered[BACKWARD_RUN][V] = {};
            add_run<1, 1>(g, arranged, x + sample * g.y.size * g.x.size * g.c + channel, oy, ox, filtered);
            GPU_UNROLL
            for (int o = 0; o < BACKWARD_RUN; ++o) {
                if (ox + o >= g.ow) continue;
                const int64_t position = oy * g.ow + ox + o, at = (sample * g.oh * g.ow + position) * g.c + channel;
                const S noise = epilogue.noise_at(sample, position, g.oh * g.ow);
                const gpu::Vec<T, V> seed = gpu::load<V>(dy + at);
                gpu::Vec<T, V> out;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) {
                    Sums<S> d;
                    small[v].noise = noise;
                    out.v[v] = gpu::from<T>(gpu_values::backward_from_input<ACT>(gpu::to<S>(seed.v[v]), filtered[o][v],
                                                                                 small[v], epilogue.shape, d));
                    total[v].bias += d.bias;
                    total[v].strength += d.strength;
                    total[v].scale += d.scale;
                    total[v].post += d.post;
                }
                gpu::store(du + at, out);
            }
        }
    }
    SHARED(S, rows, [BLOCK]);
    GPU_UNROLL
    for (int v = 0; v < V; ++v) {
        GPU_UNROLL
        for (int which = 0; which < 4; ++which) {
            const Sums<S>& t = total[v];
            __syncthreads();
            rows[threadIdx.x] = which == 0 ? t.bias : which == 1 ? t.strength : which == 2 ? t.scale : t.post;
            for (int half = plan.rows / 2; half > 0; half /= 2) {
                __syncthreads();
                if (row < half) rows[threadIdx.x] += rows[threadIdx.x + half * plan.wide];
            }
            if (row == 0 && live) sums[(piece * 4 + which) * g.c + channel + v] = rows[threadIdx.x];
        }
    }
}

template <class T>
void forward_of(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int V = 16 / sizeof(T);
    const Upfirdn2dCall& filter = call.filter;
    const int64_t vectors = filter.c / V, runs = ceil_div(filter.ow, FORWARD_RUN), jobs = vectors * runs;
    if (jobs > (int64_t(1) << 30)) throw std::runtime_error("filtered_noise_bias_act: a row of the image is too long");
    const int64_t threads = jobs < BLOCK ? ceil_div(jobs, 32) * 32 : BLOCK, parts = ceil_div(jobs, threads);
    const dim3 grid(unsigned(filter.n * filter.oh), unsigned(parts < 65535 ? parts : 65535));
    gpu::Launch(grid, unsigned(threads), 0, stream)(filtered_forward<T, V>, geometry_of(filter),
                                                    Epilogue<S>(call.epilogue), int(runs), int(vectors),
                                                    (const S*)filter.taps, (const T*)filter.x, (T*)filter.y);
}

template <class T>
void backward_of(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Plan plan = plan_of(call);
    const dim3 grid(unsigned(call.filter.n * plan.per_sample), unsigned(plan.tiles));
    gpu::Launch(grid, BLOCK, 0, stream)(filtered_backward<T, 16 / sizeof(T)>, geometry_of(call.filter),
                                        Epilogue<S>(call.epilogue), plan, (const S*)call.filter.taps,
                                        (const T*)call.filter.x, (const T*)call.epilogue.dy, (T*)call.epilogue.dx,
                                        (S*)call.epilogue.workspace);
}

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.filter.dtype) {
        case Dtype::float32: return forward_of<float>(call, stream);
        case Dtype::bfloat16: return forward_of<__nv_bfloat16>(call, stream);
        case Dtype::float16: return forward_of<__half>(call, stream);
        case Dtype::float64: return forward_of<double>(call, stream);
    }
}

void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    switch (call.filter.dtype) {
        case Dtype::float32: return backward_of<float>(call, stream);
        case Dtype::bfloat16: return backward_of<__nv_bfloat16>(call, stream);
        case Dtype::float16: return backward_of<__half>(call, stream);
        case Dtype::float64: return backward_of<double>(call, stream);
    }
}

int64_t filtered_noise_bias_act_pieces(const FilteredNoiseBiasActCall& call) { return plan_of(call).per_sample; }

}  // namespace fastgan::cuda
