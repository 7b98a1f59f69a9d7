// filtered_lrelu with any filters and factors, in either layout. A block makes a tile of y for 16 channels, one after the
// other: x, x upsampled along x, z, and z downsampled along y lie in shared memory. A row of z is kept as `down` runs of
// its columns, so that the lanes of a warp, `down` columns apart, meet different banks.
#pragma once

#include "filtered_lrelu/gpu.h"

namespace fastgan::cuda {

struct Planes {
    int up, down, across, rows_of_tiles;                   // tiles along an axis
    int rows, columns;                                     // of y, of a tile
    int x_rows, x_columns, z_rows, z_columns, run, pitch;  // run: numbers from run to run of a row of z; pitch: of all
    bool up_separable, down_separable;
    int64_t column, row, channel, sample;  // strides of x; those of y in the same order
    int64_t y_column, y_row, y_channel, y_sample;
    int64_t blocks, bytes;

    Planes(const FilteredLreluCall& call, int64_t size)
        : up(int(call.up)), down(int(call.down)), up_separable(call.up_separable), down_separable(call.down_separable) {
        const bool last = call.channels_last;
        column = last ? call.c : 1, y_column = column;
        row = call.w * column, y_row = call.ow * column;
        channel = last ? 1 : call.h * call.w, y_channel = last ? 1 : call.oh * call.ow;
        sample = call.h * call.w * call.c, y_sample = call.oh * call.ow * call.c;
        rows = columns = gpu::warp_size;
        for (;;) {
            across = int(ceil_div(call.ow, columns)), rows_of_tiles = int(ceil_div(call.oh, rows));
            z_rows = (rows - 1) * down + int(call.down_size), z_columns = (columns - 1) * down + int(call.down_size);
            x_rows = int((z_rows - 1 + call.up_size - 1) / up + 2);
            x_columns = int((z_columns - 1 + call.up_size - 1) / up + 2);
            const int64_t bank = ceil_div(gpu::warp_size, down), least = ceil_div(z_columns, down);
            run = int(least + ((bank - least) % gpu::warp_size + gpu::warp_size) % gpu::warp_size), pitch = run * down;
            const int64_t taps = (up_separable ? 1 : call.up_size) * call.up_size +
                                 (down_separable ? 1 : call.down_size) * call.down_size;
            const int64_t numbers = taps + int64_t(x_rows) * x_columns + between() + int64_t(z_rows) * pitch;
            bytes = numbers * size + int64_t(z_rows) * pitch * int64_t(sizeof(unsigned));
            if (bytes <= int64_t(gpu::max_shared_bytes()) / 2) break;
            if (rows == 1 && columns == 1) {
                if (bytes <= int64_t(gpu::max_shared_bytes())) break;
                throw std::runtime_error("filtered_lrelu: the filters are too long for this GPU");
            }
            rows >= columns ? rows /= 2 : columns /= 2;
        }
        blocks = call.n * ceil_div(call.c, LANES) * rows_of_tiles * across;
    }

