// weight_gradient on the CPU, compiled once per instruction set.
//
// For each tap of the kernel the gradient is a matrix product of the two images, summed over pixels, with its sums in
// registers, as in libraries (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"). A
// library does not know that the matrices of all taps are the same image, shifted by a few pixels. Here the image is
// packed into panels once for all taps.
//
// Panels consist of 32-bit words: one fp32 number, or two bf16 numbers whose products a single instruction sums. The
// two bf16 numbers come from pixels a whole piece of the image apart, not from neighbours: moving by one pixel is then
// moving by one word for both types.
//
// The sum is cut into segments whose length depends on the shape alone, each with its own result. These are added up in
// a fixed order, so that results do not depend on the number of threads.
#include "common/simd.h"

#include "weight_gradient/call.h"

namespace FASTGAN_ISA {

using fastgan::WeightGradientCall;

namespace {

typedef VFloat V;
constexpr int LANES = lanes<V>();
constexpr int WIDE = 2 * LANES;  // channels of `large` in a panel: two vectors
#if defined(__AVX512F__)
constexpr int TALL = 8;  // channels of `small` in a panel, times two vectors of `large`: 16 sums in 32 registers
#else
constexpr int TALL = 6;  // 12 sums in 16 registers
#endif
constexpr int LOW = 4;    // channels of `small` in the last panels, if TALL does not divide them
constexpr int BLOCK = 8;  // pixels packed at a time

// Words -------------------------------------------------------------------------------------------------------------

// Number of pixels in a word.
template <class T>
constexpr int PIXELS_PER_WORD = sizeof(Word) / sizeof(T);

// The pixels of a word, NHWC; null stands for zeros.
template <class T>
struct Pixels {
    const T* of[PIXELS_PER_WORD<T>] = {};

    Pixels() = default;
    Pixels(const T* const* rows, int64_t offset) {
        for (int i = 0; i < PIXELS_PER_WORD<T>; ++i) of[i] = rows[i] ? rows[i] + offset : nullptr;
    }

