// The two filters of columns.h, with what they keep from row to row in registers. A thread has one channel and QUAD
// adjacent columns of z, which meet the filter along y; the filter along x reads its neighbours' columns.
//
//   first filter    enter(in)    takes a row of x: the WINDOW columns that the thread's columns of z read
//                   row(u, z)    gives row u of UP rows of z
//   second filter   take(i, z, to)       takes row i of z of a step, and writes what the filter along x needs
//                   finish(from, ...)    gives a row of y, when all threads of the block have written
#pragma once

#include "filtered_lrelu/gpu.h"

namespace fastgan::cuda {

constexpr int REACH = 6;  // inputs of an output along an axis: taps of a filter by its factor
constexpr int QUAD = 4;   // columns of z of a thread

// Two-dimensional filters: [SIDE, SIDE], factor 2.
constexpr int SIDE = 2 * REACH, SQUARE = SIDE * SIDE;

// Adjacent numbers in shared memory, whole quads of them.
template <int COUNT>
FASTGAN_INLINE void read_row(const float* from, float (&out)[COUNT], int apart = QUAD) {
    GPU_UNROLL
    for (int i = 0; i < COUNT; i += QUAD) {
        const gpu::Vec<float, QUAD> quad = gpu::load<QUAD>(from + i / QUAD * apart);
        GPU_UNROLL
        for (int q = 0; q < QUAD; ++q) {
            if (i + q < COUNT) out[i + q] = quad.v[q];
        }
    }
}

// The thread's place in a row of z or y in shared memory: [columns / QUAD, LANES, QUAD].
struct Quads {
    float* at;

    template <int COUNT>
    FASTGAN_INLINE void read(float (&out)[COUNT]) const {
        read_row(at, out, LANES * QUAD);
    }

    FASTGAN_INLINE void write(const float (&values)[QUAD]) const {
        gpu::Vec<float, QUAD> quad;
        GPU_UNROLL
        for (int q = 0; q < QUAD; ++q) quad.v[q] = values[q];
        gpu::store_shared(at, quad);
    }
};

// ------------------------------------------------------------------------------------------------------- first filter

// UP adjacent columns or rows of z read the same inputs. EARLY: the first of them may begin one input before the others,
// which `early` says; its taps have a zero at one of both ends.
template <int UP, bool EARLY>
struct SeparableUp {
    static constexpr int INPUTS = REACH + EARLY, WINDOW = (QUAD - 1) / UP + INPUTS;
    // Without EARLY, the taps along x are those along y. Else they are in shared memory, [UP, X_TAPS], and HELD in
    // registers where these suffice.
    static constexpr int X_TAPS = 8, TAPS = EARLY ? UP * X_TAPS : 0;
    static constexpr bool HELD = EARLY && UP == 2;

    float y_taps[UP][INPUTS], held[HELD ? UP : 1][X_TAPS];
    const float* x_taps;
    float rows[INPUTS][QUAD];  // the last rows of x, upsampled along x

    // Tap t of column or row f.
    FASTGAN_INLINE static float tap(const float* taps, int f, int t, bool early) {
        const int i = EARLY && !(f == 0 && early) ? t - 1 : t;
        return EARLY && (i < 0 || i >= REACH) ? 0.0f : taps[i * UP + (early ? (UP - f) % UP : UP - 1 - f)];
    }

    FASTGAN_INLINE SeparableUp(const float* taps, const float* x_taps_, bool early) : x_taps(x_taps_) {
        GPU_UNROLL
        for (int i = 0; i < UP * INPUTS; ++i) y_taps[i / INPUTS][i % INPUTS] = tap(taps, i / INPUTS, i % INPUTS, early);
        if constexpr (HELD) {
            GPU_UNROLL
            for (int i = 0; i < TAPS; ++i) held[i / X_TAPS][i % X_TAPS] = x_taps[i];
        }
        GPU_UNROLL
        for (int i = 0; i < INPUTS * QUAD; ++i) rows[i / QUAD][i % QUAD] = 0;
    }

    FASTGAN_INLINE void enter(const float (&in)[WINDOW]) {
        GPU_UNROLL
        for (int i = 0; i < (INPUTS - 1) * QUAD; ++i) rows[i / QUAD][i % QUAD] = rows[i / QUAD + 1][i % QUAD];
        GPU_UNROLL
        for (int q = 0; q < QUAD; ++q) {
            const int f = q % UP;
            float taps[INPUTS];
            if constexpr (EARLY && !HELD) {
                read_row(x_taps + f * X_TAPS, taps);
            } else {
                GPU_UNROLL
                for (int t = 0; t < INPUTS; ++t) taps[t] = HELD ? held[f][t] : y_taps[f][t];
            }
            float total = 0;
            GPU_UNROLL
            for (int t = EARLY && f > 0; t < INPUTS; ++t) total += taps[t] * in[q / UP + t];
            rows[INPUTS - 1][q] = total;
        }
    }

