// filtered_noise_bias_act on the GPU: NHWC, 16 bytes of channels a thread, and a few adjacent outputs of a row, whose
// filtered values stay in registers. The backward pass filters x again, instead of reading filtered values that forward
// would have had to write. Its sums take two stages; the launcher does the second.
#include "common/gpu_sums.h"
#include "filtered_noise_bias_act/call.h"
#include "noise_bias_act/gpu.h"
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

constexpr int FORWARD_RUN = 4, BACKWARD_RUN = 2;  // outputs that a thread computes at a time
constexpr Act ACT = Act::piecewise_linear;

// Grid: see RowGrid.
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
int64_t runs_of_row(const Upfirdn2dCall& filter) { return ceil_div(filter.ow, BACKWARD_RUN); }

Split plan_of(const Upfirdn2dCall& filter) {
    return split(filter.n, filter.c, runs_of_row(filter) * filter.oh, true, vector_size(filter.dtype));
}

// A thread keeps its channels and walks over the runs of its piece; the rows of a block are summed at the end. Grid:
// (pieces of all samples, tiles of channels). `du` is the gradient of the filter's output; sums: [pieces, 4, C].
template <class T, int V>
__global__ void filtered_backward(Geometry g, Epilogue<typename ArithmeticOf<T>::type> epilogue, Split plan,
                                  int64_t runs, const typename ArithmeticOf<T>::type* taps, const T* x, const T* dy,
                                  T* du, typename ArithmeticOf<T>::type* sums) {
    using S = typename ArithmeticOf<T>::type;
    SHARED(S, arranged, [8]);
    arrange_taps(g, taps, arranged);
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t channel = (int64_t(blockIdx.y) * plan.columns + lane) * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample;
    const int64_t begin = piece % plan.per_sample * plan.positions;
    const int64_t end = min(begin + plan.positions, runs * g.oh);
    const bool live = channel < g.c;

    Sums<S> total[V] = {};
    if (live) {
        Small<S> small[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) small[v] = small_at<S>(epilogue, sample, channel + v, g.c);
        for (int64_t run = begin + row; run < end; run += plan.rows) {
            const int64_t oy = run / runs, ox = run % runs * BACKWARD_RUN;
            S filtered[BACKWARD_RUN][V] = {};
            add_run<1, 1>(g, arranged, x + sample * g.y.size * g.x.size * g.c + channel, oy, ox, filtered);
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
        }
    }
    GPU_UNROLL
    for (int v = 0; v < V; ++v) {
        GPU_UNROLL
        for (int which = 0; which < MAX_SUMS; ++which) {
            const S sum = sum_in_block(sum_number(total[v], which), row, plan.rows, plan.columns);
            if (row == 0 && live) sums[(piece * MAX_SUMS + which) * g.c + channel + v] = sum;
        }
    }
}

template <class T>
void forward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int V = 16 / sizeof(T);
    const Upfirdn2dCall& filter = call.filter;
    const int64_t vectors = filter.c / V, runs = ceil_div(filter.ow, FORWARD_RUN);
    const RowGrid rows(filter, vectors * runs);
    gpu::Launch(rows.grid, rows.threads, 0, stream)(filtered_forward<T, V>, geometry_of(filter),
                                                    Epilogue<S>(call.epilogue), int(runs), int(vectors),
                                                    (const S*)filter.taps, (const T*)filter.x, (T*)filter.y);
}

template <class T>
void backward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Split plan = plan_of(call.filter);
    const dim3 grid(unsigned(call.filter.n * plan.per_sample), unsigned(plan.tiles));
    gpu::Launch(grid, BLOCK, 0, stream)(filtered_backward<T, 16 / sizeof(T)>, geometry_of(call.filter),
                                        Epilogue<S>(call.epilogue), plan, runs_of_row(call.filter),
                                        (const S*)call.filter.taps, (const T*)call.filter.x, (const T*)call.epilogue.dy,
                                        (T*)call.epilogue.dx, (S*)call.sums);
}

}  // namespace

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.filter.dtype, [&](auto element) { forward<decltype(element)>(call, stream); });
}

void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.filter.dtype, [&](auto element) { backward<decltype(element)>(call, stream); });
}

int64_t filtered_noise_bias_act_pieces(const FilteredNoiseBiasActCall& call) { return plan_of(call.filter).per_sample; }

}  // namespace fastgan::cuda