    // Words of the channels from `first` on; zeros beyond the last of `channels`.
    VUint words(int64_t first, int64_t channels) const {
        VUint words = {};
        for (int i = 0; i < PIXELS_PER_WORD<T>; ++i) {
            if (!of[i]) continue;
            const T* from = of[i] + first;
            const V numbers = first + LANES <= channels ? load(from) : load_n(from, max(0, channels - first));
            words |= (VUint)numbers >> 16 * (PIXELS_PER_WORD<T> - 1 - i);
        }
        return words;
    }
};

// The plan ----------------------------------------------------------------------------------------------------------

struct Plan {
    int64_t taps, panels;             // taps of the kernel; panels of `large`
    int64_t tall, channels, line;     // channels of `small` in panels of TALL, in all panels, in whole vectors
    int64_t images, rows;             // images in a piece, and rows of each: whole images, or some rows of one
    int64_t pieces_of_image, pieces;  // pieces in an image, and in all
    int64_t chunks;                   // number of chunks; each has one piece for each pixel of a word
    int64_t large_rows, columns;  // rows of `large` that an image of a piece reads; columns of each of `stride` phases
    int64_t segments, panels_of_task, tasks_of_segment;
    int64_t large_panel, small_panels;  // words of a chunk: in a panel of `large`, in all panels of `small`
    int64_t sums_panel, sums;           // floats of a segment's sums: for one panel of `large`, for all
    int64_t space;                      // words of a thread's workspace
};

// Cuts `a` channels of `small` into panels of TALL and LOW channels: with as little padding as possible, then with as
// few LOW panels.
void cut_small(int64_t a, Plan& p) {
    p.channels = INT64_MAX;
    for (int64_t tall = ceil_div(a, TALL) * TALL, i = 0; tall >= 0 && i < 3; tall -= TALL, ++i) {
        const int64_t channels = tall + max(0, ceil_div(a - tall, LOW) * LOW);
        if (channels < p.channels) p.channels = channels, p.tall = tall;
    }
}

template <class T>
Plan plan_of(const WeightGradientCall& call) {
    const int64_t pixels = 4096 / WIDE;  // pixels in a piece: their panel of `large` takes half of the L1 cache
    const int64_t work = 16 << 20;       // multiplications in a task: enough to hide its start
    Plan p;
    p.taps = call.kh * call.kw;
    p.panels = ceil_div(call.b, WIDE);
    cut_small(call.a, p);
    p.line = ceil_div(p.channels, LANES) * LANES;
    const int64_t image = call.height * call.width;
    p.images = image < pixels ? min(call.n, pixels / image) : 1;
    p.rows = image < pixels ? call.height : pixels < call.width ? 1 : min(call.height, pixels / call.width);
    p.pieces_of_image = ceil_div(call.height, p.rows);
    p.pieces = ceil_div(call.n, p.images) * p.pieces_of_image;
    p.chunks = ceil_div(p.pieces, PIXELS_PER_WORD<T>);
    p.large_rows = (p.rows - 1) * call.stride + call.kh;
    p.columns = call.width + (call.kw - 1) / call.stride;

    // Each task packs `small` for itself. So it takes several panels of `large`, if segments alone make enough tasks;
    // their number is limited, since their sums should be small beside the images.
    const int64_t result = call.a * p.taps * call.b;
    const int64_t tasks = min(ceil_div(result * call.n * image, work), 64);
    p.segments = min(ceil_div(tasks, ceil_div(p.panels, 4)), min(p.chunks, ceil_div(1 << 19, result)));
    // The split into tasks does not affect the result, so it may depend on the number of threads.
    p.tasks_of_segment = min(p.panels, ceil_div(min(tasks, 4 * max_threads()), p.segments));
    p.panels_of_task = ceil_div(p.panels, p.tasks_of_segment);
    p.tasks_of_segment = ceil_div(p.panels, p.panels_of_task);

    p.large_panel = p.images * p.large_rows * call.stride * p.columns * WIDE;
    p.small_panels = ceil_div(p.channels * p.images * p.rows * call.width, LANES) * LANES;
    p.sums_panel = p.channels * p.taps * WIDE;
    p.sums = p.panels * p.sums_panel;
    p.space = p.line * BLOCK + p.small_panels + p.panels_of_task * p.large_panel;
    return p;
}

struct Piece {
    int64_t image, images, row, rows;
};

// A chunk: one piece for each pixel of a word. The last may be missing. `images` and `rows` are maxima over the pieces.
template <class T>
struct Chunk {
    Piece pieces[PIXELS_PER_WORD<T>];
    int64_t images, rows;
};

Piece piece_of(const WeightGradientCall& call, const Plan& p, int64_t number) {
    if (number >= p.pieces) return {};
    const int64_t image = number / p.pieces_of_image * p.images, row = number % p.pieces_of_image * p.rows;
    return {image, min(p.images, call.n - image), row, min(p.rows, call.height - row)};
}

template <class T>
Chunk<T> chunk_of(const WeightGradientCall& call, const Plan& p, int64_t number) {
    Chunk<T> chunk{};
    for (int i = 0; i < PIXELS_PER_WORD<T>; ++i) {
        const Piece piece = chunk.pieces[i] = piece_of(call, p, number * PIXELS_PER_WORD<T> + i);
        chunk.images = max(chunk.images, piece.images), chunk.rows = max(chunk.rows, piece.rows);
    }
    return chunk;
}

// Packing -----------------------------------------------------------------------------------------------------------

// Copies the channels of one panel, HEIGHT words from `line` on, for some pixels of a row. Output: [pixel, channel].
template <int HEIGHT>
inline void to_panel(const Word* line, int64_t step, int64_t pixels, Word* to) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        memcpy(to + pixel * HEIGHT, line + pixel * step, HEIGHT * sizeof(Word));
    }
}

template <class T>
void pack_small(const WeightGradientCall& call, const Plan& p, const Chunk<T>& chunk, Word* line, Word* to) {
    const int64_t all_pixels = chunk.images * chunk.rows * call.width;
    int64_t done = 0;
    for (int64_t image = 0; image < chunk.images; ++image) {
        for (int64_t row = 0; row < chunk.rows; ++row) {
            const T* rows[PIXELS_PER_WORD<T>] = {};
            for (int i = 0; i < PIXELS_PER_WORD<T>; ++i) {
                const Piece& piece = chunk.pieces[i];
                if (image >= piece.images || row >= piece.rows) continue;
                const int64_t number = (piece.image + image) * call.height + piece.row + row;
                rows[i] = (const T*)call.small + number * call.width * call.a;
            }
            for (int64_t x = 0; x < call.width; x += BLOCK) {
                const int64_t pixels = min(BLOCK, call.width - x);
                for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                    const Pixels<T> from(rows, (x + pixel) * call.a);
                    for (int64_t a = 0; a < p.line; a += LANES) {
                        store_words(line + pixel * p.line + a, from.words(a, call.a));
                    }
                }
                for (int64_t a = 0; a < p.tall; a += TALL) {
                    to_panel<TALL>(line + a, p.line, pixels, to + a * all_pixels + done * TALL);
                }
                for (int64_t a = p.tall; a < p.channels; a += LOW) {
                    to_panel<LOW>(line + a, p.line, pixels, to + a * all_pixels + done * LOW);
                }
                done += pixels;
            }
        }
    }
}

