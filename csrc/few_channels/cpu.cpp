// few_channels on the CPU, compiled once per instruction set.
//
// All three maps read or write `many` once. That takes most of the time, since there are few multiplications. So the
// loops walk through the rows of `many`, and keep the corresponding rows of `few`, with their borders, as floats in the
// L1 cache. Each position of `many` corresponds to a window of `few`: `numbers` = kh * kw * o values at fixed offsets
// from the first.
//
// The sums of outer are cut into segments whose length depends on the shape alone, each with its own result. These are
// added up in a fixed order, so that results do not depend on the number of threads.
#include "common/simd.h"

#include "few_channels/call.h"

namespace FASTGAN_ISA {

using fastgan::FewChannelsCall;

namespace {
using fastgan::FewChannelsMap;

typedef VFloat V;
constexpr int LANES = lanes<V>();
#if defined(__AVX512F__)
constexpr int MAX_NUMBERS = 9;  // numbers of a window summed at a time in outer, times two vectors of channels: 18 sums
constexpr int PIXELS = 8;       // pixels computed at a time in gather, times two vectors of channels: 16 sums
#else
constexpr int MAX_NUMBERS = 6;  // with 16 instead of 32 registers: 12 sums
constexpr int PIXELS = 4;       // 8 sums
#endif

int64_t whole_vectors(int64_t a) { return round_up(a, LANES); }

struct Plan {
    int64_t numbers, columns;  // numbers in a window; the same rounded up to whole vectors
    int64_t channels, words;   // channels of `many`, rounded up to whole vectors; words of a pixel of `many`
    int64_t rows;              // rows of `many` in a piece; scatter: `stride` times as many rows of `few`
    int64_t pieces_of_image, pieces;
    int64_t row, window_rows;          // floats in a row of `few` with its borders; maximum number of rows in a window
    int64_t matrix, window, products;  // floats of the rearranged weight, of a thread's window, and of its products
    int64_t segments, sums;            // outer: number of segments; floats of a segment's sums
};

template <class T>
Plan plan_of(const FewChannelsCall& call) {
    const int64_t floats = 4096;   // floats of `few` in a piece: half of an L1 cache
    const int64_t work = 4 << 20;  // multiplications in a segment
    Plan p{};
    p.numbers = call.kh * call.kw * call.o;
    p.columns = whole_vectors(p.numbers);
    p.channels = whole_vectors(call.c);
    p.words = call.c * sizeof(T) / sizeof(Word);
    p.row = max(call.stride * (call.width - 1) + call.kw, call.left + call.few_width) * call.o;
    p.rows = min(call.height, max(1, floats / (p.row * call.stride)));
    const bool scatters = call.map == FewChannelsMap::scatter;
    p.pieces_of_image = scatters ? ceil_div(call.few_height, p.rows * call.stride) : ceil_div(call.height, p.rows);
    p.pieces = call.n * p.pieces_of_image;
    p.window_rows = call.stride * p.rows + 2 * call.kh;
    p.window = whole_vectors(p.window_rows * p.row);
    if (scatters) {
        p.products = call.width * p.columns;
        p.matrix = p.words * p.columns;
    } else if (call.map == FewChannelsMap::gather) {
        p.matrix = p.numbers * p.channels;
    } else {
        const int64_t all = call.n * call.height * call.width * call.c * p.numbers;
        p.segments = min(min(16, p.pieces), ceil_div(all, work));
        p.sums = p.numbers * p.channels;
    }
    return p;
}

int64_t workspace(const Plan& p) {
    return (p.matrix + p.segments * p.sums + max_threads() * (p.window + p.products)) * (int64_t)sizeof(float);
}

// Offset of each number of a window from the first.
struct Offsets {
    int64_t of[64];

