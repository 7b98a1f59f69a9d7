// upfirdn2d on the CPU: code that its kernels share with fused kernels that filter. Compiled once per instruction set.
//
// A pixel has the channels of its position in NHWC, and one in NCHW, whose channels count as samples. An output row is
// computed tile by tile, in two steps. A weighted sum of the input rows goes into a row of floats that stays in the L1
// cache; this row is then filtered along x into the output. Every output is computed by one thread in a fixed order, so
// that results do not depend on the number of threads.
//
// Pixels with at least one group of channels (simd.h) are handled group by group ("grouped"). With fewer channels a row
// is one long vector, in which the next pixel is `channels` elements away ("flat").
#pragma once

#include "common/simd.h"

#include <stdlib.h>

#include "upfirdn2d/arithmetic.h"

namespace FASTGAN_ISA {
namespace {

using fastgan::Upfirdn2dCall;

// Memory of one thread, aligned for vectors.
template <class S>
struct Scratch {
    S* data;
    explicit Scratch(int64_t elements) {
        const int64_t bytes = (elements * (int64_t)sizeof(S) / VECTOR_BYTES + 1) * VECTOR_BYTES;
        data = (S*)aligned_alloc(VECTOR_BYTES, bytes);
        if (!data) abort();
    }
    ~Scratch() { free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// The channels of a pixel as groups. The last group may overlap the one before: it then ends at the last channel, and
// some channels are computed twice, with the same result.
template <class T>
struct Pixel {
    static constexpr int size = Group<T>::size;
    int64_t channels, groups;

    explicit Pixel(int64_t c) : channels(c), groups(ceil_div(c, size)) {}
    int64_t start(int64_t group) const { return (group + 1) * size <= channels ? group * size : channels - size; }
    int64_t padded() const { return groups * size; }
};

// The taps as they are correlated, times the gain: [kh, kw], or for a separable filter the taps along y, then those
// along x.
template <class S>
void arrange_taps(const Upfirdn2dCall& call, S* y, S* x) {
    const S* taps = (const S*)call.taps;
    const int64_t count = call.separable ? call.kw : call.kh * call.kw;
    for (int64_t i = 0; i < count; ++i) {
        const S tap = taps[call.flip ? i : count - 1 - i];
        y[i] = S(call.gain) * tap;
        if (call.separable) x[i] = tap;
    }
}

// Sums of rows --------------------------------------------------------------------------------------------------------

// How a row is read: `read(p, channel)` gives the group at p, whose first channel is `channel`.
struct AsStored {
    static constexpr bool by_channel = false;  // whether the channel matters

    template <class T>
    Group<T> operator()(const T* p, int64_t) const {
        return load_group(p);
    }
};

// to[i] = sum over rows of weight * row[i], for whole pixels. ADD adds the sum to the old value.
template <int ROWS, bool ADD, class T, class S, class Read>
void add_rows_grouped(const T* const* rows, const S* weights, int64_t offset, int64_t pixels, Pixel<T> pixel, S* to,
                      const Read& read) {
    typedef typename Arithmetic<T>::Vector V;
    constexpr int vectors = Group<T>::vectors;
    V weight[ROWS];
    const T* from[ROWS];
    for (int r = 0; r < ROWS; ++r) weight[r] = broadcast<V>(weights[r]), from[r] = rows[r] + offset;
    auto at = [&](int64_t i, int64_t channel) {
        V total[vectors];
        for (int k = 0; k < vectors; ++k) total[k] = ADD ? load(to + k * lanes<V>()) : broadcast<V>(0);
        for (int r = 0; r < ROWS; ++r) {
            const Group<T> value = read(from[r] + i, channel);
            for (int k = 0; k < vectors; ++k) total[k] += weight[r] * value.v[k];
        }
        prefetch(from[ROWS - 1] + i);  // each output row reads one new input row, or two with down = 2
        if constexpr (ROWS > 2) prefetch(from[ROWS - 2] + i);
        for (int k = 0; k < vectors; ++k) store(to + k * lanes<V>(), total[k]);
        to += pixel.size;
    };
    if (!Read::by_channel && pixel.channels == pixel.padded()) {
        const int64_t elements = pixels * pixel.channels;
        for (int64_t i = 0; i < elements; i += pixel.size) at(i, 0);
    } else {
        for (int64_t p = 0; p < pixels; ++p) {
            for (int64_t g = 0; g < pixel.groups; ++g) at(p * pixel.channels + pixel.start(g), pixel.start(g));
        }
    }
}

// The same for any number of elements. Writes up to a vector past the end.
template <int ROWS, bool ADD, class T, class S>
void add_rows_flat(const T* const* rows, const S* weights, int64_t offset, int64_t elements, S* to) {
    typedef typename Arithmetic<T>::Vector V;
    V weight[ROWS];
    const T* from[ROWS];
    for (int r = 0; r < ROWS; ++r) weight[r] = broadcast<V>(weights[r]), from[r] = rows[r] + offset;
    for (int64_t i = 0; i < elements; i += lanes<V>()) {
        const int64_t left = elements - i;
        V total = ADD ? load(to + i) : broadcast<V>(0);
        for (int r = 0; r < ROWS; ++r) {
            total += weight[r] * (left >= lanes<V>() ? load(from[r] + i) : load_n(from[r] + i, left));
        }
        store(to + i, total);
    }
}

template <bool GROUPED, class T, class S, class Read>
void add_rows(const T* const* rows, const S* weights, int64_t count, int64_t offset, int64_t pixels, Pixel<T> pixel,
              S* to, const Read& read) {
    const int64_t elements = pixels * pixel.channels;
#define FASTGAN_ADD_ROWS(ROWS, ADD, FIRST)                                                           \
    if constexpr (GROUPED) {                                                                         \
        add_rows_grouped<ROWS, ADD>(rows + FIRST, weights + FIRST, offset, pixels, pixel, to, read); \
    } else {                                                                                         \
        add_rows_flat<ROWS, ADD>(rows + FIRST, weights + FIRST, offset, elements, to);               \
    }
    if (count == 1) {
        FASTGAN_ADD_ROWS(1, false, 0)
    } else if (count == 2) {
        FASTGAN_ADD_ROWS(2, false, 0)
    } else if (count == 3) {
        FASTGAN_ADD_ROWS(3, false, 0)
    } else {
        FASTGAN_ADD_ROWS(4, false, 0)
        for (int64_t r = 4; r < count; ++r) FASTGAN_ADD_ROWS(1, true, r)
    }
#undef FASTGAN_ADD_ROWS
}

// Input columns that a tile of outputs reads. The buffer has zeros for columns outside of the image.
struct Window {
    int64_t from, to;
};

inline Window window_of(const Axis& x, int64_t first, int64_t last) {
    return {floor_div(first * x.down - x.before, x.up),
            floor_div((last - 1) * x.down - x.before + x.taps - 1, x.up) + 1};
}

template <bool GROUPED, class T, class S, class Read = AsStored>
void fill(const T* const* rows, const S* weights, int64_t count, const Window& window, int64_t width, Pixel<T> pixel,
          S* buffer, const Read& read = {}) {
    const int64_t stride = GROUPED ? pixel.padded() : pixel.channels;
    int64_t begin = window.from < 0 ? 0 : window.from, end = window.to < width ? window.to : width;
    if (end <= begin || count == 0) begin = end = window.to;
    S* inside = buffer + (begin - window.from) * stride;
    for (S* p = buffer; p < inside; ++p) *p = 0;
    if (begin < end) add_rows<GROUPED>(rows, weights, count, begin * pixel.channels, end - begin, pixel, inside, read);
    S* after = buffer + (end - window.from) * stride;
    for (S* p = after; p < buffer + (window.to - window.from) * stride; ++p) *p = 0;
}

// Along x, grouped ----------------------------------------------------------------------------------------------------

// Stores the results of a row: `put(ox, g, group)` stores group g of pixel ox. Adds `addend`, unless it is null.
template <class T>
struct ToImage {
    T* row;
    const T* addend;
    Pixel<T> pixel;
    bool streamed;

    void put(int64_t ox, int64_t g, Group<T> value) const {
        const int64_t at = ox * pixel.channels + pixel.start(g);
        if (addend) {
            const Group<T> added = load_group(addend + at);
            for (int k = 0; k < Group<T>::vectors; ++k) value.v[k] += added.v[k];
        }
        put_group<false>(row + at, value, Group<T>::size, streamed);
    }
};

// Adds the results to a row of floats.
template <class T>
struct ToStage {
    typedef typename Arithmetic<T>::Scalar S;
    S* row;
    int64_t first, stride;

    void put(int64_t ox, int64_t g, const Group<T>& value) const {
        typedef typename Arithmetic<T>::Vector V;
        S* to = row + (ox - first) * stride + g * Group<T>::size;
        for (int k = 0; k < Group<T>::vectors; ++k) {
            store(to + k * lanes<V>(), load(to + k * lanes<V>()) + value.v[k]);
        }
    }
};

// Computes one output pixel, for any filter.
template <class T, class S, class To>
void filter_pixel(const S* buffer, const Window& window, const Axis& x, const S* taps, int64_t ox,
                  const Pixel<T>& pixel, const To& to) {
    typedef typename Arithmetic<T>::Vector V;
    const int64_t start = ox * x.down - x.before, at = -floor_div(-start, x.up);
    const S* from = buffer + (at - window.from) * pixel.padded();
    for (int64_t g = 0; g < pixel.groups; ++g) {
        Group<T> total;
        for (int k = 0; k < Group<T>::vectors; ++k) total.v[k] = broadcast<V>(0);
        const S* p = from + g * Group<T>::size;
        for (int64_t tap = at * x.up - start; tap < x.taps; tap += x.up, p += pixel.padded()) {
            for (int k = 0; k < Group<T>::vectors; ++k) total.v[k] += taps[tap] * load(p + k * lanes<V>());
        }
        to.put(ox, g, total);
    }
}

// Computes four output pixels of a filter of four taps, loading each input once. With UP = 2, the first output must
// start at an input, not between two.
template <int UP, int DOWN, class T, class S, class To>
void filter_four_pixels(const S* from, const S* taps, int64_t ox, const Pixel<T>& pixel, const To& to) {
    typedef typename Arithmetic<T>::Vector V;
    constexpr int inputs = UP == 2 ? 4 : 3 * DOWN + 4, vectors = Group<T>::vectors;
    V weight[4];
    for (int i = 0; i < 4; ++i) weight[i] = broadcast<V>(taps[i]);
    for (int64_t g = 0; g < pixel.groups; ++g) {
        Group<T> result[4];
        for (int k = 0; k < vectors; ++k) {
            V value[inputs];
            for (int i = 0; i < inputs; ++i) {
                value[i] = load(from + i * pixel.padded() + g * Group<T>::size + k * lanes<V>());
            }
            for (int o = 0; o < 4; ++o) {
                if constexpr (UP == 2) {
                    const int first = o % 2, at = (o + 1) / 2;
                    result[o].v[k] = weight[first] * value[at] + weight[first + 2] * value[at + 1];
                } else {
                    V total = weight[0] * value[o * DOWN];
                    for (int i = 1; i < 4; ++i) total += weight[i] * value[o * DOWN + i];
                    result[o].v[k] = total;
                }
            }
        }
        for (int o = 0; o < 4; ++o) to.put(ox + o, g, result[o]);
    }
}

template <int UP, int DOWN, class T, class S, class To>
void filter_tile_by_four(const S* buffer, const Window& window, const Axis& x, const S* taps, int64_t first,
                         int64_t last, const Pixel<T>& pixel, const To& to) {
    int64_t ox = first;
    if (UP == 2 && (ox - x.before) % 2 != 0) filter_pixel<T>(buffer, window, x, taps, ox++, pixel, to);
    for (; ox + 4 <= last; ox += 4) {
        const int64_t at = (ox * DOWN - x.before) / UP - window.from;
        filter_four_pixels<UP, DOWN, T>(buffer + at * pixel.padded(), taps, ox, pixel, to);
    }
    for (; ox < last; ++ox) filter_pixel<T>(buffer, window, x, taps, ox, pixel, to);
}

template <class T, class S, class To>
void filter_tile(const S* buffer, const Window& window, const Axis& x, const S* taps, int64_t first, int64_t last,
                 const Pixel<T>& pixel, const To& to) {
    if (sizeof(S) == sizeof(float) && x.taps == 4 && x.up * x.down <= 2) {
        if (x.up == 2) return filter_tile_by_four<2, 1, T>(buffer, window, x, taps, first, last, pixel, to);
        if (x.down == 2) return filter_tile_by_four<1, 2, T>(buffer, window, x, taps, first, last, pixel, to);
        return filter_tile_by_four<1, 1, T>(buffer, window, x, taps, first, last, pixel, to);
    }
    for (int64_t ox = first; ox < last; ++ox) filter_pixel<T>(buffer, window, x, taps, ox, pixel, to);
}

// Sizes and taps of a call: shared by the grouped and the flat kernel.
template <class T>
struct Job {
    typedef typename Arithmetic<T>::Scalar S;
    const Upfirdn2dCall& call;
    int64_t c, images;
    Axis x, y;
    int64_t tile;     // outputs in a tile
    int64_t window;   // maximum number of inputs that a tile reads
    Scratch<S> taps;  // taps along y, or all taps if the filter is not separable
    const S* taps_x;

    Job(const Upfirdn2dCall& call, int64_t stride)
        : call(call),
          c(call.channels_last ? call.c : 1),
          images(call.channels_last ? call.n : call.n * call.c),
          x{call.up_x, call.down_x, call.left, call.kw, call.w},
          y{call.up_y, call.down_y, call.top, call.kh, call.h},
          taps(call.kh * call.kw + call.kw),
          taps_x(taps.data + call.kh * call.kw) {
        arrange_taps(call, taps.data, taps.data + call.kh * call.kw);
        // Tiles are a multiple of four outputs; their window fills a part of the L1 cache.
        tile = 8192 / stride * x.up / x.down / 4 * 4;
        tile = tile < 8 ? 8 : tile;
        tile = tile > call.ow ? call.ow : tile;
        const Window one = window_of(x, 0, tile);
        window = one.to - one.from + 1;  // its size varies by one with the start of the tile
    }

    // Fills in the input rows that an output row reads, and their weights; returns their number.
    int64_t rows_of(int64_t row, const T** rows, S* weights, Reach& there) const {
        there = reach(y, row % call.oh);
        for (int64_t i = 0; i < there.count; ++i) {
            rows[i] = (const T*)call.x + (row / call.oh * call.h + there.at + i) * call.w * c;
            weights[i] = taps.data[there.tap + i * y.up];
        }
        return there.count;
    }
    const S* taps_of(const Reach& there, int64_t i) const { return taps.data + (there.tap + i * y.up) * call.kw; }
    int64_t outputs() const { return images * call.oh * call.ow * c; }
};

}  // namespace
}  // namespace FASTGAN_ISA
