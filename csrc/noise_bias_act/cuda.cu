// noise_bias_act on the GPU. One kernel per layout walks memory in its own order, with 16-byte accesses where the sizes
// allow; `Element` does the arithmetic. The sums of the backward passes are taken in two stages.
#include "common/gpu_sums.h"
#include "noise_bias_act/gpu.h"

namespace fastgan::cuda {
namespace {

// "biased": from an input with at most a bias, and a piecewise linear activation.
enum class Pass {
    forward,
    backward_from_output,
    backward_from_input,
    double_from_output,
    double_from_input,
    forward_residual,
    backward_from_biased_input
};
enum class Family { piecewise_linear, curved };  // the curved activations share kernels, which branch at run time

Split plan_of(const NoiseBiasActCall& call, int vector) {
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
    static constexpr int SUMS = PASS == Pass::backward_from_output         ? 2
                                : PASS == Pass::backward_from_biased_input ? 1
                                : PASS == Pass::backward_from_input        ? 4
                                : PASS == Pass::double_from_input          ? 4
                                                                           : 0;
    static constexpr bool is_forward = PASS == Pass::forward || PASS == Pass::forward_residual;
    enum : int { STEPS = V * sizeof(T) == 8 && V > 1 ? 2 : 1 };  // positions loaded at a time: half vectors need two
    static constexpr bool twice = PASS == Pass::double_from_output || PASS == Pass::double_from_input;

    Act act;
    Shape<S> shape;
    const T *x, *dy, *reference, *gx;  // reference: of a forward pass the residual
    T *first, *second;
    const S *noise, *strength, *bias, *scale, *post;
    const S *gstrength, *gbias, *gscale, *gpost;
    bool noise_per_sample, strength_per_channel;

    explicit Element(const NoiseBiasActCall& call)
        : act(call.act),
          shape{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
          x((const T*)call.x),
          dy((const T*)call.dy),
          reference((const T*)(is_forward ? call.residual : call.reference)),
          gx((const T*)call.gx),
          first((T*)(is_forward ? call.y
                     : twice    ? call.ddy
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

    // The activations of a vector; a pass leaves some of them out.
    struct Loaded {
        Vector a, b, c;
    };

    FASTGAN_INLINE Loaded load(int64_t i) const {
        Loaded in;
        if constexpr (is_forward) {
            in.a = gpu::load<V>(x + i);
            if constexpr (PASS == Pass::forward_residual) in.b = gpu::load<V>(reference + i);
        } else {
            in.b = gpu::load<V>(reference + i);
            if constexpr (PASS != Pass::double_from_output) in.a = gpu::load<V>(dy + i);
            if constexpr (twice) in.c = gpu::load<V>(gx + i);
        }
        return in;
    }

    // STRIDE is 1 if each element of the vector has its own small tensors (NHWC), 0 if they share them (NCHW).
    template <int STRIDE>
    FASTGAN_INLINE void at(int64_t i, const Loaded& in, const Small<S>* small, const Small<S>* cotangent,
                           const S* noise, Sums<S> (&total)[STRIDE ? V : 1]) const {
        const Vector &a = in.a, &b = in.b, &c = in.c;
        Vector out, also;
        with_act<FAMILY>(act, [&](auto chosen) {
            constexpr Act ACT = decltype(chosen)::act;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                Small<S> s = small[STRIDE * v];
                s.noise = noise[STRIDE ? 0 : v];
                [[maybe_unused]] Sums<S> d{};
                if constexpr (is_forward) {
                    S y = gpu_values::forward<ACT, true>(gpu::to<S>(a.v[v]), s, shape);
                    if constexpr (PASS == Pass::forward_residual) y += gpu::to<S>(b.v[v]);
                    out.v[v] = gpu::from<T>(y);
                } else if constexpr (PASS == Pass::backward_from_output) {
                    if constexpr (ACT != Act::silu && ACT != Act::softplus) {  // silu and softplus use x
                        out.v[v] = gpu::from<T>(gpu_values::backward_from_output<ACT>(
                            gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), s.noise, shape, d));
                    }
                } else if constexpr (PASS == Pass::backward_from_biased_input) {
                    out.v[v] = gpu::from<T>(gpu_values::backward_from_biased_input<ACT>(
                        gpu::to<S>(a.v[v]), gpu::to<S>(b.v[v]), s.bias, shape, d));
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
                    if constexpr (SUMS >= 2) t.strength += d.strength;
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

// NHWC: a thread keeps its channels and walks over positions, STEPS at a time; the rows of a block are summed at the
// end. Grid: (pieces of all samples, tiles of channels). Sums: [pieces, SUMS, C], and `strength` [blocks].
template <class E, int V>
__global__ void nhwc(E element, int64_t c, int64_t p, Split plan, typename E::S* partial, typename E::S* strength) {
    using S = typename E::S;
    const int lane = int(threadIdx.x) % plan.columns, row = int(threadIdx.x) / plan.columns;
    const int64_t first_channel = int64_t(blockIdx.y) * plan.columns * V, channel = first_channel + lane * V;
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
        const int64_t base = sample * p * c + channel;
        for (int64_t position = begin + row; position < end; position += E::STEPS * plan.rows) {
            typename E::Loaded loaded[E::STEPS];
            S noise[E::STEPS];
            GPU_UNROLL
            for (int step = 0; step < E::STEPS; ++step) {
                const int64_t here = position + step * plan.rows;
                if (step > 0 && here >= end) continue;
                loaded[step] = element.load(base + here * c);
                noise[step] = noise_at<S>(element, sample, here, p);
            }
            GPU_UNROLL
            for (int step = 0; step < E::STEPS; ++step) {
                const int64_t here = position + step * plan.rows;
                if (step > 0 && here >= end) continue;
                element.template at<1>(base + here * c, loaded[step], small, cotangent, &noise[step], total);
            }
        }
    }
    if constexpr (E::SUMS > 0) {
        if constexpr (E::SUMS >= 2) write_strength(total, strength);
        write_sums<E::SUMS>(total, plan.columns, c - first_channel, partial + piece * E::SUMS * c + first_channel, c);
    }
}

// NCHW: a row of threads takes one channel of a sample, or a piece of it. Grid: (tiles of channels, pieces). Sums as
// above; the piece is sample * per_sample + segment.
template <class E, int V>
__global__ void nchw(E element, int64_t n, int64_t c, int64_t p, Split plan, typename E::S* partial,
                     typename E::S* strength) {
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
            load_noise(element, sample, position, p, noise);
            const int64_t i = plane * p + position;
            element.template at<0>(i, element.load(i), &small, &cotangent, noise, total);
        }
    }
    if constexpr (E::SUMS > 0) {
        if constexpr (E::SUMS >= 2) write_strength(total, strength);
        S values[E::SUMS];
        GPU_UNROLL
        for (int which = 0; which < E::SUMS; ++which) values[which] = sum_number(total[0], which);
        sum_rows(values, plan.columns);
        const int64_t piece = sample * plan.per_sample + segment;
        if (lane == 0 && live) {
            GPU_UNROLL
            for (int which = 0; which < E::SUMS; ++which) {
                partial[(piece * E::SUMS + which) * c + channel] = values[which];
            }
        }
    }
}

template <class E, int V, bool NHWC>
void launch(const NoiseBiasActCall& call, void* stream) {
    using S = typename E::S;
    const Split plan = plan_of(call, V);
    const int64_t pieces = call.n * plan.per_sample;
    S *partial = (S*)call.workspace, *strength = nullptr;
    if (call.dstrength && !call.strength_per_channel) strength = partial + pieces * E::SUMS * call.c;
    dim3 grid;
    if constexpr (NHWC) {
        grid = dim3(unsigned(pieces), unsigned(plan.tiles));
        gpu::Launch(grid, BLOCK, 0, stream)(nhwc<E, V>, E(call), call.c, call.p, plan, partial, strength);
    } else {
        grid = dim3(unsigned(plan.tiles), unsigned(plan.per_sample));
        gpu::Launch(grid, BLOCK, 0, stream)(nchw<E, V>, E(call), call.n, call.c, call.p, plan, partial, strength);
    }
    if constexpr (E::SUMS > 0) {
        add_sums<S, E::SUMS>(call, partial, plan.per_sample, strength, int64_t(grid.x) * grid.y, stream);
    }
}

// The gradient of the noise: what the sum over channels takes of a pass of backward, strength * du.
template <Pass PASS, Family FAMILY, class T, int VECTOR>
struct NoiseElement {
    static constexpr int V = VECTOR;
    using Backward = Element<PASS, FAMILY, T, V>;
    using S = typename Backward::S;
    struct Channels {
        Small<S> small[V];
    };

    Backward backward;
    int64_t c, p;

    explicit NoiseElement(const NoiseBiasActCall& call) : backward(call), c(call.c), p(call.p) {}

    FASTGAN_INLINE typename Backward::Loaded load(int64_t i) const { return backward.load(i); }

    // Adds to a sum for each element of the vector, which lies in one channel (NCHW), or to one sum (NHWC: STRIDE 1).
    template <int STRIDE>
    FASTGAN_INLINE void add(const typename Backward::Loaded& in, const Small<S>* small, const S* noise,
                            S* total) const {
        with_act<FAMILY>(backward.act, [&](auto chosen) {
            constexpr Act ACT = decltype(chosen)::act;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const S dy = gpu::to<S>(in.a.v[v]), reference = gpu::to<S>(in.b.v[v]);
                Small<S> s = small[STRIDE * v];
                s.noise = noise[STRIDE ? 0 : v];
                Sums<S> d{};
                if constexpr (PASS == Pass::backward_from_input) {
                    gpu_values::backward_from_input<ACT>(dy, reference, s, backward.shape, d);
                } else if constexpr (ACT != Act::silu && ACT != Act::softplus) {  // these use x
                    gpu_values::backward_from_output<ACT>(dy, reference, s.noise, backward.shape, d);
                }
                total[STRIDE ? 0 : v] += s.strength * d.bias;
            }
        });
    }

    // For noise_gradient_nhwc.
    FASTGAN_INLINE S at(int64_t sample, int64_t position) const {
        return PASS == Pass::backward_from_input ? noise_at<S>(backward, sample, position, p) : S(0);
    }
    FASTGAN_INLINE Channels channels(int64_t sample, int64_t channel) const {
        Channels found;
        load_small(backward, sample, channel, c, found.small);
        return found;
    }
    FASTGAN_INLINE S noise_gradient(const typename Backward::Loaded& in, const Channels& channels, S noise) const {
        S total = 0;
        add<1>(in, channels.small, &noise, &total);
        return total;
    }
};

// NCHW: each warp of a block takes every WARPS-th channel of the same V positions a lane; their sums are added up at the
// end. Grid: the positions of all samples.
template <class E>
__global__ void noise_gradient_nchw(E element, unsigned per_sample, typename E::S* out) {
    using S = typename E::S;
    constexpr int V = E::V, WARPS = BLOCK / gpu::warp_size, POSITIONS = gpu::warp_size * V;
    constexpr int ROW = POSITIONS + V;  // one number of padding after 32: lanes then meet different banks
    SHARED(S, slots, [WARPS * ROW]);
    const int lane = int(threadIdx.x) % gpu::warp_size, warp = int(threadIdx.x) / gpu::warp_size;
    const int64_t sample = blockIdx.x / per_sample, begin = int64_t(blockIdx.x % per_sample) * POSITIONS;
    const int64_t c = element.c, p = element.p, position = begin + lane * V;
    auto slot = [](int of_warp, int i) { return of_warp * ROW + i + i / gpu::warp_size; };

    S total[V] = {};
    if (position < p) {
        S noise[V];
        load_noise(element.backward, sample, position, p, noise);
        for (int64_t channel = warp; channel < c; channel += WARPS) {
            const Small<S> small = small_at<S>(element.backward, sample, channel, c);
            element.template add<0>(element.load((sample * c + channel) * p + position), &small, noise, total);
        }
    }
    GPU_UNROLL
    for (int v = 0; v < V; ++v) slots[slot(warp, lane * V + v)] = total[v];
    __syncthreads();
    const int i = int(threadIdx.x);
    if (i >= POSITIONS || begin + i >= p) return;
    S sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += slots[slot(w, i)];
    out[sample * p + begin + i] = sum;
}

template <Pass PASS, Family FAMILY, class T, int V>
void launch_noise_gradient(const NoiseBiasActCall& call, void* stream) {
    using E = NoiseElement<PASS, FAMILY, T, V>;
    if (call.channels_last) {
        launch_noise_gradient_nhwc(E(call), call.n, call.c, call.p, call.dnoise, stream);
    } else {
        const unsigned per_sample = unsigned(ceil_div(call.p, gpu::warp_size * V));
        gpu::Launch(unsigned(call.n * per_sample), BLOCK, 0, stream)(noise_gradient_nchw<E>, E(call), per_sample,
                                                                     (typename E::S*)call.dnoise);
    }
}

template <Pass PASS, Family FAMILY>
void noise_gradient(const NoiseBiasActCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = 16 / sizeof(T);
        const bool fits = aligned(call.dy, call.reference, call.noise) &&
                          aligned(call.strength, call.bias, call.scale, call.post) &&
                          (call.channels_last ? call.c : call.p) % V == 0;
        fits ? launch_noise_gradient<PASS, FAMILY, T, V>(call, stream)
             : launch_noise_gradient<PASS, FAMILY, T, 1>(call, stream);
    });
}

template <Pass PASS, Family FAMILY = Family::piecewise_linear>
void run(const NoiseBiasActCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        // In NHWC a thread keeps the small tensors and the sums of each of its channels in registers. With half a
        // vector of 16-bit activations more blocks fit on a multiprocessor.
        constexpr bool half = PASS == Pass::backward_from_input || PASS == Pass::double_from_input;
        constexpr int V = 16 / sizeof(T), NHWC_V = half && V == 8 ? 4 : V;
        const bool fits =
            aligned(call.x, call.y, call.dy, call.reference, call.dx, call.gx, call.ddy, call.noise, call.residual) &&
            (call.channels_last ? call.c : call.p) % V == 0;
        if (call.channels_last) {
            fits ? launch<Element<PASS, FAMILY, T, NHWC_V>, NHWC_V, true>(call, stream)
                 : launch<Element<PASS, FAMILY, T, 1>, 1, true>(call, stream);
        } else {
            fits ? launch<Element<PASS, FAMILY, T, V>, V, false>(call, stream)
                 : launch<Element<PASS, FAMILY, T, 1>, 1, false>(call, stream);
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
    if constexpr (PASS == Pass::backward_from_output || PASS == Pass::backward_from_input) {
        if (!call.dnoise) return;
        call.act == Act::piecewise_linear ? noise_gradient<PASS, Family::piecewise_linear>(call, stream)
                                          : noise_gradient<PASS, Family::curved>(call, stream);
    }
}

}  // namespace

void noise_bias_act_forward(const NoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    call.residual ? for_act<Pass::forward_residual>(call, stream) : for_act<Pass::forward>(call, stream);
}

void noise_bias_act_backward(const NoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    if (call.from_output) {
        for_act<Pass::backward_from_output>(call, stream);
    } else if (call.act == Act::piecewise_linear && !call.noise && !call.scale && !call.post) {
        run<Pass::backward_from_biased_input>(call, stream);
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

// Bytes of the workspace: the sums of all pieces and one number for each block, at the vector size with most pieces.
int64_t noise_bias_act_workspace(const NoiseBiasActCall& call) {
    int64_t pieces = 0;
    for (int vector : {1, 4, vector_size(call.dtype)}) pieces = max(pieces, call.n * plan_of(call, vector).per_sample);
    return pieces * (MAX_SUMS + 1) * call.c * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
