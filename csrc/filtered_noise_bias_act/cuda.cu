// filtered_noise_bias_act on the GPU, in NHWC: the strip of upfirdn2d (upfirdn2d/gpu.h), which applies the epilogue, or
// its derivative, to the outputs of a row. Backward filters x again: otherwise forward would have to write the filtered
// values.
#include "filtered_noise_bias_act/call.h"
#include "noise_bias_act/gpu.h"
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

constexpr Act ACT = Act::piecewise_linear;

// Noise of a pixel, at which a strip points.
template <class S>
struct Noise {
    const S* at;
    bool per_sample;

    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels) {
        if (at) at += (per_sample ? sample * pixels : 0) + pixel;
    }
    FASTGAN_INLINE void move(int64_t pixels) {
        if (at) at += pixels;
    }
    FASTGAN_INLINE S load(bool there, int i) const { return there && at ? at[i] : S(0); }
};

// Part `which` of the small tensors of a channel: scale, strength, bias or post.
template <class S>
FASTGAN_INLINE S small_part(const Epilogue<S>& epilogue, int which, int64_t sample, int channel, int c) {
    const Small<S> small = small_at<S>(epilogue, sample, channel, c);
    return which == 0 ? small.scale : which == 1 ? small.strength : which == 2 ? small.bias : small.post;
}

// Reads the small tensors of a thread's channels q * W to q * W + W from shared memory; the noise is left out.
template <class Table, class S, int W>
FASTGAN_INLINE void read_small(const Table& table, int q, Small<S> (&small)[W]) {
    const gpu::Vec<S, W> scale = table.read(0, q), strength = table.read(1, q), bias = table.read(2, q),
                         post = table.read(3, q);
    GPU_UNROLL
    for (int w = 0; w < W; ++w) small[w] = {scale.v[w], strength.v[w], bias.v[w], post.v[w], S(0)};
}

// Forward: y = noise_bias_act(output of the filter).
template <class T, int V, bool LIMITED>
struct EpilogueStore {
    using S = typename ArithmeticOf<T>::type;
    struct Loaded {
        S noise;
    };
    static constexpr int SUMS = 0, SMALL = 4, THREADS = V == 8 ? BLOCK / 2 : BLOCK;
    Shape<S, LIMITED> shape;
    Epilogue<S> epilogue;
    Noise<S> noise;
    T* y;

    explicit EpilogueStore(const FilteredNoiseBiasActCall& call)
        : shape(shape_of<S, LIMITED>(S(call.epilogue.slope), S(call.epilogue.gain), S(call.epilogue.clamp))),
          epilogue(call.epilogue),
          noise{(const S*)call.epilogue.noise, call.epilogue.noise_per_sample},
          y((T*)call.filter.y) {}

    FASTGAN_INLINE S small(int which, int64_t sample, int channel, int c) const {
        return small_part(epilogue, which, sample, channel, c);
    }
    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        y += (sample * pixels + pixel) * c + channel;
        noise.start(sample, pixel, pixels);
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) {
        y += pixels * c;
        noise.move(pixels);
    }
    FASTGAN_INLINE Loaded load(bool there, int i, int) const { return {noise.load(there, i)}; }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&loaded)[RUN], const Total& total,
                              const Table& table, S*, int c) const {
        constexpr int W = Table::W;
        gpu::Vec<T, V> out[RUN];
        GPU_UNROLL
        for (int q = 0; q < V / W; ++q) {
            Small<S> small[W];
            read_small(table, q, small);
            GPU_UNROLL
            for (int i = 0; i < RUN * W; ++i) {
                const int o = i / W, w = i % W, v = q * W + w;
                small[w].noise = loaded[o].noise;
                out[o].v[v] = gpu::from<T>(gpu_values::forward<ACT, true>(total(o, v), small[w], shape));
            }
        }
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            if (wanted[o]) gpu::store(y + o * c, out[o]);
        }
    }
};

// Backward: du, the gradient of the filter's output, and all sums.
template <class T, int V, bool LIMITED>
struct GradientStore {
    using S = typename ArithmeticOf<T>::type;
    struct Loaded {
        gpu::Vec<T, V> dy;
        S noise;
    };
    static constexpr int SUMS = MAX_SUMS, SMALL = 4, THREADS = BLOCK;
    Shape<S, LIMITED> shape;
    Epilogue<S> epilogue;
    Noise<S> noise;
    const T* dy;
    T* du;

    explicit GradientStore(const FilteredNoiseBiasActCall& call)
        : shape(shape_of<S, LIMITED>(S(call.epilogue.slope), S(call.epilogue.gain), S(call.epilogue.clamp))),
          epilogue(call.epilogue),
          noise{(const S*)call.epilogue.noise, call.epilogue.noise_per_sample},
          dy((const T*)call.epilogue.dy),
          du((T*)call.epilogue.dx) {}

