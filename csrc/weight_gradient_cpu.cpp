// weight_gradient on the CPU: compiled once for each instruction set, in the namespace of that name.
//
// A matrix product of the two images for each tap of the kernel, summed over pixels, with a register for every few of
// its numbers, as libraries make matrix products (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
// Multiplication"). What a library's product does not know is that the matrices of all taps are one image, a few pixels
// on: here it is brought into panels once for all of them.
//
// The sum is cut into segments of a length that depends on the shape alone, each with its own result, which are then
// added up in order: results do not depend on the number of threads.
#include "simd.h"

#include "weight_gradient.h"

namespace FASTGAN_ISA::of_weight {

using fastgan::WeightGradientCall;

typedef VFloat V;
constexpr int WIDE = 2 * lanes<V>();  // channels of `large` to a panel
constexpr int TALL = 6;               // of `small`: 12 sums, of 16 registers
constexpr int LOW = 4;                // ... where what remains is no multiple of that

struct Plan {
    int64_t taps, panels;               // of `large`
    int64_t images, rows;               // of a chunk: some images, or some rows of one
    int64_t chunks_of_image, chunks;
    int64_t large_rows, columns;        // of a chunk of `large`: rows of an image, columns of each of `stride` phases
    int64_t segments, panels_of_task, tasks_of_segment;
    int64_t large_panel, small_panels;  // floats: of a panel of `large`, of all of `small`, for a chunk
    int64_t sums_panel, sums;           // ... of the sums for a panel of `large`, for all: those of a segment
    int64_t space;                      // ... of what a thread needs for a chunk
};

static int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How many channels of `small` are in panels of TALL: as many as leave a multiple of LOW, if the last may be filled up.
static int64_t channels_in_tall(int64_t a) {
    const int64_t even = ceiling(a, 2) * 2;
    int64_t tall = even / TALL * TALL;
    while (tall > 0 && (even - tall) % LOW != 0) tall -= TALL;
    return tall;
}

static Plan plan_of(const WeightGradientCall& call) {
    const int64_t pixels = 256;     // of a chunk: what a panel of `large` has of them fits into the L1 cache
    const int64_t work = 16 << 20;  // multiplications of a task: enough to hide its start
    Plan p;
    p.taps = call.kh * call.kw;
    p.panels = ceiling(call.b, WIDE);
    const int64_t image = call.height * call.width;
    p.images = image < pixels ? smaller(call.n, pixels / image) : 1;
    p.rows = image < pixels ? call.height : pixels < call.width ? 1 : smaller(call.height, pixels / call.width);
    p.chunks_of_image = ceiling(call.height, p.rows);
    p.chunks = ceiling(call.n, p.images) * p.chunks_of_image;
    p.large_rows = (p.rows - 1) * call.stride + call.kh;
    p.columns = call.width + (call.kw - 1) / call.stride;

    // Each task brings `small` into panels for itself: so it is given several panels of `large`, as long as segments,
    // whose sums are to be small beside the images, make tasks enough.
    const int64_t result = call.a * p.taps * call.b;
    const int64_t tasks = smaller(ceiling(result * call.n * image, work), 64);
    p.segments = smaller(ceiling(tasks, ceiling(p.panels, 4)), smaller(p.chunks, ceiling(1 << 19, result)));
    p.panels_of_task = ceiling(p.panels, smaller(p.panels, ceiling(tasks, p.segments)));
    p.tasks_of_segment = ceiling(p.panels, p.panels_of_task);

    const int64_t tall = channels_in_tall(call.a), channels = tall + ceiling(call.a - tall, LOW) * LOW;
    p.large_panel = p.images * p.large_rows * call.stride * p.columns * WIDE;
    p.small_panels = channels * p.images * p.rows * call.width;
    p.sums_panel = channels * p.taps * WIDE;
    p.sums = p.panels * p.sums_panel;
    p.space = ceiling(p.small_panels + p.panels_of_task * p.large_panel, 16) * 16;
    return p;
}

struct Chunk {
    int64_t image, images, row, rows;
};

static Chunk chunk_of(const WeightGradientCall& call, const Plan& p, int64_t number) {
    const int64_t image = number / p.chunks_of_image * p.images, row = number % p.chunks_of_image * p.rows;
    return {image, smaller(p.images, call.n - image), row, smaller(p.rows, call.height - row)};
}

template <int HEIGHT>
static void pack_small_panel(const WeightGradientCall& call, const Chunk& chunk, int64_t a, float* to) {
    const int64_t there = smaller(HEIGHT, call.a - a);
    for (int64_t image = 0; image < chunk.images; ++image) {
        const float* from =
            call.small + (((chunk.image + image) * call.height + chunk.row) * call.width) * call.a + a;
        for (int64_t pixel = 0; pixel < chunk.rows * call.width; ++pixel, from += call.a, to += HEIGHT) {
            if (there == HEIGHT) {
                memcpy(to, from, HEIGHT * sizeof(float));
            } else {
                for (int i = 0; i < HEIGHT; ++i) to[i] = i < there ? from[i] : 0;
            }
        }
    }
}

// [panel, pixel, channels of the panel].
static void pack_small(const WeightGradientCall& call, const Chunk& chunk, float* to) {
    const int64_t pixels = chunk.images * chunk.rows * call.width, tall = channels_in_tall(call.a);
    for (int64_t a = 0; a < tall; a += TALL) pack_small_panel<TALL>(call, chunk, a, to + a * pixels);
    for (int64_t a = tall; a < call.a; a += LOW) pack_small_panel<LOW>(call, chunk, a, to + a * pixels);
}

// The channels from `b` on of a pixel, filled up with zeros to as many as a panel has.
struct PixelOfPanel {
    V first, second;
};

static inline PixelOfPanel channels_from(const float* pixel, int64_t b, int64_t channels) {
    if (b + WIDE <= channels) return {load(pixel + b), load(pixel + b + lanes<V>())};
    alignas(VECTOR_BYTES) float part[WIDE] = {};
    memcpy(part, pixel + b, (channels - b) * sizeof(float));
    return {load(part), load(part + lanes<V>())};
}

// [panel, image, row, phase, column, channels of the panel]: pixels a stride apart are neighbours.
static void pack_large(const WeightGradientCall& call, const Plan& p, const Chunk& chunk, int64_t panel,
                       int64_t panels, float* to) {
    const int64_t s = call.stride, rows = (chunk.rows - 1) * s + call.kh, columns = p.columns, channels = call.b;
    const PixelOfPanel nothing = {};
    for (int64_t image = 0; image < chunk.images; ++image) {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t y = chunk.row * s + row - call.top;
            const bool inside = y >= 0 && y < call.large_height;
            const float* line =
                call.large + ((chunk.image + image) * call.large_height + y) * call.large_width * channels;
            float* place = to + (image * p.large_rows + row) * s * columns * WIDE;
            for (int64_t phase = 0; phase < s; ++phase) {
                int64_t x = phase - call.left;
                for (int64_t column = 0; column < columns; ++column, x += s, place += WIDE) {
                    const bool there = inside && x >= 0 && x < call.large_width;
                    for (int64_t i = 0; i < panels; ++i) {
                        const PixelOfPanel pixel =
                            there ? channels_from(line + x * channels, (panel + i) * WIDE, channels) : nothing;
                        store(place + i * p.large_panel, pixel.first);
                        store(place + i * p.large_panel + lanes<V>(), pixel.second);
                    }
                }
            }
        }
    }
}

