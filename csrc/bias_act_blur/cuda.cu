// bias_act_blur on the GPU: the strip of upfirdn2d (upfirdn2d/gpu.h), which applies the activation to the pixels that
// it reads (forward), or its derivative to the outputs of the adjoint filter (backward).
#include "bias_act_blur/call.h"
#include "noise_bias_act/gpu.h"
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

constexpr Act ACT = Act::piecewise_linear;

// Forward: f(x + bias).
template <class T, int V, bool LIMITED>
struct ActivatedLoad {
    using S = typename ArithmeticOf<T>::type;
    using Loaded = gpu::Vec<T, V>;
    static constexpr int SMALL = 1, THREADS = V == 8 ? BLOCK / 2 : BLOCK;
    Shape<S, LIMITED> shape;
    const S* bias;
    const T* x;

    explicit ActivatedLoad(const BiasActBlurCall& call)
        : shape(shape_of<S, LIMITED>(S(call.activation.slope), S(call.activation.gain), S(call.activation.clamp))),
          bias((const S*)call.activation.bias),
          x((const T*)call.filter.x) {}

    FASTGAN_INLINE S small(int, int64_t, int channel, int) const { return bias ? bias[channel] : S(0); }
    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        x += (sample * pixels + pixel) * c + channel;
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) { x += pixels * c; }
    FASTGAN_INLINE Loaded load(bool there, int i, int c) const { return gpu::load_or_zeros<V>(there, x + i * c); }
    template <class Table>
    FASTGAN_INLINE void values(const Loaded& in, bool there, const Table& table, S (&out)[V]) const {
        constexpr int W = Table::W;
        GPU_UNROLL
        for (int q = 0; q < V / W; ++q) {
            const gpu::Vec<S, W> shift = table.read(0, q);
            GPU_UNROLL
            for (int w = 0; w < W; ++w) {
                const S u = gpu::to<S>(in.v[q * W + w]) + (there ? shift.v[w] : S(0));  // f(0) is 0
                out[q * W + w] = clamped(curve<ACT>(u, shape), shape).value;
            }
        }
    }
};

// Backward: dx = f'(x + bias) times the output of the adjoint filter, and the sum for the bias.
template <class T, int V, bool LIMITED>
struct DerivativeStore {
    using S = typename ArithmeticOf<T>::type;
    using Loaded = gpu::Vec<T, V>;
    static constexpr int SUMS = 1, SMALL = 1, THREADS = V == 8 ? BLOCK / 2 : BLOCK;
    Shape<S, LIMITED> shape;
    const S* bias;
    const T* x;
    T* dx;

    explicit DerivativeStore(const BiasActBlurCall& call)
        : shape(shape_of<S, LIMITED>(S(call.activation.slope), S(call.activation.gain), S(call.activation.clamp))),
          bias((const S*)call.activation.bias),
          x((const T*)call.activation.reference),
          dx((T*)call.filter.y) {}

    FASTGAN_INLINE S small(int, int64_t, int channel, int) const { return bias ? bias[channel] : S(0); }
    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        const int64_t at = (sample * pixels + pixel) * c + channel;
        x += at, dx += at;
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) { x += pixels * c, dx += pixels * c; }
    FASTGAN_INLINE Loaded load(bool there, int i, int c) const { return gpu::load_or_zeros<V>(there, x + i * c); }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&loaded)[RUN], const Total& total,
                              const Table& table, S* sums, int c) const {
        constexpr int W = Table::W;
        gpu::Vec<T, V> out[RUN];
        GPU_UNROLL
        for (int q = 0; q < V / W; ++q) {
            const gpu::Vec<S, W> shift = table.read(0, q);
            GPU_UNROLL
            for (int i = 0; i < RUN * W; ++i) {
                const int o = i / W, w = i % W, v = q * W + w;
                Sums<S> d;
                out[o].v[v] = gpu::from<T>(
                    backward_from_biased_input<ACT>(total(o, v), gpu::to<S>(loaded[o].v[v]), shift.v[w], shape, d));
                sums[v] += wanted[o] ? d.bias : S(0);
            }
        }
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            if (wanted[o]) gpu::store(dx + o * c, out[o]);
        }
    }
};

bool fits_vectors(const BiasActBlurCall& call) {
    return aligned(call.filter.x, call.filter.y, call.activation.reference);
}

template <class T, int V, bool LIMITED>
void forward(const BiasActBlurCall& call, void* stream) {
    using Load = ActivatedLoad<T, V, LIMITED>;
    using Store = PlainStore<T, V>;
    const Upfirdn2dCall& filter = call.filter;
    const StripLaunch<T, V, 1, 1, Load, Store> strips(filter);
    strips(filter.taps, Load(call), Store{(T*)filter.y}, stream);
}

template <class T, int V, bool LIMITED = true>
using Backward = StripLaunch<T, V, 1, 1, PlainLoad<T, V>, DerivativeStore<T, V, LIMITED>>;

template <class T, int V, bool LIMITED>
void backward(const BiasActBlurCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Backward<T, V, LIMITED> strips(call.filter);
    S* partial = (S*)call.workspace;
    strips(call.filter.taps, {(const T*)call.filter.x}, DerivativeStore<T, V, LIMITED>(call), stream, partial);
    add_sums<S, 1>(call.activation, partial, strips.per_sample(), nullptr, 0, stream);
}

void check_size(const BiasActBlurCall& call) {
    if (!fits_strips(call.filter)) throw std::runtime_error("bias_act_blur: the image is too large");
}

}  // namespace

void bias_act_blur_forward(const BiasActBlurCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        if (!fits_vectors(call)) return forward<T, 1, true>(call, stream);
        constexpr int V = 16 / sizeof(T);
        call.activation.clamp < INFINITY ? forward<T, V, true>(call, stream) : forward<T, V, false>(call, stream);
    });
}

void bias_act_blur_backward(const BiasActBlurCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        if (!fits_vectors(call)) return backward<T, 1, true>(call, stream);
        constexpr int V = 16 / sizeof(T);
        call.activation.clamp < INFINITY ? backward<T, V, true>(call, stream) : backward<T, V, false>(call, stream);
    });
}

// Bytes of the workspace: the sums of all pieces.
int64_t bias_act_blur_workspace(const BiasActBlurCall& call) {
    int64_t pieces = 0;
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = 16 / sizeof(T);
        pieces = fits_vectors(call) ? Backward<T, V>(call.filter).pieces() : Backward<T, 1>(call.filter).pieces();
    });
    return pieces * call.filter.c * arithmetic_bytes(call.filter.dtype);
}

}  // namespace fastgan::cuda
