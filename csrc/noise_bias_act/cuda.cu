// noise_bias_act on the GPU. Two kernels, one a layout, walk memory in its own order, 16 bytes a thread where the sizes
// allow; what is done at an element is `Element`. The sums of the backward passes are taken in two stages, each in a
// fixed order: no atomics, the same bits every time.
#include "common/gpu_sums.h"
#include "common/gpu_values.h"

#include "noise_bias_act/arithmetic.h"

namespace fastgan::cuda {

using namespace gpu_values;

enum class Pass { forward, backward_from_output, backward_from_input, double_from_output, double_from_input };
enum class Family { piecewise_linear, curved };  // the curved activations are told apart at run time

constexpr int MAX_BLOCKS = 2112;  // 16 for each of an H100's multiprocessors; more work than that is looped over
constexpr int MIN_STEPS = 4;      // of a thread: fewer would not pay for its start and for its sums

// How the work is cut up, from the shape alone: `wide` threads along the fast dimension, `rows` of them to a block.
struct Plan {
    int vector, wide, rows;
    int64_t tiles;       // of the fast dimension (pixels) or of the samples' channels (planes), each a block
    int64_t per_sample;  // pieces that the positions of a sample are cut into
    int64_t positions;   // of a piece
};

inline int power_of_two_from(int64_t size) {
    int power = 1;
    while (power < size && power < BLOCK) power *= 2;
    return power;
}

inline Plan plan_of(const NoiseBiasActCall& call, int widest) {
    Plan plan;
    const int64_t fast = call.channels_last ? call.c : call.p;
    plan.vector = fast % widest == 0 ? widest : 1;
    plan.wide = power_of_two_from(fast / plan.vector);
    plan.rows = BLOCK / plan.wide;
    int64_t blocks, steps;
    if (call.channels_last) {
        plan.tiles = ceil_div(call.c, int64_t(plan.wide) * plan.vector);
        blocks = plan.tiles * call.n;
        steps = ceil_div(call.p, plan.rows);
    } else {
        plan.tiles = ceil_div(call.n * call.c, plan.rows);
        blocks = plan.tiles;
        steps = ceil_div(call.p, int64_t(plan.wide) * plan.vector);
    }
    plan.per_sample = ceil_div(MAX_BLOCKS, blocks > 0 ? blocks : 1);
    if (plan.per_sample > ceil_div(steps, MIN_STEPS)) plan.per_sample = ceil_div(steps, MIN_STEPS);
    if (plan.per_sample < 1) plan.per_sample = 1;
    const int64_t step = call.channels_last ? plan.rows : int64_t(plan.wide) * plan.vector;
    plan.positions = ceil_div(ceil_div(call.p, plan.per_sample), step) * step;
    return plan;
}

template <Act ACT>
struct Chosen {
    static constexpr Act act = ACT;
};

// Calls `body(Chosen<act>{})`: at compile time for the piecewise linear family, by a uniform branch for the others.
template <Family FAMILY, class Body>
FASTGAN_INLINE void with_act(Act act, Body body) {
    if constexpr (FAMILY == Family::piecewise_linear) {
        body(Chosen<Act::piecewise_linear>{});
    } else if (act == Act::tanh) {
        body(Chosen<Act::tanh>{});
    } else if (act == Act::sigmoid) {
        body(Chosen<Act::sigmoid>{});
    } else if (act == Act::silu) {
        body(Chosen<Act::silu>{});
    } else {
        body(Chosen<Act::softplus>{});
    }
}

// A call's tensors with their types, and what is done at one vector of elements.
template <Pass PASS, Family FAMILY, class T, int V>
struct Element {
    using S = typename ArithmeticOf<T>::type;
    using Vector = gpu::Vec<T, V>;
    static constexpr int SUMS = PASS == Pass::backward_from_output  ? 2
                                : PASS == Pass::backward_from_input ? 4
                                : PASS == Pass::double_from_input   ? 4
                                                                    : 0;
    static constexpr bool twice = PASS == Pass::double_from_output || PASS == Pass::double_from_input;

    Act act;
    Shape<S> shape;
    const T *x, *dy, *reference, *gx;
    T *first, *second;
    const S *noise, *strength, *bias, *scale, *post;
    const S *gstrength, *gbias, *gscale, *gpost;
    bool noise_per_sample, strength_per_channel;

