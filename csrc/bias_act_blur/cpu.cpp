// bias_act_blur on the CPU, compiled once per instruction set: the walk of upfirdn2d (upfirdn2d/cpu.h), whose reads
// (forward) or stores (backward) apply the activation. The bias gradient is summed row by row, then over the rows in a
// fixed order.
#include "common/simd.h"

#include "bias_act_blur/call.h"
#include "noise_bias_act/arithmetic.h"
#include "upfirdn2d/cpu.h"

namespace FASTGAN_ISA {

using fastgan::BiasActBlurCall;

namespace {

// Bias, in the order of groups, and shape of the activation.
template <class T>
struct Activation {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    Scratch<S> bias;
    Shape<V> shape;

    explicit Activation(const BiasActBlurCall& call)
        : bias(call.filter.c),
          shape(shape_of<V>(S(call.activation.slope), S(call.activation.gain), S(call.activation.clamp))) {
        const S* given = (const S*)call.activation.bias;
        for (int64_t c = 0; c < call.filter.c; ++c) bias.data[slot_of<T>(c)] = given ? given[c] : S(0);
    }
    V bias_at(int64_t channel, int k) const { return load(bias.data + channel + k * lanes<V>()); }
};

// Reads the activated values of x.
template <class T>
struct Activated {
    static constexpr bool by_channel = true;
    const Activation<T>& activation;

    Group<T> operator()(const T* p, int64_t channel) const {
        Group<T> u = load_group(p);
        for (int k = 0; k < Group<T>::vectors; ++k) {
            u.v[k] += activation.bias_at(channel, k);
            u.v[k] = clamped(curve<Act::piecewise_linear>(u.v[k], activation.shape), activation.shape).value;
        }
        return u;
    }
};

// Stores dx = dz * f'(x + bias), and adds it to the sums of the row, in the order of groups.
template <class T>
struct TimesDerivative {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const Activation<T>& activation;
    const T* x;
    T* dx;
    S* sums;
    int64_t c;
    bool streamed;

    void put(int64_t ox, int64_t g, Group<T> dz) const {
        const int64_t channel = g * Group<T>::size, at = ox * c + channel;
        const Group<T> value = load_group(x + at);
        for (int k = 0; k < Group<T>::vectors; ++k) {
            Sums<V> d;
            dz.v[k] = backward_from_biased_input<Act::piecewise_linear>(
                dz.v[k], value.v[k], activation.bias_at(channel, k), activation.shape, d);
            S* sum = sums + channel + k * lanes<V>();
            store(sum, load(sum) + d.bias);
        }
        put_group<false>(dx + at, dz, Group<T>::size, streamed);
    }
};

// Filters what `read` gives. `to_row(row)` stores a row of outputs, see ToImage.
template <class T, class Read, class ToRow>
void filter_rows(const Upfirdn2dCall& call, const Read& read, const ToRow& to_row) {
    typedef typename Arithmetic<T>::Scalar S;
    const Pixel<T> pixel(call.c);
    const Job<T> job(call, call.c);
#pragma omp parallel if (worth_threads(job.outputs()))
    {
        Scratch<S> memory(job.window * call.c + call.kh);
        S *buffer = memory.data, *weights = buffer + job.window * call.c;
        Scratch<const T*> rows(call.kh);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job.images * call.oh; ++row) {
            Reach there;
            const int64_t count = job.rows_of(row, rows.data, weights, there);
            const auto to = to_row(row);
            for (int64_t first = 0; first < call.ow; first += job.tile) {
                const int64_t last = min(first + job.tile, call.ow);
                const Window window = window_of(job.x, first, last);
                fill<true>(rows.data, weights, count, window, call.w, pixel, buffer, read);
                filter_tile<T>(buffer, window, job.x, job.taps_x, first, last, pixel, to);
            }
        }
        stream_fence();
    }
}

template <class T>
bool streams(const Upfirdn2dCall& call) {
    return should_stream(call.n * call.c * call.oh * call.ow * sizeof(T), call.c, Group<T>::size, call.y);
}

template <class T>
void forward(const BiasActBlurCall& call) {
    const Upfirdn2dCall& filter = call.filter;
    const Activation<T> activation(call);
    const bool streamed = streams<T>(filter);
    filter_rows<T>(filter, Activated<T>{activation}, [&](int64_t row) {
        return ToImage<T>{(T*)filter.y + row * filter.ow * filter.c, nullptr, Pixel<T>(filter.c), streamed};
    });
}

template <class T>
void backward(const BiasActBlurCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    const Upfirdn2dCall& filter = call.filter;
    const Activation<T> activation(call);
    const bool streamed = streams<T>(filter);
    const int64_t c = filter.c, rows = filter.n * filter.oh;
    S* partial = (S*)call.workspace;
    filter_rows<T>(filter, AsStored{}, [&](int64_t row) {
        const int64_t at = row * filter.ow * c;
        S* sums = partial + row * c;
        for (int64_t i = 0; i < c; ++i) sums[i] = 0;
        const T* x = (const T*)call.activation.reference + at;
        return TimesDerivative<T>{activation, x, (T*)filter.y + at, sums, c, streamed};
    });
    if (!call.activation.dbias) return;
    for (int64_t channel = 0; channel < c; ++channel) {
        double total = 0;
        for (int64_t row = 0; row < rows; ++row) total += partial[row * c + slot_of<T>(channel)];
        ((S*)call.activation.dbias)[channel] = S(total);
    }
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void bias_act_blur_forward(const BiasActBlurCall& call) {
    for_dtype(call.filter.dtype, [&](auto element) { forward<decltype(element)>(call); });
}

void bias_act_blur_backward(const BiasActBlurCall& call) {
    for_dtype(call.filter.dtype, [&](auto element) { backward<decltype(element)>(call); });
}

// Bytes of the workspace: the sums of every row.
int64_t bias_act_blur_workspace(const BiasActBlurCall& call) {
    return call.filter.n * call.filter.oh * call.filter.c * arithmetic_bytes(call.filter.dtype);
}

}  // namespace FASTGAN_ISA
