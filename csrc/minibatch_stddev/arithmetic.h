// The arithmetic of minibatch_stddev and its partition into pieces, shared by the CPU and the CUDA kernels.
//
// Group m consists of the samples n = g * groups + m, g = 0 .. size-1, its members. At every place, v = x - mean over
// members and s = sqrt(mean of v^2 + 1e-8). The maps appended to all members are the means of s over a feature's
// channels and positions.
#pragma once

#include "minibatch_stddev/call.h"

namespace FASTGAN_VALUES {

using fastgan::MinibatchStddevCall;

// Memory layout of a feature's elements and their partition into pieces. They lie in `rows` contiguous runs: one in
// NCHW, one per position in NHWC. A piece consists of whole runs, or is a part of the only run.
struct FeatureRows {
    int64_t rows, run;                    // number of runs; elements in one
    int64_t x_row, y_row;                 // stride of runs, in x and in y
    int64_t x_sample, y_sample;           // stride of samples
    int64_t rows_of_piece, run_of_piece;  // runs in a piece, and elements of each; the last piece may have fewer
    int64_t pieces;

    FeatureRows(const MinibatchStddevCall& call, int64_t elements) {
        const int64_t channels = call.c / call.features;
        rows = call.channels_last ? call.p : 1;
        run = call.channels_last ? channels : channels * call.p;
        x_row = call.c, y_row = call.c + call.features;
        x_sample = call.c * call.p, y_sample = (call.c + call.features) * call.p;
        rows_of_piece = elements > run ? elements / run : 1;
        run_of_piece = rows > 1 || run < elements ? run : elements;
        pieces = ((rows + rows_of_piece - 1) / rows_of_piece) * ((run + run_of_piece - 1) / run_of_piece);
    }
};

// Processes one place of all members of a group: `x(g)` and `d(g)` read member g (d is dy or gx), `put(g, value)`
// writes its result. Returns the term that is summed over a feature: s, or in ORDER 2 <gx, v> / s.
//
//     dx = dy + k v / s,   k: gradient of the map times `share`
//
// The gradients of <gx, dx> are
//
//     of the map:  <gx, v> / s * share
//     of x:        k / s * (gx - mean of gx - v * mean of gx v / s^2)
template <int ORDER, class V, class X, class D, class Put>
FASTGAN_INLINE V members(int64_t size, V share, V eps, V k, const X& x, const D& d, const Put& put) {
    V mean{}, rest{}, square{};
    for (int64_t g = 0; g < size; ++g) mean += x(g);
    mean *= share;  // `share` is 1 / size
    // The rounding error of the mean matters where the members are nearly equal: it is subtracted as well.
    for (int64_t g = 0; g < size; ++g) rest += x(g) - mean;
    rest *= share;
    const auto v = [&](int64_t g) { return (x(g) - mean) - rest; };
    for (int64_t g = 0; g < size; ++g) square += v(g) * v(g);
    square = square * share + eps;
    const V r = reciprocal_sqrt(square);
    if constexpr (ORDER == 0) {
        return square * r;
    } else if constexpr (ORDER == 1) {
        for (int64_t g = 0; g < size; ++g) put(g, d(g) + k * r * v(g));
        return V{};
    } else {
        V d_mean{}, product{};
        for (int64_t g = 0; g < size; ++g) d_mean += d(g);
        d_mean *= share;
        for (int64_t g = 0; g < size; ++g) product += (d(g) - d_mean) * v(g);
        const V along = product * share * r * r;
        for (int64_t g = 0; g < size; ++g) put(g, k * r * (d(g) - d_mean - along * v(g)));
        return product * r;
    }
}

}  // namespace FASTGAN_VALUES