// Number of vectors in a panel of `large`: one or two, as channels are left.
int vectors_of(const WeightGradientCall& call, int64_t panel) { return call.b - panel * WIDE > LANES ? 2 : 1; }

// Packs `large` as [panel, image, row, phase, column, channels of the panel]: pixels a stride apart become neighbours.
template <class T>
void pack_large(const WeightGradientCall& call, const Plan& p, const Chunk<T>& chunk, int64_t panel, int64_t panels,
                Word* to) {
    const int64_t s = call.stride, last = panel + panels - 1;
    const int64_t vectors = 2 * (panels - 1) + vectors_of(call, last);
    for (int64_t image = 0; image < chunk.images; ++image) {
        for (int64_t row = 0; row < (chunk.rows - 1) * s + call.kh; ++row) {
            const T* rows[PIXELS_PER_WORD<T>] = {};
            for (int i = 0; i < PIXELS_PER_WORD<T>; ++i) {
                const Piece& piece = chunk.pieces[i];
                const int64_t y = piece.row * s + row - call.top;
                if (image >= piece.images || row >= (piece.rows - 1) * s + call.kh) continue;
                if (y < 0 || y >= call.large_height) continue;
                const int64_t number = (piece.image + image) * call.large_height + y;
                rows[i] = (const T*)call.large + number * call.large_width * call.b;
            }
            Word* place = to + (image * p.large_rows + row) * s * p.columns * WIDE;
            for (int64_t phase = 0; phase < s; ++phase) {
                int64_t x = phase - call.left;
                for (int64_t column = 0; column < p.columns; ++column, x += s, place += WIDE) {
                    const bool inside = x >= 0 && x < call.large_width;
                    const Pixels<T> from = inside ? Pixels<T>(rows, x * call.b) : Pixels<T>();
                    for (int64_t i = 0; i < vectors; ++i) {
                        Word* there = place + i / 2 * p.large_panel + i % 2 * LANES;
                        store_words(there, from.words(panel * WIDE + i * LANES, call.b));
                    }
                }
            }
        }
    }
}

// Sums --------------------------------------------------------------------------------------------------------------