    explicit Element(const NoiseBiasActCall& call)
        : act(call.act),
          shape{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
          x((const T*)call.x),
          dy((const T*)call.dy),
          reference((const T*)call.reference),
          gx((const T*)call.gx),
          first((T*)(PASS == Pass::forward ? call.y
                     : twice               ? call.ddy
                                           : call.dx)),
          second(PASS == Pass::double_from_input ? (T*)call.dx : nullptr),
          noise((const S*)call.noise),
          strength((const S*)call.strength),
          bias((const S*)call.bias),
          scale((const S*)call.scale),
          post((const S*)call.post),
          gstrength((const S*)call.gstrength),
          gbias((const S*)call.gbias),
          gscale((const S*)call.gscale),
          gpost((const S*)call.gpost),
          noise_per_sample(call.noise_per_sample),
          strength_per_channel(call.strength_per_channel) {}

    // The small tensors of one channel of one sample, without the noise.
    FASTGAN_INLINE Small<S> small(int64_t sample, int64_t channel, int64_t c) const {
        return {scale ? scale[sample * c + channel] : S(1),
                strength ? strength[strength_per_channel ? channel : 0] : S(1), bias ? bias[channel] : S(0),
                post ? post[sample * c + channel] : S(1), S(0)};
    }
    FASTGAN_INLINE Small<S> cotangent(int64_t sample, int64_t channel, int64_t c) const {
        return {gscale ? gscale[sample * c + channel] : S(0),
                gstrength ? gstrength[strength_per_channel ? channel : 0] : S(0), gbias ? gbias[channel] : S(0),
                gpost ? gpost[sample * c + channel] : S(0), S(0)};
    }
    FASTGAN_INLINE S noise_at(int64_t sample, int64_t position, int64_t p) const {
        return noise ? noise[(noise_per_sample ? sample * p : 0) + position] : S(0);
    }

    // STRIDE is 1 where each element of the vector has its own small tensors (pixels), 0 where they share (planes).
    template <int STRIDE>
    FASTGAN_INLINE void at(int64_t i, const Small<S>* small, const Small<S>* cotangent, const S* noise,
                           Sums<S> (&total)[STRIDE ? V : 1]) const {
        Vector a, b, c, out, also;
        if constexpr (PASS == Pass::forward) {
            a = gpu::load<V>(x + i);
        } else {
            b = gpu::load<V>(reference + i);
            if constexpr (PASS != Pass::double_from_output) a = gpu::load<V>(dy + i);
            if constexpr (twice) c = gpu::load<V>(gx + i);
        }
        with_act<FAMILY>(act, [&](auto chosen) {
            constexpr Act ACT = decltype(chosen)::act;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                Small<S> s = small[STRIDE * v];
                s.noise = noise[STRIDE ? 0 : v];
                [[maybe_unused]] Sums<S> d{};
                if constexpr (PASS == Pass::forward) {
                    out.v[v] = gpu::from<T>(gpu_values::forward<ACT, true>(gpu::to<S>(a.v[v]), s, shape));
                } else if constexpr (PASS == Pass::backward_from_output) {
                    if constexpr (ACT != Act::silu && ACT != Act::softplus) {  // those two are told from x
                        out.v[v] = gpu::from<T>(gpu_values::backward_from_output<ACT>(
                            gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), s.noise, shape, d));
                    }
                } else if constexpr (PASS == Pass::backward_from_input) {
                    out.v[v] = gpu::from<T>(
                        gpu_values::backward_from_input<ACT>(gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), s, shape, d));
                } else if constexpr (PASS == Pass::double_from_output) {
                    out.v[v] = gpu::from<T>(gpu_values::double_backward_from_output<ACT>(
                        gpu::to<S>(b.v[v]), gpu::to<S>(c.v[v]), s.noise, cotangent[STRIDE * v], shape));
                } else {
                    Second<S> both = gpu_values::double_backward_from_input<ACT>(
                        gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), gpu::to<S>(c.v[v]), s, cotangent[STRIDE * v], shape, d);
                    out.v[v] = gpu::from<T>(both.ddy);
                    also.v[v] = gpu::from<T>(both.dx);
                }
                if constexpr (SUMS > 0) {
                    Sums<S>& t = total[STRIDE * v];
                    t.bias += d.bias;
                    t.strength += d.strength;
                    if constexpr (SUMS == 4) {
                        t.scale += d.scale;
                        t.post += d.post;
                    }
                }
            }
        });
        gpu::store(first + i, out);
        if constexpr (PASS == Pass::double_from_input) gpu::store(second + i, also);
    }
};

