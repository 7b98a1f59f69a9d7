// filtered_noise_bias_act on the GPU, in NHWC. A thread takes 16 bytes of channels at a few adjacent outputs of a row;
// the filtered values stay in registers. Backward filters x again: otherwise forward would have to write the filtered
// values. Its sums are taken in two stages.
#include "filtered_noise_bias_act/call.h"
#include "noise_bias_act/gpu.h"
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

constexpr int FORWARD_RUN = 4, BACKWARD_RUN = 2;  // outputs that a thread computes at a time
constexpr Act ACT = Act::piecewise_linear;

// Forward pass. Grid: see RowGrid.
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
            noise[o] = ox + o < g.ow ? noise_at<S>(epilogue, sample, oy * g.ow + ox + o, g.oh * g.ow) : S(0);
        }
        gpu::Vec<T, V> out[FORWARD_RUN];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            Small<S> small = small_at<S>(epilogue, sample, channel + v, g.c);
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

// The backward pass is split along the channels and along the runs of outputs of a sample.
int runs_of_row(const Upfirdn2dCall& filter) { return int(ceil_div(filter.ow, BACKWARD_RUN)); }

// Whether the addresses of all activations allow accesses of 16 bytes: a tensor of another library may lie anywhere.
bool fits_vectors(const FilteredNoiseBiasActCall& call) {
    return aligned(call.filter.x, call.filter.y, call.epilogue.dy, call.epilogue.dx);
}

// Number of elements in an access of the backward pass. With half a vector of 16-bit activations, the small tensors and
// sums of a thread's channels leave registers for two blocks on a multiprocessor.
int backward_vector(const FilteredNoiseBiasActCall& call) {
    return !fits_vectors(call) ? 1 : call.filter.dtype == Dtype::float64 ? 2 : 4;
}

Split plan_of(const FilteredNoiseBiasActCall& call) {
    const Upfirdn2dCall& filter = call.filter;
    return split(filter.n, filter.c, runs_of_row(filter) * filter.oh, true, backward_vector(call));
}

// Backward pass. A thread keeps its channels and walks over the runs of its piece; the rows of a block are summed at
// the end. Grid: (pieces of all samples, tiles of channels). `du` is the gradient of the filter's output; sums:
// [pieces, 4, C], and `strength` [blocks].
template <class T, int V>
__global__ void filtered_backward(Geometry g, Epilogue<typename ArithmeticOf<T>::type> epilogue, Split plan, int runs,
                                  const typename ArithmeticOf<T>::type* taps, const T* x, const T* dy, T* du,
                                  typename ArithmeticOf<T>::type* partial, typename ArithmeticOf<T>::type* strength) {
    using S = typename ArithmeticOf<T>::type;
    SHARED(S, arranged, [8]);
    arrange_taps(g, taps, arranged);
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t first_channel = int64_t(blockIdx.y) * plan.columns * V, channel = first_channel + lane * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample;
    const int64_t begin = piece % plan.per_sample * plan.positions + row;
    const int64_t end = min(piece % plan.per_sample * plan.positions + plan.positions, runs * g.oh);

    Sums<S> total[V] = {};
    if (channel < g.c) {
        Small<S> small[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) small[v] = small_at<S>(epilogue, sample, channel + v, g.c);
        const T* image = x + sample * g.y.size * g.x.size * g.c + channel;
        const int64_t rows_on = plan.rows / runs;
        int64_t oy = begin / runs;
        for (int64_t run = begin, run_of_row = begin % runs; run < end; run += plan.rows) {
            const int64_t ox = run_of_row * BACKWARD_RUN;
            S filtered[BACKWARD_RUN][V] = {};
            add_run<1, 1>(g, arranged, image, oy, ox, filtered);
            GPU_UNROLL
            for (int o = 0; o < BACKWARD_RUN; ++o) {
                if (ox + o >= g.ow) continue;
                const int64_t position = oy * g.ow + ox + o, at = (sample * g.oh * g.ow + position) * g.c + channel;
                const S noise = noise_at<S>(epilogue, sample, position, g.oh * g.ow);
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
            oy += rows_on, run_of_row += plan.rows - rows_on * runs;
            if (run_of_row >= runs) run_of_row -= runs, ++oy;
        }
    }
    write_strength(total, strength);
    write_sums<MAX_SUMS>(total, plan.columns, g.c - first_channel, partial + piece * MAX_SUMS * g.c + first_channel,
                         g.c);
}

template <class T, int V>
void forward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Upfirdn2dCall& filter = call.filter;
    const int64_t vectors = filter.c / V, runs = ceil_div(filter.ow, FORWARD_RUN);
    const RowGrid rows(filter, vectors * runs);
    gpu::Launch(rows.grid, rows.threads, 0, stream)(filtered_forward<T, V>, geometry_of(filter),
                                                    Epilogue<S>(call.epilogue), int(runs), int(vectors),
                                                    (const S*)filter.taps, (const T*)filter.x, (T*)filter.y);
}

template <class T, int V>
void backward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const NoiseBiasActCall& epilogue = call.epilogue;
    const Split plan = plan_of(call);
    const int64_t pieces = call.filter.n * plan.per_sample;
    const dim3 grid(unsigned(pieces), unsigned(plan.tiles));
    S *partial = (S*)call.workspace, *strength = nullptr;
    if (epilogue.dstrength && !epilogue.strength_per_channel) strength = partial + pieces * MAX_SUMS * call.filter.c;
    gpu::Launch(grid, BLOCK, 0, stream)(filtered_backward<T, V>, geometry_of(call.filter), Epilogue<S>(epilogue), plan,
                                        runs_of_row(call.filter), (const S*)call.filter.taps, (const T*)call.filter.x,
                                        (const T*)epilogue.dy, (T*)epilogue.dx, partial, strength);
    add_sums<S, MAX_SUMS>(epilogue, partial, plan.per_sample, strength, pieces * plan.tiles, stream);
}

}  // namespace

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        fits_vectors(call) ? forward<T, 16 / sizeof(T)>(call, stream) : forward<T, 1>(call, stream);
    });
}

void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = sizeof(T) == 8 ? 2 : 4;
        fits_vectors(call) ? backward<T, V>(call, stream) : backward<T, 1>(call, stream);
    });
}

// Bytes of the workspace: the sums of all pieces, and one number for each block.
int64_t filtered_noise_bias_act_workspace(const FilteredNoiseBiasActCall& call) {
    const Split plan = plan_of(call);
    return call.filter.n * plan.per_sample * (MAX_SUMS * call.filter.c + plan.tiles) *
           arithmetic_bytes(call.filter.dtype);
}

}  // namespace fastgan::cuda
