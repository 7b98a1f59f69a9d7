// minibatch_stddev on the CPU, compiled once per instruction set.
//
// Work is cut into pieces whose size depends on the shape alone. Each piece writes its own sum, and these are added up
// in a fixed order, so that results do not depend on the number of threads.
#include "common/simd.h"

#include "minibatch_stddev/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::MinibatchStddevCall;

namespace {

constexpr int64_t PIECE = 512;  // places (each in all members of a group) in a piece; longer sums would round more

// Order 0: the maps, [groups, features], in `sums`. Order 1: dx, given the gradients `k` of the maps. Order 2: both.
// SIZE is the number of members of a group, or 0 if it is known at run time only.
template <int ORDER, int SIZE, class T, class S>
void walk(const MinibatchStddevCall& call, const S* k, S* partial, S* sums, double factor) {
    typedef typename Arithmetic<T>::Vector V;
    const FeatureRows f(call, PIECE);
    const int64_t groups = call.groups, width = lanes<V>(), size = SIZE ? SIZE : call.size;
    const int64_t d_row = ORDER == 1 ? f.y_row : f.x_row, d_sample = ORDER == 1 ? f.y_sample : f.x_sample;
    const int64_t parts = ceil_div(f.run, f.run_of_piece);
    const T *x = (const T*)call.x, *d = (const T*)(ORDER == 1 ? call.dy : call.gx);
    T* dx = (T*)call.dx;
    const V share = broadcast<V>(1.0 / size), eps = broadcast<V>(1e-8);

    parallel_for(call.sums() * f.pieces, worth_threads(call.n * call.c * call.p), [&](int64_t work) {
        const int64_t piece = work % f.pieces, which = work / f.pieces, feature = which % call.features;
        const int64_t group = which / call.features, row = piece / parts * f.rows_of_piece;
        const int64_t last = min(row + f.rows_of_piece, f.rows);
        const int64_t begin = piece % parts * f.run_of_piece;
        const int64_t end = min(begin + f.run_of_piece, f.run);
        const V weight = broadcast<V>(ORDER ? k[which] : S(0));
        V total{};
        for (int64_t i = row; i < last; ++i) {
            const int64_t from_x = group * f.x_sample + i * f.x_row + feature * f.run;
            const int64_t from_d = group * d_sample + i * d_row + feature * f.run;
            int64_t j = begin;
            for (; j + width <= end; j += width) {
                total += members<ORDER>(
                    size, share, eps, weight, [&](int64_t g) { return load(x + from_x + g * groups * f.x_sample + j); },
                    [&](int64_t g) { return load(d + from_d + g * groups * d_sample + j); },
                    [&](int64_t g, V v) { store(dx + from_x + g * groups * f.x_sample + j, v); });
            }
            if (j < end) {
                const V last_few = members<ORDER>(
                    size, share, eps, weight,
                    [&](int64_t g) { return load_n(x + from_x + g * groups * f.x_sample + j, end - j); },
                    [&](int64_t g) { return load_n(d + from_d + g * groups * d_sample + j, end - j); },
                    [&](int64_t g, V v) { store_n(dx + from_x + g * groups * f.x_sample + j, v, end - j); });
                for (int64_t i = 0; i < end - j; ++i) total[i] += last_few[i];
            }
        }
        if constexpr (ORDER != 1) partial[work] = sum(total);
    });
    if constexpr (ORDER != 1) {
        for (int64_t which = 0; which < call.sums(); ++which) {
            double total = 0;
            for (int64_t piece = 0; piece < f.pieces; ++piece) total += partial[which * f.pieces + piece];
            sums[which] = S(total * factor);
        }
    }
}

// to = [from, maps]: the channels of `from`, then one constant map for each feature.
template <class T, class S>
void append(const MinibatchStddevCall& call, const T* from, const S* maps, T* to) {
    typedef typename Arithmetic<T>::Vector V;
    const int64_t c = call.c, p = call.p, features = call.features, groups = call.groups;
    const int64_t rows = call.channels_last ? p : 1, run = call.channels_last ? c : c * p,
                  repeats = call.channels_last ? 1 : p;
    const int64_t few = 8192 / run + 1, pieces = ceil_div(rows, few);

    parallel_for(call.n * pieces, worth_threads(call.n * c * p), [&](int64_t work) {
        const int64_t sample = work / pieces, first = work % pieces * few;
        for (int64_t row = first; row < first + few && row < rows; ++row) {
            const int64_t at = sample * rows + row;
            T* out = to + at * (run + features * repeats);
            memcpy(out, from + at * run, run * sizeof(T));
            out += run;
            for (int64_t f = 0; f < features; ++f) {
                T value;
                store_n(&value, broadcast<V>(maps[sample % groups * features + f]), 1);
                for (int64_t i = 0; i < repeats; ++i) *out++ = value;
            }
        }
    });
}

// k, [groups, features]: gradients of the maps, summed over positions and members, times the share of an element.
template <class T, class S>
void gradient_of_maps(const MinibatchStddevCall& call, S* partial, S* k) {
    const int64_t features = call.features, p = call.p, groups = call.groups;
    const int64_t step = call.channels_last ? call.c + features : 1;
    const T* dy = (const T*)call.dy;

    parallel_for(call.n * features, worth_threads(call.n * call.c * p), [&](int64_t map) {
        const int64_t sample = map / features, f = map % features;
        const T* from = dy + sample * (call.c + features) * p + (call.c + f) * (call.channels_last ? 1 : p);
        double total = 0;
        for (int64_t i = 0; i < p; ++i) total += load_n(from + i * step, 1)[0];
        partial[map] = S(total);
    });
    for (int64_t which = 0; which < call.sums(); ++which) {
        double total = 0;
        for (int64_t g = 0; g < call.size; ++g) total += partial[g * groups * features + which];
        k[which] = S(total * call.share);
    }
}

template <int ORDER, class T>
void run(const MinibatchStddevCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    S *k = (S*)call.workspace, *sums = k + call.sums(), *partial = sums + call.sums();
    if constexpr (ORDER > 0) gradient_of_maps<T>(call, partial, k);
    // Forward takes the mean of s over the places of a feature, double backward also over the members.
    const double factor = ORDER == 0 ? call.share * call.size : call.share;
    constexpr int COMMON = sizeof(T) < sizeof(double) ? 4 : 0;  // double is for gradcheck
    if (call.size == COMMON) {
        walk<ORDER, COMMON, T>(call, k, partial, sums, factor);
    } else {
        walk<ORDER, 0, T>(call, k, partial, sums, factor);
    }
    if constexpr (ORDER != 1) append(call, (const T*)(ORDER == 0 ? call.x : call.gx), sums, (T*)call.appended);
}

template <int ORDER>
void run(const MinibatchStddevCall& call) {
    for_dtype(call.dtype, [&](auto element) { run<ORDER, decltype(element)>(call); });
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void minibatch_stddev(const MinibatchStddevCall& call) {
    switch (call.order) {
        case 0: return run<0>(call);
        case 1: return run<1>(call);
        default: return run<2>(call);
    }
}

int64_t minibatch_stddev_workspace(const MinibatchStddevCall& call) {
    const FeatureRows f(call, PIECE);
    const int64_t pieces = call.sums() * f.pieces, maps = call.n * call.features;
    return (2 * call.sums() + max(pieces, maps)) * arithmetic_bytes(call.dtype);
}

}  // namespace FASTGAN_ISA