    FASTGAN_INLINE S small(int which, int64_t sample, int channel, int c) const {
        return small_part(epilogue, which, sample, channel, c);
    }
    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        const int64_t at = (sample * pixels + pixel) * c + channel;
        dy += at, du += at;
        noise.start(sample, pixel, pixels);
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) {
        dy += pixels * c, du += pixels * c;
        noise.move(pixels);
    }
    FASTGAN_INLINE Loaded load(bool there, int i, int c) const {
        return {gpu::load_or_zeros<V>(there, dy + i * c), noise.load(there, i)};
    }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&loaded)[RUN], const Total& total,
                              const Table& table, S* sums, int c) const {
        constexpr int W = Table::W;
        static_assert(W == V, "all small tensors stay in registers for a row");
        Small<S> small[V];
        read_small(table, 0, small);
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            gpu::Vec<T, V> out;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                Sums<S> d;
                small[v].noise = loaded[o].noise;
                out.v[v] = gpu::from<T>(gpu_values::backward_from_input<ACT>(gpu::to<S>(loaded[o].dy.v[v]), total(o, v),
                                                                             small[v], shape, d));
                GPU_UNROLL
                for (int which = 0; which < SUMS; ++which) {
                    sums[which * V + v] += wanted[o] ? sum_number(d, which) : S(0);
                }
            }
            if (wanted[o]) gpu::store(du + o * c, out);
        }
    }
};

// Launches ------------------------------------------------------------------------------------------------------------

// Whether the addresses of all activations allow accesses of 16 bytes: a tensor of another library may lie anywhere.
bool fits_vectors(const FilteredNoiseBiasActCall& call) {
    const NoiseBiasActCall& epilogue = call.epilogue;
    return aligned(call.filter.x, call.filter.y, epilogue.dy, epilogue.dx);
}

// Elements in an access of the backward pass. With half a vector of 16-bit activations, the sums of a thread's channels
// leave registers for two blocks on a multiprocessor.
template <class T>
constexpr int BACKWARD_V = sizeof(T) == 8 ? 2 : 4;

template <class T, int V, bool LIMITED>
void forward(const FilteredNoiseBiasActCall& call, void* stream) {
    using Load = PlainLoad<T, V>;
    using Store = EpilogueStore<T, V, LIMITED>;
    const Upfirdn2dCall& filter = call.filter;
    const StripLaunch<T, V, 1, 1, Load, Store> strips(filter);
    strips(filter.taps, Load{(const T*)filter.x}, Store(call), stream);
}

template <class T, int V, bool LIMITED = true>
using Backward = StripLaunch<T, V, 1, 1, PlainLoad<T, V>, GradientStore<T, V, LIMITED>>;

template <class T, int V, bool LIMITED>
void backward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const NoiseBiasActCall& epilogue = call.epilogue;
    const Backward<T, V, LIMITED> strips(call.filter);
    S *partial = (S*)call.workspace, *strength = nullptr;
    if (epilogue.dstrength && !epilogue.strength_per_channel) {
        strength = partial + strips.pieces() * MAX_SUMS * epilogue.c;
    }
    strips(call.filter.taps, {(const T*)call.filter.x}, GradientStore<T, V, LIMITED>(call), stream, partial, strength);
    add_sums<S, MAX_SUMS>(epilogue, partial, strips.per_sample(), strength, strips.pieces() * strips.tiles(), stream);
}

void check_size(const FilteredNoiseBiasActCall& call) {
    if (!fits_strips(call.filter)) throw std::runtime_error("filtered_noise_bias_act: the image is too large");
}

}  // namespace

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        if (!fits_vectors(call)) return forward<T, 1, true>(call, stream);
        constexpr int V = 16 / sizeof(T);
        call.epilogue.clamp < INFINITY ? forward<T, V, true>(call, stream) : forward<T, V, false>(call, stream);
    });
}

void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        if (!fits_vectors(call)) return backward<T, 1, true>(call, stream);
        constexpr int V = BACKWARD_V<T>;
        call.epilogue.clamp < INFINITY ? backward<T, V, true>(call, stream) : backward<T, V, false>(call, stream);
    });
}

// Bytes of the workspace: the sums of all pieces, and one number for each block.
int64_t filtered_noise_bias_act_workspace(const FilteredNoiseBiasActCall& call) {
    int64_t numbers = 0;
    const auto count = [&](const auto& strips) {
        numbers = strips.pieces() * (MAX_SUMS * call.filter.c + strips.tiles());
    };
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        fits_vectors(call) ? count(Backward<T, BACKWARD_V<T>>(call.filter)) : count(Backward<T, 1>(call.filter));
    });
    return numbers * arithmetic_bytes(call.filter.dtype);
}

}  // namespace fastgan::cuda
