// upfirdn2d on the CPU, compiled once per instruction set. cpu.h describes the method. A filter that is not separable
// takes both of its steps for each row of the filter.
#include "upfirdn2d/cpu.h"

namespace FASTGAN_ISA {
namespace {

// Along x, flat -------------------------------------------------------------------------------------------------------

// to[i] = sum over t of taps[t * every] * from[i + t * step]. Reads and writes up to a vector past the end.
template <int COUNT, class S>
void correlate_fixed(const S* from, int64_t step, const S* taps, int64_t every, int64_t elements, S* to) {
    typedef typename Arithmetic<S>::Vector V;
    V weight[COUNT];
    for (int t = 0; t < COUNT; ++t) weight[t] = broadcast<V>(taps[t * every]);
    for (int64_t i = 0; i < elements; i += lanes<V>()) {
        V total = weight[0] * load(from + i);
        for (int t = 1; t < COUNT; ++t) total += weight[t] * load(from + i + t * step);
        store(to + i, total);
    }
}

template <class S>
void correlate(const S* from, int64_t step, const S* taps, int64_t every, int64_t count, int64_t elements, S* to) {
    typedef typename Arithmetic<S>::Vector V;
    if (count == 2) return correlate_fixed<2>(from, step, taps, every, elements, to);
    if (count == 4) return correlate_fixed<4>(from, step, taps, every, elements, to);
    for (int64_t i = 0; i < elements; i += lanes<V>()) {
        V total = broadcast<V>(0);
        for (int64_t t = 0; t < count; ++t) total += taps[t * every] * load(from + i + t * step);
        store(to + i, total);
    }
}

// Copies pixels; ADD adds them to the old values. C is the number of channels, or 0 if it is known at run time only.
template <bool ADD, int C, class S>
void move_pixels(const S* from, int64_t from_every, int64_t pixels, int64_t channels, S* to, int64_t to_every) {
    const int64_t c = C ? C : channels;
    for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t j = 0; j < c; ++j) {
            S& there = to[p * to_every * c + j];
            there = (ADD ? there : S(0)) + from[p * from_every * c + j];
        }
    }
}

// Copies or adds every `from_every`-th pixel to every `to_every`-th.
template <bool ADD, class S>
void move_pixels(const S* from, int64_t from_every, int64_t pixels, int64_t c, S* to, int64_t to_every) {
    if (c == 1 && from_every == 2) {  // compilers turn this form into shuffles
        for (int64_t p = 0; p < pixels; ++p) to[p] = (ADD ? to[p] : S(0)) + from[2 * p];
    } else if (c == 1) {
        move_pixels<ADD, 1>(from, from_every, pixels, c, to, to_every);
    } else if (c == 3) {
        move_pixels<ADD, 3>(from, from_every, pixels, c, to, to_every);
    } else {
        move_pixels<ADD, 0>(from, from_every, pixels, c, to, to_every);
    }
}

template <bool ADD, class S>
void interleave(const S* even, const S* odd, int64_t outputs, S* to) {
    for (int64_t i = 0; i < outputs / 2; ++i) {
        to[2 * i] = (ADD ? to[2 * i] : S(0)) + even[i];
        to[2 * i + 1] = (ADD ? to[2 * i + 1] : S(0)) + odd[i];
    }
    if (outputs % 2) to[outputs - 1] = (ADD ? to[outputs - 1] : S(0)) + even[outputs / 2];
}

template <class S>
struct Rows {
    const S* data;
    int64_t stride;
};