// Adds what the pixels of a chunk give to a tap, to as many sums as a panel of either image makes; or begins with it.
template <int HEIGHT>
static inline void add_product(const float* small, const float* large, const Chunk& chunk, int64_t width,
                               int64_t image_step, int64_t row_step, bool first_chunk, float* to) {
    V sums[HEIGHT][2] = {};
    for (int64_t image = 0; image < chunk.images; ++image) {
        for (int64_t row = 0; row < chunk.rows; ++row) {
            const float* from = large + image * image_step + row * row_step;
            for (int64_t x = 0; x < width; ++x, from += WIDE, small += HEIGHT) {
                const V first = load(from), second = load(from + lanes<V>());
#pragma GCC unroll 8
                for (int i = 0; i < HEIGHT; ++i) {
                    const V factor = all<V>(small[i]);
                    sums[i][0] += factor * first;
                    sums[i][1] += factor * second;
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HEIGHT; ++i, to += WIDE) {
        store(to, first_chunk ? sums[i][0] : load(to) + sums[i][0]);
        store(to + lanes<V>(), first_chunk ? sums[i][1] : load(to + lanes<V>()) + sums[i][1]);
    }
}

// The sums of a segment: [panel of large, panel of small, tap, channels of small, channels of large].
static void add_chunk(const WeightGradientCall& call, const Plan& p, const Chunk& chunk, int64_t panel,
                      int64_t panels, bool first_chunk, float* space, float* sums) {
    const int64_t s = call.stride, pixels = chunk.images * chunk.rows * call.width, tall = channels_in_tall(call.a);
    float* of_large = space + p.small_panels;
    pack_small(call, chunk, space);
    pack_large(call, p, chunk, panel, panels, of_large);
    const int64_t row_step = s * s * p.columns * WIDE, image_step = p.large_rows * s * p.columns * WIDE;
    for (int64_t i = 0; i < panels; ++i) {
        const float* large = of_large + i * p.large_panel;
        float* to = sums + (panel + i) * p.sums_panel;
        for (int64_t a = 0; a < call.a; a += a < tall ? TALL : LOW) {
            const float* small = space + a * pixels;
            for (int64_t y = 0; y < call.kh; ++y) {
                for (int64_t x = 0; x < call.kw; ++x) {
                    const float* from = large + ((y * s + x % s) * p.columns + x / s) * WIDE;
                    if (a < tall) {
                        add_product<TALL>(small, from, chunk, call.width, image_step, row_step, first_chunk, to);
                        to += TALL * WIDE;
                    } else {
                        add_product<LOW>(small, from, chunk, call.width, image_step, row_step, first_chunk, to);
                        to += LOW * WIDE;
                    }
                }
            }
        }
    }
}

// Adds up the segments' sums, in order, and puts them where they belong.
static void finish(const WeightGradientCall& call, const Plan& p, const float* sums) {
    const int64_t tall = channels_in_tall(call.a);
#pragma omp parallel for schedule(dynamic) if (p.sums > 65536)
    for (int64_t panel = 0; panel < p.panels; ++panel) {
        const int64_t b = panel * WIDE, channels = smaller(WIDE, call.b - b);
        const float* from = sums + panel * p.sums_panel;
        for (int64_t a = 0; a < call.a;) {
            const int64_t height = a < tall ? TALL : LOW;
            for (int64_t tap = 0; tap < p.taps; ++tap) {
                for (int64_t i = 0; i < height; ++i, from += WIDE) {
                    V first = load(from), second = load(from + lanes<V>());
                    for (int64_t segment = 1; segment < p.segments; ++segment) {
                        const float* more = from + segment * p.sums;
                        first += load(more), second += load(more + lanes<V>());
                    }
                    if (a + i >= call.a) continue;
                    float* to = call.dw + ((a + i) * p.taps + tap) * call.b + b;
                    if (channels == WIDE) {
                        store(to, first), store(to + lanes<V>(), second);
                    } else {
                        alignas(VECTOR_BYTES) float part[WIDE];
                        store(part, first), store(part + lanes<V>(), second);
                        memcpy(to, part, channels * sizeof(float));
                    }
                }
            }
            a += height;
        }
    }
}

static void run(const WeightGradientCall& call) {
    const Plan p = plan_of(call);
    const int64_t tasks = p.segments * p.tasks_of_segment;
    float* sums = (float*)call.workspace;
    float* spaces = sums + p.segments * p.sums;

#pragma omp parallel for schedule(dynamic) if (tasks > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t segment = task / p.tasks_of_segment, panel = task % p.tasks_of_segment * p.panels_of_task;
        const int64_t panels = smaller(p.panels_of_task, p.panels - panel);
        const int64_t begin = segment * p.chunks / p.segments, end = (segment + 1) * p.chunks / p.segments;
#if defined(_OPENMP)
        float* space = spaces + omp_get_thread_num() * p.space;
#else
        float* space = spaces;
#endif
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            add_chunk(call, p, chunk_of(call, p, chunk), panel, panels, chunk == begin, space,
                      sums + segment * p.sums);
        }
    }
    finish(call, p, sums);
}

static int64_t workspace(const WeightGradientCall& call) {
    const Plan p = plan_of(call);
#if defined(_OPENMP)
    const int64_t threads = omp_get_max_threads();
#else
    const int64_t threads = 1;
#endif
    return (p.segments * p.sums + threads * p.space) * sizeof(float);
}

}  // namespace FASTGAN_ISA::of_weight

namespace FASTGAN_ISA {

void weight_gradient(const fastgan::WeightGradientCall& call) { of_weight::run(call); }
int64_t weight_gradient_workspace(const fastgan::WeightGradientCall& call) { return of_weight::workspace(call); }

}  // namespace FASTGAN_ISA