template <class S>
FASTGAN_INLINE S sum_number(const Sums<S>& sums, int which) {
    return which == 0 ? sums.bias : which == 1 ? sums.strength : which == 2 ? sums.scale : sums.post;
}

// NHWC: a thread keeps its channels and walks over pixels; the rows of a block are added up at the end.
// Grid: (pieces of all samples, tiles of channels). Sums: [pieces, SUMS, C].
template <class E, int V>
__global__ void nhwc(E element, int64_t c, int64_t p, Plan plan, typename E::S* partial) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % plan.wide, row = int(threadIdx.x) / plan.wide;
    const int64_t channel = (int64_t(blockIdx.y) * plan.wide + lane) * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample;
    const int64_t begin = piece % plan.per_sample * plan.positions;
    const int64_t end = begin + plan.positions < p ? begin + plan.positions : p;
    const bool live = channel < c;

    Sums<S> total[V] = {};
    if (live) {
        Small<S> small[V], cotangent[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            small[v] = element.small(sample, channel + v, c);
            cotangent[v] = element.cotangent(sample, channel + v, c);
        }
        for (int64_t position = begin + row; position < end; position += plan.rows) {
            const S noise = element.noise_at(sample, position, p);
            element.template at<1>((sample * p + position) * c + channel, small, cotangent, &noise, total);
        }
    }
    if constexpr (E::SUMS > 0) {
        SHARED(S, rows, [BLOCK]);
        GPU_UNROLL
        for (int which = 0; which < E::SUMS; ++which) {
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                __syncthreads();
                rows[threadIdx.x] = sum_number(total[v], which);
                for (int half = plan.rows / 2; half > 0; half /= 2) {
                    __syncthreads();
                    if (row < half) rows[threadIdx.x] += rows[threadIdx.x + half * plan.wide];
                }
                if (row == 0 && live) partial[(piece * E::SUMS + which) * c + channel + v] = rows[threadIdx.x];
            }
        }
    }
}

// NCHW: a row of threads takes one channel of a sample, or a piece of it. Grid: (tiles of channels, pieces).
// Sums as above: piece is sample * per_sample + segment.
template <class E, int V>
__global__ void nchw(E element, int64_t n, int64_t c, int64_t p, Plan plan, typename E::S* partial) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % plan.wide, row = int(threadIdx.x) / plan.wide;
    const int64_t plane = int64_t(blockIdx.x) * plan.rows + row, sample = plane / c, channel = plane % c;
    const int64_t segment = blockIdx.y, begin = segment * plan.positions;
    const int64_t end = begin + plan.positions < p ? begin + plan.positions : p;
    const bool live = plane < n * c;

    Sums<S> total[1] = {};
    if (live) {
        const Small<S> small = element.small(sample, channel, c), cotangent = element.cotangent(sample, channel, c);
        for (int64_t position = begin + int64_t(lane) * V; position < end; position += int64_t(plan.wide) * V) {
            S noise[V];
            GPU_UNROLL
            for (int v = 0; v < V; ++v) noise[v] = element.noise_at(sample, position + v, p);
            element.template at<0>(plane * p + position, &small, &cotangent, noise, total);
        }
    }
    if constexpr (E::SUMS > 0) {
        SHARED(S, lanes, [BLOCK]);
        GPU_UNROLL
        for (int which = 0; which < E::SUMS; ++which) {
            __syncthreads();
            lanes[threadIdx.x] = sum_number(total[0], which);
            for (int half = plan.wide / 2; half > 0; half /= 2) {
                __syncthreads();
                if (lane < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
            }
            if (lane == 0 && live) {
                partial[((sample * plan.per_sample + segment) * E::SUMS + which) * c + channel] = lanes[threadIdx.x];
            }
        }
    }
}