// Filters the windows of several rows, `pitch` elements apart, as one long row; results between the rows are dropped.
// The result is in `stage`, [rows, outputs, c], or in `space`, which must have room for two windows per row.
template <bool ADD, class S>
Rows<S> filter_flat(const S* buffer, const Window& window, const Axis& x, const S* taps, int64_t first, int64_t last,
                    int64_t c, int64_t rows, int64_t pitch, S* space, S* stage) {
    const int64_t outputs = last - first, row = outputs * c;
    auto start = [&](int64_t ox) { return ox * x.down - x.before; };
    if (x.up == 1) {  // filter at every input, then take every down-th
        const int64_t elements = (rows - 1) * pitch + ((outputs - 1) * x.down + 1) * c;
        correlate(buffer, c, taps, 1, x.taps, elements, space);
        if (!ADD && x.down == 1) return {space, pitch};
        for (int64_t r = 0; r < rows; ++r) {
            move_pixels<ADD>(space + r * pitch, x.down, outputs, c, stage + r * row, 1);
        }
    } else if (x.down == 1) {  // outputs of one phase share their taps
        S* other = space + rows * pitch + lanes<typename Arithmetic<S>::Vector>();
        const bool pairs = x.up == 2 && c == 1;
        for (int64_t phase = 0; phase < x.up && (phase < outputs || pairs); ++phase) {
            const int64_t begin = start(first + phase), at = -floor_div(-begin, x.up), tap = at * x.up - begin;
            const int64_t count = tap < x.taps ? (x.taps - tap + x.up - 1) / x.up : 0;
            const int64_t pixels = (outputs - phase + x.up - 1) / x.up;
            S* to = pairs && phase == 1 ? other : space;
            correlate(buffer + (at - window.from) * c, c, taps + tap, x.up, count, (rows - 1) * pitch + pixels * c, to);
            for (int64_t r = 0; r < rows && !pairs; ++r) {
                move_pixels<ADD>(space + r * pitch, 1, pixels, c, stage + r * row + phase * c, x.up);
            }
        }
        for (int64_t r = 0; r < rows && pairs; ++r) {
            interleave<ADD>(space + r * pitch, other + r * pitch, outputs, stage + r * row);
        }
    } else {
        for (int64_t i = 0; i < rows * row && !ADD; ++i) stage[i] = 0;
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t ox = first; ox < last; ++ox) {
                const int64_t at = -floor_div(-start(ox), x.up);
                const S* from = buffer + r * pitch + (at - window.from) * c;
                for (int64_t tap = at * x.up - start(ox); tap < x.taps; tap += x.up, from += c) {
                    for (int64_t j = 0; j < c; ++j) stage[r * row + (ox - first) * c + j] += taps[tap] * from[j];
                }
            }
        }
    }
    return {stage, row};
}

// Stores a row, plus `addend` unless it is null.
template <class T, class S>
void store_row(const S* from, const T* addend, int64_t elements, T* to) {
    typedef typename Arithmetic<T>::Vector V;
    for (int64_t i = 0; i < elements; i += lanes<V>()) {
        const int64_t left = elements - i;
        V value = load(from + i);
        if (left >= lanes<V>()) {
            if (addend) value += load(addend + i);
            store(to + i, value);
        } else {
            if (addend) value += load_n(addend + i, left);
            store_n(to + i, value, left);
        }
    }
}

// The walk over the image ---------------------------------------------------------------------------------------------

template <class T>
void run_grouped(const Upfirdn2dCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const Pixel<T> pixel(call.c);
    const int64_t stride = pixel.padded();
    const Job<T> job(call, stride);

    const bool streamed = should_stream(job.outputs() * sizeof(T), call.c, pixel.size, call.y);

#pragma omp parallel if (worth_threads(job.outputs()))
    {
        Scratch<S> memory((job.window + job.tile) * stride + call.kh);
        S *buffer = memory.data, *stage = buffer + job.window * stride, *weights = stage + job.tile * stride;
        Scratch<const T*> rows(call.kh);
        const S one = 1;

#pragma omp for schedule(static)
        for (int64_t row = 0; row < job.images * call.oh; ++row) {
            Reach there;
            const int64_t count = job.rows_of(row, rows.data, weights, there);
            const int64_t at = row * call.ow * call.c;
            const ToImage<T> image = {(T*)call.y + at, call.addend ? (const T*)call.addend + at : nullptr, pixel,
                                      streamed};
            for (int64_t first = 0; first < call.ow; first += job.tile) {
                const int64_t last = min(first + job.tile, call.ow);
                const Window window = window_of(job.x, first, last);
                if (call.separable) {
                    fill<true>(rows.data, weights, count, window, call.w, pixel, buffer);
                    filter_tile<T>(buffer, window, job.x, job.taps_x, first, last, pixel, image);
                    continue;
                }
                for (int64_t i = 0; i < (last - first) * stride; ++i) stage[i] = 0;
                const ToStage<T> staged = {stage, first, stride};
                for (int64_t i = 0; i < count; ++i) {
                    fill<true>(rows.data + i, &one, 1, window, call.w, pixel, buffer);
                    for (int64_t ox = first; ox < last; ++ox) {
                        filter_pixel<T>(buffer, window, job.x, job.taps_of(there, i), ox, pixel, staged);
                    }
                }
                for (int64_t ox = first; ox < last; ++ox) {
                    for (int64_t g = 0; g < pixel.groups; ++g) {
                        const S* from = stage + (ox - first) * stride + g * pixel.size;
                        Group<T> value;
                        for (int k = 0; k < Group<T>::vectors; ++k) value.v[k] = load(from + k * lanes<V>());
                        image.put(ox, g, value);
                    }
                }
            }
        }
        if (streamed) stream_fence();
    }
}