    FASTGAN_INLINE void row(int u, float (&z)[QUAD]) const {
        GPU_UNROLL
        for (int q = 0; q < QUAD; ++q) {
            z[q] = 0;
            GPU_UNROLL
            for (int t = EARLY && u > 0; t < INPUTS; ++t) z[q] += y_taps[u][t] * rows[t][q];
        }
    }
};

// SYMMETRIC: the filter is its own mirror image along both axes. Then two columns that read the same inputs have the same
// taps, a, in opposite order. Their sum and difference take half of the products, and six rows of taps fit in registers:
//
//     second + first = sum over k < 3 of (a[k] + a[5 - k]) (in[k] + in[5 - k])
//     second - first = sum over k < 3 of (a[k] - a[5 - k]) (in[k] - in[5 - k])
template <bool SYMMETRIC>
struct RadialUp {
    static constexpr int UP = 2, PAIRS = QUAD / UP, HALF = REACH / 2, WINDOW = PAIRS - 1 + REACH;

    float sums[SIDE][QUAD];  // open rows of z, the oldest first; if SYMMETRIC, of sums and differences
    float taps[SYMMETRIC ? REACH : 1][REACH];  // of rows of the filter: sums, differences
    const float* all_taps;                     // [SIDE, SIDE], in shared memory

    FASTGAN_INLINE explicit RadialUp(const float* taps_) : all_taps(taps_) {
        if constexpr (SYMMETRIC) {
            GPU_UNROLL
            for (int i = 0; i < REACH * HALF; ++i) {
                const int r = i / HALF, k = i % HALF;
                const float first = 0.5f * all_taps[r * SIDE + 2 * k];
                const float last = 0.5f * all_taps[r * SIDE + 2 * (REACH - 1 - k)];
                taps[r][k] = first + last, taps[r][HALF + k] = first - last;
            }
        }
        GPU_UNROLL
        for (int i = 0; i < SIDE * QUAD; ++i) sums[i / QUAD][i % QUAD] = 0;
    }

    FASTGAN_INLINE void enter(const float (&in)[WINDOW]) {
        float terms[PAIRS][REACH];  // of the inputs of two columns: sums, differences
        GPU_UNROLL
        for (int i = 0; i < PAIRS * HALF; ++i) {
            const int p = i / HALF, k = i % HALF;
            terms[p][k] = in[p + k] + in[p + REACH - 1 - k], terms[p][HALF + k] = in[p + k] - in[p + REACH - 1 - k];
        }
        GPU_UNROLL
        for (int r = 0; r < SIDE; ++r) {
            const int tap = SIDE - 1 - r, row = tap < REACH ? tap : SIDE - 1 - tap;
            if constexpr (SYMMETRIC) {
                GPU_UNROLL
                for (int q = 0; q < QUAD; ++q) {
                    float total = r + UP < SIDE ? sums[r + UP][q] : 0.0f;
                    GPU_UNROLL
                    for (int k = 0; k < HALF; ++k) {
                        total += taps[row][q % UP * HALF + k] * terms[q / UP][q % UP * HALF + k];
                    }
                    sums[r][q] = total;
                }
            } else {
                __syncwarp();  // else the compiler loads many rows of taps ahead, and spills registers
                float row_taps[SIDE];
                read_row(all_taps + tap * SIDE, row_taps);
                GPU_UNROLL
                for (int q = 0; q < QUAD; ++q) {
                    float total = r + UP < SIDE ? sums[r + UP][q] : 0.0f;
                    GPU_UNROLL
                    for (int t = 0; t < REACH; ++t) total += row_taps[t * UP + (q + 1) % UP] * in[q / UP + t];
                    sums[r][q] = total;
                }
            }
        }
    }

    // The first two rows are complete: no later row of x reaches them.
    FASTGAN_INLINE void row(int u, float (&z)[QUAD]) const {
        GPU_UNROLL
        for (int q = 0; q < QUAD; q += UP) {
            if constexpr (SYMMETRIC) {
                z[q] = sums[u][q] - sums[u][q + 1], z[q + 1] = sums[u][q] + sums[u][q + 1];
            } else {
                z[q] = sums[u][q], z[q + 1] = sums[u][q + 1];
            }
        }
    }
};

// ------------------------------------------------------------------------------------------------------ second filter

// The thread's rows and columns of z may begin one before those of its outputs: taps have a zero at one of both ends.
template <int DOWN>
struct SeparableDown {
    static constexpr int OUTPUTS = QUAD / DOWN, TAPS = DOWN * REACH + 1, READ = (OUTPUTS - 1) * DOWN + TAPS;

    float y_taps[TAPS];
    const float* x_taps;          // in shared memory
    float sums[REACH + 1][QUAD];  // open rows of y, not yet filtered along x; the oldest first