// Adds the products of a chunk's pixels for one tap to the sums of one panel of each image; the first chunk sets the
// sums.
template <class T, int HEIGHT, int VECTORS>
void add_product(const Word* small, const Word* large, const Chunk<T>& chunk, int64_t width, int64_t image_step,
                 int64_t row_step, bool first_chunk, float* to) {
    V sums[HEIGHT][VECTORS] = {};
    for (int64_t image = 0; image < chunk.images; ++image) {
        for (int64_t row = 0; row < chunk.rows; ++row) {
            const Word* from = large + image * image_step + row * row_step;
            for (int64_t x = 0; x < width; ++x, from += WIDE, small += HEIGHT) {
                VUint words[VECTORS];
                for (int j = 0; j < VECTORS; ++j) words[j] = load_words(from + j * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < HEIGHT; ++i) {
                    const VUint factor = broadcast_bits(small[i]);
                    for (int j = 0; j < VECTORS; ++j) sums[i][j] = add_products(sums[i][j], factor, words[j], T{});
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HEIGHT; ++i, to += WIDE) {
        for (int j = 0; j < VECTORS; ++j) {
            store(to + j * LANES, first_chunk ? sums[i][j] : load(to + j * LANES) + sums[i][j]);
        }
    }
}

// Adds a chunk to a segment's sums for a panel of `large`: [panel of small, tap, channels of small, channels of large].
template <class T, int VECTORS>
void add_panel(const WeightGradientCall& call, const Plan& p, const Chunk<T>& chunk, bool first_chunk,
               const Word* small, const Word* large, float* to) {
    const int64_t s = call.stride, pixels = chunk.images * chunk.rows * call.width;
    const int64_t row_step = s * s * p.columns * WIDE, image_step = p.large_rows * s * p.columns * WIDE;
    for (int64_t a = 0; a < p.channels;) {
        const int64_t height = a < p.tall ? TALL : LOW;
        const auto add = a < p.tall ? add_product<T, TALL, VECTORS> : add_product<T, LOW, VECTORS>;
        for (int64_t y = 0; y < call.kh; ++y) {
            for (int64_t x = 0; x < call.kw; ++x, to += height * WIDE) {
                const Word* from = large + ((y * s + x % s) * p.columns + x / s) * WIDE;
                add(small + a * pixels, from, chunk, call.width, image_step, row_step, first_chunk, to);
            }
        }
        a += height;
    }
}

// Adds a chunk to the sums of a segment: [panel of large, ...].
template <class T>
void add_chunk(const WeightGradientCall& call, const Plan& p, const Chunk<T>& chunk, int64_t panel, int64_t panels,
               bool first_chunk, Word* space, float* sums) {
    Word *of_small = space + p.line * BLOCK, *of_large = of_small + p.small_panels;
    pack_small(call, p, chunk, space, of_small);
    pack_large(call, p, chunk, panel, panels, of_large);
    for (int64_t i = 0; i < panels; ++i) {
        const auto add = vectors_of(call, panel + i) == 2 ? add_panel<T, 2> : add_panel<T, 1>;
        add(call, p, chunk, first_chunk, of_small, of_large + i * p.large_panel, sums + (panel + i) * p.sums_panel);
    }
}

// Adds up the segments in order and writes dw.
template <class T>
void finish(const WeightGradientCall& call, const Plan& p, const float* sums) {
    parallel_for(p.panels, p.sums > 65536, [&](int64_t panel) {
        const int vectors = vectors_of(call, panel);
        const float* from = sums + panel * p.sums_panel;
        for (int64_t a = 0; a < p.channels;) {
            const int64_t height = a < p.tall ? TALL : LOW;
            for (int64_t tap = 0; tap < p.taps; ++tap) {
                for (int64_t i = 0; i < height; ++i, from += WIDE) {
                    if (a + i >= call.a) continue;
                    for (int j = 0; j < vectors; ++j) {
                        V sum = load(from + j * LANES);
                        for (int64_t segment = 1; segment < p.segments; ++segment) {
                            sum += load(from + segment * p.sums + j * LANES);
                        }
                        const int64_t b = panel * WIDE + j * LANES;
                        T* to = (T*)call.dw + ((a + i) * p.taps + tap) * call.b + b;
                        if (b + LANES <= call.b) {
                            store(to, sum);
                        } else {
                            store_n(to, sum, call.b - b);
                        }
                    }
                }
            }
            a += height;
        }
    });
}

template <class T>
void run(const WeightGradientCall& call) {
    const Plan p = plan_of<T>(call);
    const int64_t tasks = p.segments * p.tasks_of_segment;
    float* sums = (float*)call.workspace;
    Word* spaces = (Word*)(sums + p.segments * p.sums);

    parallel_for(tasks, tasks > 1, [&](int64_t task) {
        const int64_t segment = task / p.tasks_of_segment, panel = task % p.tasks_of_segment * p.panels_of_task;
        const int64_t panels = min(p.panels_of_task, p.panels - panel);
        const int64_t begin = segment * p.chunks / p.segments, end = (segment + 1) * p.chunks / p.segments;
        Word* space = spaces + thread_index() * p.space;
        for (int64_t number = begin; number < end; ++number) {
            const Chunk<T> chunk = chunk_of<T>(call, p, number);
            add_chunk(call, p, chunk, panel, panels, number == begin, space, sums + segment * p.sums);
        }
    });
    finish<T>(call, p, sums);
}

template <class T>
int64_t workspace(const WeightGradientCall& call) {
    const Plan p = plan_of<T>(call);
    return (p.segments * p.sums + max_threads() * p.space) * sizeof(Word);
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void weight_gradient(const WeightGradientCall& call) {
    call.dtype == fastgan::Dtype::float32 ? run<float>(call) : run<BFloat16>(call);
}
int64_t weight_gradient_workspace(const WeightGradientCall& call) {
    return call.dtype == fastgan::Dtype::float32 ? workspace<float>(call) : workspace<BFloat16>(call);
}

}  // namespace FASTGAN_ISA