template <class E, int V>
void launch(const NoiseBiasActCall& call, const Plan& plan, void* stream) {
    using S = typename E::S;
    S* partial = (S*)call.workspace;
    const E element(call);
    if (call.channels_last) {
        const dim3 grid(unsigned(call.n * plan.per_sample), unsigned(plan.tiles));
        gpu::Launch(grid, BLOCK, 0, stream)(nhwc<E, V>, element, call.c, call.p, plan, partial);
    } else {
        const dim3 grid(unsigned(plan.tiles), unsigned(plan.per_sample));
        gpu::Launch(grid, BLOCK, 0, stream)(nchw<E, V>, element, call.n, call.c, call.p, plan, partial);
    }
    if constexpr (E::SUMS > 0) {
        const int64_t all_pieces = call.n * plan.per_sample;
        auto add = [&](int which, void* out, bool per_sample) {
            const dim3 grid(unsigned(per_sample ? call.n : 1), unsigned(ceil_div(call.c, 32)));
            gpu::Launch(grid, BLOCK, 0, stream)(add_pieces<S>, (const S*)partial, (S*)out,
                                                per_sample ? plan.per_sample : all_pieces, call.c, E::SUMS, which);
        };
        if (call.dbias) add(0, call.dbias, false);
        if (call.dstrength && call.strength_per_channel) add(1, call.dstrength, false);
        if (call.dstrength && !call.strength_per_channel) {
            S* channels = partial + all_pieces * E::SUMS * call.c;
            add(1, channels, false);
            gpu::Launch(dim3(1), BLOCK, 0, stream)(add_channels<S>, (const S*)channels, (S*)call.dstrength, call.c);
        }
        if constexpr (E::SUMS == 4) {
            if (call.dscale) add(2, call.dscale, true);
            if (call.dpost) add(3, call.dpost, true);
        }
    }
}

template <Pass PASS, Family FAMILY, class T>
void for_vector(const NoiseBiasActCall& call, void* stream) {
    constexpr int widest = 16 / sizeof(T);
    const bool may = aligned(call.x) && aligned(call.y) && aligned(call.dy) && aligned(call.reference) &&
                     aligned(call.dx) && aligned(call.gx) && aligned(call.ddy);
    const Plan plan = plan_of(call, may ? widest : 1);
    if (plan.vector == 1) {
        launch<Element<PASS, FAMILY, T, 1>, 1>(call, plan, stream);
    } else {
        launch<Element<PASS, FAMILY, T, widest>, widest>(call, plan, stream);
    }
}

template <Pass PASS, Family FAMILY>
void for_dtype(const NoiseBiasActCall& call, void* stream) {
    switch (call.dtype) {
        case Dtype::float32: return for_vector<PASS, FAMILY, float>(call, stream);
        case Dtype::bfloat16: return for_vector<PASS, FAMILY, __nv_bfloat16>(call, stream);
        case Dtype::float16: return for_vector<PASS, FAMILY, __half>(call, stream);
        case Dtype::float64: return for_vector<PASS, FAMILY, double>(call, stream);
    }
}

template <Pass PASS>
void for_act(const NoiseBiasActCall& call, void* stream) {
    if (call.act == Act::piecewise_linear) {
        for_dtype<PASS, Family::piecewise_linear>(call, stream);
    } else {
        for_dtype<PASS, Family::curved>(call, stream);
    }
}

void noise_bias_act_forward(const NoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_act<Pass::forward>(call, stream);
}

void noise_bias_act_backward(const NoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    if (call.from_output) {
        for_act<Pass::backward_from_output>(call, stream);
    } else {
        for_act<Pass::backward_from_input>(call, stream);
    }
}

void noise_bias_act_double_backward(const NoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    if (call.from_output) {  // the slope is constant but for its jumps: only then is there no need of x
        for_dtype<Pass::double_from_output, Family::piecewise_linear>(call, stream);
    } else {
        for_act<Pass::double_from_input>(call, stream);
    }
}

// Bytes, for the narrowest vectors: they make the most pieces.
int64_t noise_bias_act_workspace(const NoiseBiasActCall& call) {
    int64_t pieces = 0;
    for (int widest : {1, elements_of_16_bytes(call.dtype)}) {
        const Plan plan = plan_of(call, widest);
        if (call.n * plan.per_sample > pieces) pieces = call.n * plan.per_sample;
    }
    return (pieces * MAX_SUMS + 1) * call.c * int64_t(call.dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

}  // namespace fastgan::cuda