    // Tap i; lead: rows or columns before those of the outputs.
    FASTGAN_INLINE static float tap(const float* taps, int i, int lead) {
        return i - lead >= 0 && i - lead < DOWN * REACH ? taps[i - lead] : 0.0f;
    }

    FASTGAN_INLINE SeparableDown(const float* taps, const float* x_taps_, int lead) : x_taps(x_taps_) {
        GPU_UNROLL
        for (int i = 0; i < TAPS; ++i) y_taps[i] = tap(taps, i, lead);
        GPU_UNROLL
        for (int i = 0; i < (REACH + 1) * QUAD; ++i) sums[i / QUAD][i % QUAD] = 0;
    }

    FASTGAN_INLINE void take(int i, const float (&z)[QUAD], Quads to) {
        const int open = REACH + (i % DOWN == 0);  // rows of y that it meets
        GPU_UNROLL
        for (int t = 0; t < open; ++t) {
            GPU_UNROLL
            for (int q = 0; q < QUAD; ++q) sums[t][q] += y_taps[i % DOWN + (open - 1 - t) * DOWN] * z[q];
        }
        if (i % DOWN > 0) return;
        to.write(sums[0]);  // complete
        GPU_UNROLL
        for (int j = 0; j < (REACH + 1) * QUAD; ++j) {
            sums[j / QUAD][j % QUAD] = j / QUAD < REACH ? sums[j / QUAD + 1][j % QUAD] : 0.0f;
        }
    }

    FASTGAN_INLINE void finish(Quads from, int, float (&y)[OUTPUTS]) const {
        float in[READ], taps[TAPS];
        from.read(in);
        read_row(x_taps, taps);
        GPU_UNROLL
        for (int o = 0; o < OUTPUTS; ++o) {
            y[o] = 0;
            GPU_UNROLL
            for (int t = 0; t < TAPS; ++t) y[o] += taps[t] * in[o * DOWN + t];
        }
    }
};

// SYMMETRIC: as in RadialUp. Columns of z that meet equal taps are added first, and six rows of y take their sum.
template <bool SYMMETRIC>
struct RadialDown {
    static constexpr int DOWN = 2, OUTPUTS = QUAD / DOWN, READ = (OUTPUTS - 1 + REACH) * DOWN;

    float sums[REACH][OUTPUTS];  // open rows of y, the oldest first
    float taps[SYMMETRIC ? REACH : 1][REACH];
    const float* all_taps;  // [SIDE, SIDE], in shared memory

    FASTGAN_INLINE explicit RadialDown(const float* taps_) : all_taps(taps_) {
        if constexpr (SYMMETRIC) {
            GPU_UNROLL
            for (int i = 0; i < REACH * REACH; ++i) {
                taps[i / REACH][i % REACH] = all_taps[i / REACH * SIDE + i % REACH];
            }
        }
        GPU_UNROLL
        for (int i = 0; i < REACH * OUTPUTS; ++i) sums[i / OUTPUTS][i % OUTPUTS] = 0;
    }

    FASTGAN_INLINE void take(int, const float (&z)[QUAD], Quads to) const { to.write(z); }

    FASTGAN_INLINE void finish(Quads from, int row, float (&y)[OUTPUTS]) {
        GPU_UNROLL
        for (int i = 0; i < DOWN; ++i) {
            float in[READ];
            Quads{from.at + i * row}.read(in);
            float pairs[OUTPUTS][REACH];
            GPU_UNROLL
            for (int o = 0; o < OUTPUTS; ++o) {
                GPU_UNROLL
                for (int t = 0; t < REACH; ++t) pairs[o][t] = in[o * DOWN + t] + in[o * DOWN + SIDE - 1 - t];
            }
            GPU_UNROLL
            for (int r = 0; r < REACH; ++r) {
                const int tap = i + (REACH - 1 - r) * DOWN, of = tap < REACH ? tap : SIDE - 1 - tap;
                if constexpr (SYMMETRIC) {
                    GPU_UNROLL
                    for (int o = 0; o < OUTPUTS; ++o) {
                        GPU_UNROLL
                        for (int t = 0; t < REACH; ++t) sums[r][o] += taps[of][t] * pairs[o][t];
                    }
                } else {
                    __syncwarp();  // see RadialUp
                    float row_taps[SIDE];
                    read_row(all_taps + tap * SIDE, row_taps);
                    GPU_UNROLL
                    for (int o = 0; o < OUTPUTS; ++o) {
                        GPU_UNROLL
                        for (int t = 0; t < SIDE; ++t) sums[r][o] += row_taps[t] * in[o * DOWN + t];
                    }
                }
            }
        }
        GPU_UNROLL
        for (int o = 0; o < OUTPUTS; ++o) {
            y[o] = sums[0][o];
            GPU_UNROLL
            for (int r = 0; r < REACH; ++r) sums[r][o] = r < REACH - 1 ? sums[r + 1][o] : 0.0f;
        }
    }
};

}  // namespace fastgan::cuda