template <class T>
void run_flat(const Upfirdn2dCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    const int64_t c = call.channels_last ? call.c : 1, slack = 2 * lanes<typename Arithmetic<T>::Vector>();
    const Pixel<T> pixel(c);
    const Job<T> job(call, c);
    // Several short rows are processed at a time: this takes fewer steps, and the stores to a row have completed before
    // it is loaded at other alignments.
    const int64_t pitch = job.window * c, all_rows = job.images * call.oh;
    int64_t batch = call.separable && job.tile == call.ow ? 4096 / pitch : 1;
    batch = batch < 1 ? 1 : batch > 64 ? 64 : batch;
    const int64_t batches = ceil_div(all_rows, batch);

#pragma omp parallel if (worth_threads(job.outputs()))
    {
        const int64_t windows = batch * pitch + slack, results = batch * job.tile * c + slack;
        Scratch<S> memory(3 * windows + results + call.kh);
        S *buffer = memory.data, *space = buffer + windows, *stage = space + 2 * windows, *weights = stage + results;
        Scratch<const T*> rows(call.kh);
        const S one = 1;

#pragma omp for schedule(static)
        for (int64_t b = 0; b < batches; ++b) {
            const int64_t row = b * batch, count_rows = row + batch < all_rows ? batch : all_rows - row;
            for (int64_t first = 0; first < call.ow; first += job.tile) {
                const int64_t last = min(first + job.tile, call.ow);
                const Window window = window_of(job.x, first, last);
                Reach there;
                Rows<S> result = {stage, (last - first) * c};
                if (call.separable) {
                    for (int64_t r = 0; r < count_rows; ++r) {
                        const int64_t count = job.rows_of(row + r, rows.data, weights, there);
                        fill<false>(rows.data, weights, count, window, call.w, pixel, buffer + r * pitch);
                    }
                    result = filter_flat<false>(buffer, window, job.x, job.taps_x, first, last, c, count_rows, pitch,
                                                space, stage);
                } else {
                    const int64_t count = job.rows_of(row, rows.data, weights, there);
                    for (int64_t i = 0; i < (last - first) * c; ++i) stage[i] = 0;
                    for (int64_t i = 0; i < count; ++i) {
                        fill<false>(rows.data + i, &one, 1, window, call.w, pixel, buffer);
                        filter_flat<true>(buffer, window, job.x, job.taps_of(there, i), first, last, c, 1, pitch, space,
                                          stage);
                    }
                }
                for (int64_t r = 0; r < count_rows; ++r) {
                    const int64_t at = ((row + r) * call.ow + first) * c;
                    const T* addend = call.addend ? (const T*)call.addend + at : nullptr;
                    store_row(result.data + r * result.stride, addend, (last - first) * c, (T*)call.y + at);
                }
            }
        }
    }
}

}  // namespace

// Entry point, called through FASTGAN_CPU_ENTRY (common/isa.h).
void upfirdn2d_forward(const Upfirdn2dCall& call) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        call.channels_last&& call.c >= Group<T>::size ? run_grouped<T>(call) : run_flat<T>(call);
    });
}

}  // namespace FASTGAN_ISA