    // Numbers of x upsampled along x, whose memory z downsampled along y takes over.
    __device__ __host__ int64_t between() const { return max(int64_t(x_rows) * z_columns, int64_t(rows) * pitch); }
};

// S is the type of the arithmetic, and of shared memory. Grid: tiles of all blocks of channels of all samples.
template <class T, class S>
__global__ void __launch_bounds__(BLOCK, 4)
    filter_planes(Sizes s, Planes p, Activation<S> act, const S* up_taps, const S* down_taps, const S* bias, const T* x,
                  T* y, unsigned* signs, bool writes, bool reads) {
    const int tiles = p.across * p.rows_of_tiles, tile = int(blockIdx.x) % tiles;
    const int block = int(blockIdx.x) / tiles, blocks = (s.c + LANES - 1) / LANES;
    const int oy = tile / p.across * p.rows, ox = tile % p.across * p.columns;
    const int rows = int(min(p.rows, s.oh - oy)), columns = int(min(p.columns, s.ow - ox));
    const int zy = oy * p.down, zx = ox * p.down;
    const int z_rows = (rows - 1) * p.down + s.down_size, z_columns = (columns - 1) * p.down + s.down_size;
    const int first_row = -floor_quotient(s.top - zy, p.up), first_column = -floor_quotient(s.left - zx, p.up);
    const int lane = int(threadIdx.x) % gpu::warp_size, warp = int(threadIdx.x) / gpu::warp_size;
    constexpr int WARPS = BLOCK / gpu::warp_size;

    DYN_SHARED(S, all_up_taps);
    const int up_count = s.up_size * (p.up_separable ? 1 : s.up_size);
    const int down_count = s.down_size * (p.down_separable ? 1 : s.down_size);
    S* all_down_taps = all_up_taps + up_count;
    S* inputs = all_down_taps + down_count;
    S* between = inputs + p.x_rows * p.x_columns;
    S* z = between + p.between();
    unsigned* words = reinterpret_cast<unsigned*>(z + p.z_rows * p.pitch);
    for (int i = int(threadIdx.x); i < up_count; i += BLOCK) all_up_taps[i] = up_taps[i];
    for (int i = int(threadIdx.x); i < down_count; i += BLOCK) all_down_taps[i] = down_taps[i];
    const auto place = [&](int column) { return column % p.down * p.run + column / p.down; };
    // Calls f(row, column) for the rows and columns of a tile: a warp takes a row.
    const auto each = [&](int rows, int columns, const auto& f) {
        for (int column = lane; column < columns; column += gpu::warp_size) {
            const auto at_column = f(column);
            for (int row = warp; row < rows; row += WARPS) at_column(row);
        }
    };
    each(z_rows, z_columns, [&](int column) {
        return [&, column, to = words + place(column)](int row) {
            to[row * p.pitch] = reads ? read_signs(signs_of(signs, s, block, zy + row), s, zx + column) : 0;
        };
    });

    const int channels = int(min(LANES, s.c - block % blocks * LANES));
    for (int k = 0; k < channels; ++k) {
        const int channel = block % blocks * LANES + k;
        const int64_t sample = block / blocks;
        const T* from = x + sample * p.sample + channel * p.channel;
        const S added = bias ? bias[channel] : S(0);
        for (int row = warp; row < p.x_rows; row += WARPS) {
            const int iy = first_row + row;
            const T* here = from + iy * p.row + first_column * p.column;
            // Where columns lie side by side, the lanes of a warp begin at a sector.
            constexpr int SECTOR = 32 / sizeof(T);
            const int before = p.column == 1 ? int(reinterpret_cast<uintptr_t>(here) / sizeof(T) % SECTOR) : 0;
            for (int start = -before; start < p.x_columns; start += gpu::warp_size) {
                const int column = start + lane, ix = first_column + column;
                const bool inside = ix >= 0 && ix < s.w && iy >= 0 && iy < s.h;
                if (column >= 0 && column < p.x_columns) {
                    inputs[row * p.x_columns + column] = inside ? gpu::to<S>(here[column * p.column]) + added : S(0);
                }
                __syncwarp();
            }
        }
        __syncthreads();

        // The first input of a row or column of z, from the first of the tile, and the tap that it meets.
        const auto input_of = [&](int at, int before, int first) { return -floor_quotient(before - at, p.up) - first; };
        const auto tap_of = [&](int at, int before) { return floor_remainder(before - at, p.up); };
        if (p.up_separable) {
            each(p.x_rows, z_columns, [&](int column) {
                const int at = input_of(zx + column, s.left, first_column), tap = tap_of(zx + column, s.left);
                return [&, at, tap, column](int row) {
                    const S* in = inputs + row * p.x_columns + at;
                    S total = 0;
                    for (int t = tap; t < s.up_size; t += p.up) total += all_up_taps[t] * *in++;
                    between[row * p.z_columns + column] = total;
                };
            });
            __syncthreads();
        }
        each(z_rows, z_columns, [&](int column) {
            const int at_column = input_of(zx + column, s.left, first_column);
            const int tap_x = tap_of(zx + column, s.left);
            return [&, column, at_column, tap_x, to = place(column)](int row) {
                const int at = input_of(zy + row, s.top, first_row), tap = tap_of(zy + row, s.top);
                S u = 0;
                if (p.up_separable) {
                    const S* in = between + at * p.z_columns + column;
                    for (int t = tap; t < s.up_size; t += p.up, in += p.z_columns) u += all_up_taps[t] * *in;
                } else {
                    const S* in = inputs + at * p.x_columns + at_column;
                    for (int t = tap; t < s.up_size; t += p.up, in += p.x_columns) {
                        const S *taps = all_up_taps + t * s.up_size, *here = in;
                        for (int i = tap_x; i < s.up_size; i += p.up) u += taps[i] * *here++;
                    }
                }
                unsigned& word = words[row * p.pitch + to];
                if (reads) {
                    z[row * p.pitch + to] = act.multiply(u, word >> k & BELOW, word >> k & CLAMPED);
                } else {
                    bool below, clamped;
                    z[row * p.pitch + to] = act.activate(u, below, clamped);
                    word |= (below ? BELOW : 0) << k | (clamped ? CLAMPED : 0) << k;
                }
            };
        });
        __syncthreads();

        S* sums = between;
        if (p.down_separable) {
            each(rows, z_columns, [&](int column) {
                return [&, to = place(column)](int row) {
                    const S* in = z + row * p.down * p.pitch + to;
                    S total = 0;
                    for (int t = 0; t < s.down_size; ++t) total += all_down_taps[t] * in[t * p.pitch];
                    sums[row * p.pitch + to] = total;
                };
            });
            __syncthreads();
        }
        T* out = y + sample * p.y_sample + channel * p.y_channel;
        each(rows, columns, [&](int column) {
            return [&, column](int row) {
                S total = 0;
                for (int r = 0; r < (p.down_separable ? 1 : s.down_size); ++r) {
                    const S* in = (p.down_separable ? sums + row * p.pitch : z + (row * p.down + r) * p.pitch) + column;
                    const S* taps = all_down_taps + r * s.down_size;
                    for (int first = 0; first < p.down; ++first, in += p.run) {
                        for (int t = first, i = 0; t < s.down_size; t += p.down, ++i) total += taps[t] * in[i];
                    }
                }
                out[(oy + row) * p.y_row + (ox + column) * p.y_column] = gpu::from<T>(total);
            };
        });
    }
    if (!writes) return;
    // The next tile computes rows and columns of z again, of which it writes the signs.
    const int end_row = oy + rows == s.oh ? z_rows : rows * p.down;
    const int end_column = ox + columns == s.ow ? z_columns : columns * p.down;
    each(end_row, end_column, [&](int column) {
        return [&, column, from = words + place(column)](int row) {
            signs_of(signs, s, block, zy + row)[zx + column] = from[row * p.pitch];
        };
    });
}

template <class T>
void launch_planes(const FilteredLreluCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Planes p(call, sizeof(S));
    if (p.blocks >= int64_t(1) << 31) throw std::runtime_error("filtered_lrelu: too many tiles");
    gpu::Launch(unsigned(p.blocks), BLOCK, size_t(p.bytes), stream)(
        filter_planes<T, S>, Sizes(call), p, Activation<S>(call), (const S*)call.up_taps, (const S*)call.down_taps,
        (const S*)call.bias, (const T*)call.x, (T*)call.y, (unsigned*)call.signs, call.writes_signs, call.reads_signs);
}

}  // namespace fastgan::cuda
