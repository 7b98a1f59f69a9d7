// noise_bias_act on the GPU. One kernel per layout walks memory in its own order, with 16-byte accesses where the sizes
// allow; `Element` does the arithmetic. The sums of the backward passes are taken in two stages.
#include "common/gpu_sums.h"
#include "noise_bias_act/gpu.h"

namespace fastgan::cuda {
namespace {

enum class Pass { forward, backward_from_output, backward_from_input, double_from_output, double_from_input };
enum class Family { piecewise_linear, curved };  // kernels of the curved activations choose among them at run time

Split plan_of(const NoiseBiasActCall& call, int vector) {
    if ((call.channels_last ? call.c : call.p) % vector != 0) vector = 1;
    return split(call.n, call.c, call.p, call.channels_last, vector);
}

template <Act ACT>
struct Chosen {
    static constexpr Act act = ACT;
};

// Calls `body(Chosen<act>{})`: chosen at compile time for the piecewise linear family, else by a uniform branch.
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

// The tensors of a pass and its arithmetic at one vector of elements.
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

    FASTGAN_INLINE Small<S> cotangent(int64_t sample, int64_t channel, int64_t c) const {
        return {gscale ? gscale[sample * c + channel] : S(0),
                gstrength ? gstrength[strength_per_channel ? channel : 0] : S(0), gbias ? gbias[channel] : S(0),
                gpost ? gpost[sample * c + channel] : S(0), S(0)};
    }

    // STRIDE is 1 if each element of the vector has its own small tensors (NHWC), 0 if they share them (NCHW).
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
                    if constexpr (ACT != Act::silu && ACT != Act::softplus) {  // these two take it from x
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

// NHWC: a thread keeps its channels and walks over pixels; the rows of a block are summed at the end. Grid: (pieces of
// all samples, tiles of channels). Sums: [pieces, SUMS, C].
template <class E, int V>
__global__ void nhwc(E element, int64_t c, int64_t p, Split plan, typename E::S* partial) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t channel = (int64_t(blockIdx.y) * plan.columns + lane) * V;
    const int64_t piece = blockIdx.x, sample = piece / plan.per_sample;
    const int64_t begin = piece % plan.per_sample * plan.positions;
    const int64_t end = min(begin + plan.positions, p);
    const bool live = channel < c;

    Sums<S> total[V] = {};
    if (live) {
        Small<S> small[V], cotangent[V];
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            small[v] = small_at<S>(element, sample, channel + v, c);
            cotangent[v] = element.cotangent(sample, channel + v, c);
        }
        for (int64_t position = begin + row; position < end; position += plan.rows) {
            const S noise = noise_at<S>(element, sample, position, p);
            element.template at<1>((sample * p + position) * c + channel, small, cotangent, &noise, total);
        }
    }
    if constexpr (E::SUMS > 0) {
        GPU_UNROLL
        for (int which = 0; which < E::SUMS; ++which) {
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const S sum = sum_in_block(sum_number(total[v], which), row, plan.rows, plan.columns);
                if (row == 0 && live) partial[(piece * E::SUMS + which) * c + channel + v] = sum;
            }
        }
    }
}

// NCHW: a row of threads takes one channel of a sample, or a piece of it. Grid: (tiles of channels, pieces). Sums as
// above; the piece is sample * per_sample + segment.
template <class E, int V>
__global__ void nchw(E element, int64_t n, int64_t c, int64_t p, Split plan, typename E::S* partial) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t plane = int64_t(blockIdx.x) * plan.rows + row, sample = plane / c, channel = plane % c;
    const int64_t segment = blockIdx.y, begin = segment * plan.positions;
    const int64_t end = min(begin + plan.positions, p);
    const bool live = plane < n * c;

    Sums<S> total[1] = {};
    if (live) {
        const Small<S> small = small_at<S>(element, sample, channel, c),
                       cotangent = element.cotangent(sample, channel, c);
        for (int64_t position = begin + int64_t(lane) * V; position < end; position += int64_t(plan.columns) * V) {
            S noise[V];
            GPU_UNROLL
            for (int v = 0; v < V; ++v) noise[v] = noise_at<S>(element, sample, position + v, p);
            element.template at<0>(plane * p + position, &small, &cotangent, noise, total);
        }
    }
    if constexpr (E::SUMS > 0) {
        GPU_UNROLL
        for (int which = 0; which < E::SUMS; ++which) {
            const S sum = sum_in_block(sum_number(total[0], which), lane, plan.columns, 1);
            const int64_t piece = sample * plan.per_sample + segment;
            if (lane == 0 && live) partial[(piece * E::SUMS + which) * c + channel] = sum;
        }
    }
}

template <class E, int V>
void launch(const NoiseBiasActCall& call, const Split& plan, void* stream) {
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
            gpu::Launch(dim3(1), BLOCK, 0, stream)(add_row<S>, (const S*)channels, (S*)call.dstrength, call.c, 1.0);
        }
        if constexpr (E::SUMS == 4) {
            if (call.dscale) add(2, call.dscale, true);
            if (call.dpost) add(3, call.dpost, true);
        }
    }
}

template <Pass PASS, Family FAMILY = Family::piecewise_linear>
void run(const NoiseBiasActCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = 16 / sizeof(T);
        const bool vectors = aligned(call.x, call.y, call.dy, call.reference, call.dx, call.gx, call.ddy);
        const Split plan = plan_of(call, vectors ? V : 1);
        if (plan.vector == 1) {
            launch<Element<PASS, FAMILY, T, 1>, 1>(call, plan, stream);
        } else {
            launch<Element<PASS, FAMILY, T, V>, V>(call, plan, stream);
        }
    });
}

template <Pass PASS>
void for_act(const NoiseBiasActCall& call, void* stream) {
    if (call.act == Act::piecewise_linear) {
        run<PASS>(call, stream);
    } else {
        run<PASS, Family::curved>(call, stream);
    }
}

}  // namespace

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
    if (call.from_output) {  // piecewise linear: the second derivative is zero, so that x is not needed
        run<Pass::double_from_output>(call, stream);
    } else {
        for_act<Pass::double_from_input>(call, stream);
    }
}

// Bytes, for the vector size that makes the most pieces.
int64_t noise_bias_act_workspace(const NoiseBiasActCall& call) {
    int64_t pieces = 0;
    for (int vector : {1, vector_size(call.dtype)}) pieces = max(pieces, call.n * plan_of(call, vector).per_sample);
    return (pieces * MAX_SUMS + 1) * call.c * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