    Offsets(const FewChannelsCall& call, const Plan& p) {
        int64_t k = 0;
        for (int64_t i = 0; i < call.kh; ++i) {
            for (int64_t j = 0; j < call.kw * call.o; ++j) of[k++] = i * p.row + j;
        }
    }
};

// Index in `weight` of number k of a window, for the first channel.
int64_t place_of(const FewChannelsCall& call, int64_t k) {
    const int64_t tap = k / call.o, taps = call.kh * call.kw;
    return k % call.o * call.step_o + (call.flipped ? taps - 1 - tap : tap) * call.step_tap;
}

inline float number(float value) { return value; }
inline float number(BFloat16 value) {
    const uint32_t bits = (uint32_t)value.bits << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

// Converts a row of `few` to floats, or back.
template <class From, class To>
void convert(const From* from, int64_t count, To* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    if (i < count) store_n(to + i, load_n(from + i, count - i), count - i);
}

// Loads the rows of `few` that belong to `rows` rows of `many` from `row` on, with zeros around them.
template <class T>
void load_window(const FewChannelsCall& call, const Plan& p, int64_t image, int64_t row, int64_t rows, float* to) {
    const int64_t before = call.left * call.o, count = call.few_width * call.o;
    for (int64_t i = 0; i < call.stride * (rows - 1) + call.kh; ++i, to += p.row) {
        const int64_t y = call.stride * row + i - call.top;
        if (y < 0 || y >= call.few_height) {
            memset(to, 0, p.row * sizeof(float));
            continue;
        }
        memset(to, 0, before * sizeof(float));
        convert((const T*)call.few + (image * call.few_height + y) * count, count, to + before);
        memset(to + before + count, 0, (p.row - before - count) * sizeof(float));
    }
}

// Gather ------------------------------------------------------------------------------------------------------------

template <class T, int COUNT, int VECTORS>
inline void gather_pixels(const float* window, const Offsets& offsets, int64_t step, const float* matrix, const Plan& p,
                          int64_t left, T* to, int64_t to_step) {
    V sums[COUNT][VECTORS] = {};
    for (int64_t k = 0; k < p.numbers; ++k, matrix += p.channels) {
        V of_matrix[VECTORS];
        for (int j = 0; j < VECTORS; ++j) of_matrix[j] = load(matrix + j * LANES);
        for (int i = 0; i < COUNT; ++i) {
            const V factor = broadcast<V>(window[offsets.of[k] + i * step]);
            for (int j = 0; j < VECTORS; ++j) sums[i][j] += factor * of_matrix[j];
        }
    }
    for (int i = 0; i < COUNT; ++i) {
        for (int j = 0; j < VECTORS; ++j) {
            T* there = to + i * to_step + j * LANES;
            if (j + 1 < VECTORS || left >= VECTORS * LANES) {  // only the last vector may be partial
                store(there, sums[i][j]);
            } else {
                store_n(there, sums[i][j], left - j * LANES);
            }
        }
    }
}

template <class T, int COUNT>
inline void gather_some(const FewChannelsCall& call, const Plan& p, const float* window, const Offsets& offsets,
                        const float* matrix, T* to) {
    const int64_t step = call.stride * call.o;
    int64_t c = 0;
    for (; c + LANES < call.c; c += 2 * LANES) {
        gather_pixels<T, COUNT, 2>(window, offsets, step, matrix + c, p, call.c - c, to + c, call.c);
    }
    if (c < call.c) {
        gather_pixels<T, COUNT, 1>(window, offsets, step, matrix + c, p, call.c - c, to + c, call.c);
    }
}

template <class T>
void gather(const FewChannelsCall& call, const Plan& p) {
    float *matrix = (float*)call.workspace, *spaces = matrix + p.matrix;
    const T* weight = (const T*)call.weight;
    for (int64_t k = 0; k < p.numbers; ++k) {
        const T* from = weight + place_of(call, k);
        for (int64_t c = 0; c < p.channels; ++c) {
            matrix[k * p.channels + c] = c < call.c ? number(from[c * call.step_c]) : 0;
        }
    }
    const Offsets offsets(call, p);
    parallel_for(p.pieces, worth_threads(call.n * call.height * call.width * call.c), [&](int64_t piece) {
        const int64_t image = piece / p.pieces_of_image, first = piece % p.pieces_of_image * p.rows;
        const int64_t rows = min(p.rows, call.height - first);
        float* window = spaces + thread_index() * p.window;
        load_window<T>(call, p, image, first, rows, window);
        for (int64_t row = 0; row < rows; ++row) {
            const float* from = window + row * call.stride * p.row;
            T* to = (T*)call.many + (image * call.height + first + row) * call.width * call.c;
            int64_t x = 0;
            for (; x + PIXELS <= call.width; x += PIXELS) {
                gather_some<T, PIXELS>(call, p, from + x * call.stride * call.o, offsets, matrix, to + x * call.c);
            }
            for (; x < call.width; ++x) {
                gather_some<T, 1>(call, p, from + x * call.stride * call.o, offsets, matrix, to + x * call.c);
            }
        }
    });
}

// Scatter -----------------------------------------------------------------------------------------------------------

// Products of COUNT pixels of `many` with the matrix, summed over channels: the contribution of each pixel to the
// numbers of its window.
template <class T, int COUNT, int VECTORS>
inline void multiply_pixels(const T* many, int64_t many_step, const Word* matrix, int64_t words, int64_t columns,
                            float* products) {
    const char* next = (const char*)(many + COUNT * many_step);  // hardware prefetchers do not detect these strips
    for (int64_t i = 0; i < COUNT * many_step * (int64_t)sizeof(T); i += 64) __builtin_prefetch(next + i);
    V sums[COUNT][VECTORS] = {};
    for (int64_t word = 0; word < words; ++word, matrix += columns) {
        VUint of_matrix[VECTORS];
        for (int j = 0; j < VECTORS; ++j) of_matrix[j] = load_words(matrix + j * LANES);
        for (int i = 0; i < COUNT; ++i) {
            Word of_many;
            memcpy(&of_many, (const char*)(many + i * many_step) + word * sizeof(Word), sizeof(Word));
            const VUint factor = broadcast_bits(of_many);
            for (int j = 0; j < VECTORS; ++j) sums[i][j] = add_products(sums[i][j], factor, of_matrix[j], T{});
        }
    }
    for (int i = 0; i < COUNT; ++i) {
        for (int j = 0; j < VECTORS; ++j) store(products + i * columns + j * LANES, sums[i][j]);
    }
}

template <class T, int COUNT, int VECTORS>
inline void multiply_row(const FewChannelsCall& call, const Plan& p, const T* many, const Word* matrix,
                         float* products) {
    int64_t x = 0;
    for (; x + COUNT <= call.width; x += COUNT) {
        multiply_pixels<T, COUNT, VECTORS>(many + x * call.c, call.c, matrix, p.words, p.columns,
                                           products + x * p.columns);
    }
    for (; x < call.width; ++x) {
        multiply_pixels<T, 1, VECTORS>(many + x * call.c, call.c, matrix, p.words, p.columns, products + x * p.columns);
    }
}

template <class T>
void scatter(const FewChannelsCall& call, const Plan& p) {
    Word* matrix = (Word*)call.workspace;  // [words, columns]
    float* spaces = (float*)(matrix + p.matrix);
    memset(matrix, 0, p.matrix * sizeof(Word));
    const int64_t pair = sizeof(Word) / sizeof(T), s = call.stride;
    for (int64_t k = 0; k < p.numbers; ++k) {
        const T* from = (const T*)call.weight + place_of(call, k);
        for (int64_t c = 0; c < call.c; ++c) {
            memcpy((T*)(matrix + c / pair * p.columns + k) + c % pair, from + c * call.step_c, sizeof(T));
        }
    }
    parallel_for(p.pieces, worth_threads(call.n * call.height * call.width * call.c), [&](int64_t piece) {
        const int64_t image = piece / p.pieces_of_image, first = piece % p.pieces_of_image * p.rows * s;
        const int64_t last = min(first + p.rows * s, call.few_height);  // rows [first, last) of `few` are written
        // Rows [begin, end) of `many` contribute to them.
        const int64_t begin = max(0, ceil_div(max(0, first + call.top - call.kh + 1), s));
        const int64_t end = min(call.height, (last - 1 + call.top) / s + 1);
        float *window = spaces + thread_index() * (p.window + p.products), *products = window + p.window;
        memset(window, 0, p.window * sizeof(float));
        for (int64_t row = begin; row < end; ++row) {
            const T* many = (const T*)call.many + (image * call.height + row) * call.width * call.c;
            int64_t column = 0;
            for (; column + LANES < p.columns; column += 2 * LANES) {
                multiply_row<T, 4, 2>(call, p, many, matrix + column, products + column);
            }
            if (column < p.columns) multiply_row<T, 8, 1>(call, p, many, matrix + column, products + column);
            const int64_t numbers = call.kw * call.o;
            for (int64_t i = 0; i < call.kh; ++i) {
                float* to = window + ((row - begin) * s + i) * p.row;
                const float* from = products + i * numbers;
                for (int64_t x = 0; x < call.width; ++x, to += s * call.o, from += p.columns) {
                    for (int64_t j = 0; j < numbers; ++j) to[j] += from[j];
                }
            }
        }
        const int64_t count = call.few_width * call.o, there = max(0, end - begin - 1) * s + call.kh;
        for (int64_t y = first; y < last; ++y) {
            T* to = (T*)call.few + (image * call.few_height + y) * count;
            const int64_t row = y - (begin * s - call.top);
            if (row < 0 || row >= there) {
                memset(to, 0, count * sizeof(T));  // no tap reaches this row
            } else {
                convert(window + row * p.row + call.left * call.o, count, to);
            }
        }
    });
}

// Outer -------------------------------------------------------------------------------------------------------------

// Adds the products of a row of `many` with its windows to the sums `to`, for NUMBERS numbers of each window and
// VECTORS vectors of channels.
template <class T, int NUMBERS, int VECTORS>
inline void add_row(const float* window, const int64_t* offsets, int64_t step, const T* many, int64_t many_step,
                    int64_t left, int64_t width, float* to, int64_t channels) {
    V sums[NUMBERS][VECTORS] = {};
    for (int64_t x = 0; x < width; ++x, window += step, many += many_step) {
        V of_many[VECTORS];
        for (int j = 0; j < VECTORS; ++j) {
            const bool full = j + 1 < VECTORS || left >= VECTORS * LANES;  // only the last vector may be partial
            of_many[j] = full ? load(many + j * LANES) : load_n(many + j * LANES, left - j * LANES);
        }
#pragma GCC unroll 16
        for (int k = 0; k < NUMBERS; ++k) {
            const V factor = broadcast<V>(window[offsets[k]]);
            for (int j = 0; j < VECTORS; ++j) sums[k][j] += factor * of_many[j];
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < NUMBERS; ++k) {
        for (int j = 0; j < VECTORS; ++j) {
            float* there = to + k * channels + j * LANES;
            store(there, load(there) + sums[k][j]);
        }
    }
}

template <class T, int NUMBERS>
void add_numbers(const FewChannelsCall& call, const Plan& p, const float* window, const int64_t* offsets, const T* many,
                 float* to) {
    const int64_t step = call.stride * call.o;
    int64_t c = 0;
    for (; c + LANES < call.c; c += 2 * LANES) {
        add_row<T, NUMBERS, 2>(window, offsets, step, many + c, call.c, call.c - c, call.width, to + c, p.channels);
    }
    if (c < call.c) {
        add_row<T, NUMBERS, 1>(window, offsets, step, many + c, call.c, call.c - c, call.width, to + c, p.channels);
    }
}

template <class T>
void add_numbers(const FewChannelsCall& call, const Plan& p, int64_t count, const float* window, const int64_t* offsets,
                 const T* many, float* to) {
    switch (count) {
        case 1: return add_numbers<T, 1>(call, p, window, offsets, many, to);
        case 2: return add_numbers<T, 2>(call, p, window, offsets, many, to);
        case 3: return add_numbers<T, 3>(call, p, window, offsets, many, to);
        case 4: return add_numbers<T, 4>(call, p, window, offsets, many, to);
        case 5: return add_numbers<T, 5>(call, p, window, offsets, many, to);
        case 6: return add_numbers<T, 6>(call, p, window, offsets, many, to);
#if defined(__AVX512F__)
        case 7: return add_numbers<T, 7>(call, p, window, offsets, many, to);
        case 8: return add_numbers<T, 8>(call, p, window, offsets, many, to);
        case 9: return add_numbers<T, 9>(call, p, window, offsets, many, to);
#endif
    }
}

template <class T>
void outer(const FewChannelsCall& call, const Plan& p) {
    float *sums = (float*)call.workspace, *spaces = sums + p.segments * p.sums;
    const Offsets offsets(call, p);
    const int64_t at_once = ceil_div(p.numbers, ceil_div(p.numbers, MAX_NUMBERS));
    parallel_for(p.segments, p.segments > 1, [&](int64_t segment) {
        float *to = sums + segment * p.sums, *window = spaces + thread_index() * p.window;
        memset(to, 0, p.sums * sizeof(float));
        for (int64_t piece = segment * p.pieces / p.segments; piece < (segment + 1) * p.pieces / p.segments; ++piece) {
            const int64_t image = piece / p.pieces_of_image, first = piece % p.pieces_of_image * p.rows;
            const int64_t rows = min(p.rows, call.height - first);
            load_window<T>(call, p, image, first, rows, window);
            for (int64_t row = 0; row < rows; ++row) {
                const T* many = (const T*)call.many + (image * call.height + first + row) * call.width * call.c;
                for (int64_t k = 0; k < p.numbers; k += at_once) {
                    add_numbers(call, p, min(at_once, p.numbers - k), window + row * call.stride * p.row,
                                offsets.of + k, many, to + k * p.channels);
                }
            }
        }
    });
    for (int64_t k = 0; k < p.numbers; ++k) {
        T* to = (T*)call.weight + place_of(call, k);
        for (int64_t c = 0; c < call.c; c += LANES) {
            V sum = load(sums + k * p.channels + c);
            for (int64_t segment = 1; segment < p.segments; ++segment) {
                sum += load(sums + segment * p.sums + k * p.channels + c);
            }
            T part[LANES];
            store(part, sum);
            for (int64_t i = 0; i < LANES && c + i < call.c; ++i) to[(c + i) * call.step_c] = part[i];
        }
    }
}

template <class T>
void run(const FewChannelsCall& call) {
    const Plan p = plan_of<T>(call);
    switch (call.map) {
        case FewChannelsMap::gather: return gather<T>(call, p);
        case FewChannelsMap::scatter: return scatter<T>(call, p);
        case FewChannelsMap::outer: return outer<T>(call, p);
    }
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void few_channels(const FewChannelsCall& call) {
    call.dtype == fastgan::Dtype::float32 ? run<float>(call) : run<BFloat16>(call);
}
int64_t few_channels_workspace(const FewChannelsCall& call) {
    return workspace(call.dtype == fastgan::Dtype::float32 ? plan_of<float>(call) : plan_of<BFloat16>(call));
}

}  // namespace FASTGAN_ISA
