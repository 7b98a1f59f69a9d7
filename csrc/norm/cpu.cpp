// instance_norm and batch_norm_act on the CPU, compiled once per instruction set.
//
// The unit of work is a tile of channels (NHWC) or one channel (NCHW), over all positions of one sample
// (batch_norm_act: of all samples). Each unit takes two passes, the second of which finds the data in the caches. If
// there are few units, and large ones, their positions are cut into segments. The plan depends on the shape alone, and
// sums are taken in a fixed order, so that results do not depend on the number of threads.
//
// The variance is taken about the running mean. Each chunk of positions sums z - shift and its square, where the shift
// is the mean of all chunks before (for the first chunk: its own mean). After each chunk the moments move to the new
// mean, in double precision. So nothing cancels, and the error is that of rounding the terms.
#include "common/simd.h"

#include "norm/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::Activation;
using fastgan::NormCall;

namespace {

constexpr int MAX_CHANNELS = 256;     // maximum number of channels in a tile, whose rows lie on the stack
constexpr int64_t CHUNK = 64;         // positions in a chunk: few enough for sums in single precision
constexpr int64_t NCHW_CHUNK = 4096;  // positions in a chunk in NCHW, where the sums are spread over lanes

struct Plan {
    int64_t tile, tiles;                 // channels in a unit; units in a sample
    int64_t units, segments, positions;  // total number of units; segments in a unit; positions in a segment
    int64_t begin(int64_t segment) const { return segment * positions; }
};

Plan plan_of(const NormCall& call) {
    constexpr int64_t WANTED = 16;           // number of segments over all units
    constexpr int64_t MIN_ELEMENTS = 32768;  // elements in a segment: enough to pay for a barrier
    Plan plan;
    plan.tile = call.channels_last ? min(call.c, MAX_CHANNELS) : 1;
    plan.tiles = ceil_div(call.c, plan.tile);
    plan.units = call.batch ? plan.tiles : call.n * plan.tiles;
    plan.segments = 1;
    if (plan.units < WANTED / 2) {
        plan.segments = max(1, min(ceil_div(WANTED, plan.units), call.count() * plan.tile / MIN_ELEMENTS));
    }
    plan.positions = ceil_div(call.count(), plan.segments);
    plan.segments = ceil_div(call.count(), plan.positions);  // no segment is empty
    return plan;
}

// Results of a segment: rows with a double for each channel of its unit. The first pass writes two rows in forward and
// three in backward; the second pass of backward adds the sums of dx and of dx * noise.
constexpr int FIRST_ROWS = 3, ROWS = 5;
double* rows_of(const NormCall& call, const Plan& plan, int64_t unit, int64_t segment) {
    return (double*)call.workspace + (unit * plan.segments + segment) * ROWS * plan.tile;
}

// The steps of a kernel; `layout`, an Nhwc or Nchw, is their first argument. `first` fills rows of `plan.tile` numbers.
// `merge` adds the rows of a segment of `added` elements to those of the `count` elements before. `second` reads the
// rows of the whole unit.
struct Steps {
    const void* layout;
    void (*first)(const void* layout, int64_t unit, int64_t begin, int64_t end, double* rows);
    void (*merge)(int64_t tile, double* rows, double count, const double* more, double added);
    void (*second)(const void* layout, int64_t unit, int64_t segment, int64_t end, const double* rows);
};

void two_passes(const NormCall& call, const Plan& plan, const Steps& steps) {
    auto end_of = [&](int64_t segment) { return min(plan.begin(segment) + plan.positions, call.count()); };
#pragma omp parallel if (worth_threads(call.n * call.c * call.p))
    {
        if (plan.segments == 1) {
            double rows[FIRST_ROWS * MAX_CHANNELS] = {};
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < plan.units; ++unit) {
                steps.first(steps.layout, unit, 0, call.count(), rows);
                steps.second(steps.layout, unit, 0, call.count(), rows);
            }
        } else {
            for (int64_t unit = 0; unit < plan.units; ++unit) {
#pragma omp for schedule(static)
                for (int64_t segment = 0; segment < plan.segments; ++segment) {
                    double* rows = rows_of(call, plan, unit, segment);
                    steps.first(steps.layout, unit, plan.begin(segment), end_of(segment), rows);
                }
                double* total = rows_of(call, plan, unit, 0);
#pragma omp single
                for (int64_t other = 1; other < plan.segments; ++other) {
                    steps.merge(plan.tile, total, double(plan.begin(other)), rows_of(call, plan, unit, other),
                                double(end_of(other) - plan.begin(other)));
                }
#pragma omp for schedule(static) nowait
                for (int64_t segment = 0; segment < plan.segments; ++segment) {
                    steps.second(steps.layout, unit, segment, end_of(segment), total);
                }
            }
        }
    }
}

// Tensors of a call, and the parameters by unit: shared by both layouts.
template <class T>
struct Tensors {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const NormCall& call;
    const Plan& plan;
    const T *x, *dy;
    T *y, *dx;
    const S *noise, *strength, *bias, *style_scale, *style_bias;
    S* statistics;
    V gain, gain_below;
    bool streamed;

    Tensors(const NormCall& call, const Plan& plan)
        : call(call),
          plan(plan),
          x((const T*)call.x),
          dy((const T*)call.dy),
          y((T*)call.y),
          dx((T*)call.dx),
          noise((const S*)call.noise),
          strength((const S*)call.strength),
          bias((const S*)call.bias),
          style_scale((const S*)call.style_scale),
          style_bias((const S*)call.style_bias),
          statistics((S*)call.statistics),
          gain(broadcast<V>(S(call.gain))),
          gain_below(broadcast<V>(S(call.gain * call.slope))) {
        const int64_t row = call.channels_last ? call.c : call.p;
        const int64_t unit = call.channels_last ? Group<T>::size : lanes<V>();
        streamed = should_stream(call.n * call.c * call.p * sizeof(T), row, unit, y ? y : dx);
    }

    int64_t sample(int64_t unit) const { return unit / plan.tiles; }
    int64_t channel(int64_t unit) const { return unit % plan.tiles * plan.tile; }  // first channel
    int64_t width(int64_t unit) const { return min(plan.tile, call.c - channel(unit)); }
    const S* noise_of(int64_t unit) const {
        return noise ? noise + (call.noise_per_sample ? sample(unit) * call.p : 0) : nullptr;
    }

    // Parameters of channel i of a unit. `row` is the index of its first channel in [N, C], or in [C] of a batch.
    int64_t row(int64_t unit) const { return sample(unit) * call.c + channel(unit); }
    S strength_at(int64_t unit, int64_t i) const {
        return strength ? strength[call.strength_per_channel ? channel(unit) + i : 0] : S(1);
    }
    S bias_at(int64_t unit, int64_t i) const { return bias ? bias[channel(unit) + i] : S(0); }
    S scale_at(int64_t unit, int64_t i) const { return style_scale ? style_scale[row(unit) + i] : S(1); }
    S shift_at(int64_t unit, int64_t i) const { return style_bias ? style_bias[row(unit) + i] : S(0); }
    S mean_at(int64_t unit, int64_t i) const { return statistics[row(unit) + i]; }
    S inverse_at(int64_t unit, int64_t i) const { return statistics[call.rows() + row(unit) + i]; }

    double inverse_of(double squares) const { return 1 / __builtin_sqrt(squares / double(call.count()) + call.eps); }

    FASTGAN_NOINLINE void write_statistics(int64_t unit, const double* mean, const double* squares) const {
        for (int64_t i = 0; i < width(unit); ++i) {
            statistics[row(unit) + i] = S(mean[i]);
            statistics[call.rows() + row(unit) + i] = S(inverse_of(squares[i]));
            if (call.batch) statistics[2 * call.rows() + row(unit) + i] = S(squares[i] / double(call.count() - 1));
        }
    }

    // Coefficients of dx that follow from the sums T1, T2 and T3 of the first backward pass (arithmetic.h). dx is
    // proportional to dy - (grad_mean + grad_slope * (z - mean)).
    struct InputGradCoefficients {
        double sum, product, grad_mean, grad_slope;  // sum: T1; product: T2, corrected
    };
    InputGradCoefficients coefficients_at(int64_t unit, const double* sums, int64_t i) const {
        const double count = double(call.count()), inverse = this->inverse_at(unit, i);
        const double sum = sums[i], mean_error = sums[2 * plan.tile + i] / count;
        const double product = sums[plan.tile + i] - mean_error * sum;
        const double grad_slope = product * inverse * inverse / count;
        return {sum, product, sum / count - mean_error * grad_slope, grad_slope};
    }

    FASTGAN_NOINLINE void style_gradients(int64_t unit, const double* sums) const {
        S *scale = (S*)call.dstyle_scale, *shift = (S*)call.dstyle_bias;
        for (int64_t i = 0; i < width(unit); ++i) {
            const InputGradCoefficients coefficients = coefficients_at(unit, sums, i);
            if (scale) scale[row(unit) + i] = S(coefficients.product * double(inverse_at(unit, i)));
            if (shift) shift[row(unit) + i] = S(coefficients.sum);
        }
    }
};

// Adds `added` numbers to the moments of `count` numbers. `distances` is the sum of their distances from `shift`, and
// `square_sums` that of the squared distances.
inline void add_moments(double& mean, double& squares, double count, double shift, double distances, double square_sums,
                        double added) {
    const double offset = mean - shift, total = count * offset + distances;
    const double about_shift = squares + count * offset * offset + square_sums;
    mean = shift + total / (count + added);
    const double about_mean = about_shift - total * total / (count + added);
    squares = about_mean < 0 ? 0 : about_mean;  // keeps NaN
}

// NHWC ----------------------------------------------------------------------------------------------------------------

// A column of a tile: GROUPS groups of channels or, with PART, the first `count` channels of one.
template <class T, int GROUPS, bool PART>
struct Columns {
    static constexpr int vectors = GROUPS * Group<T>::vectors;
    typedef typename Arithmetic<T>::Vector V;
    typedef typename Arithmetic<T>::Scalar S;
    struct Values {
        V v[vectors];
    };

    static Values get(const T* p, int64_t count) {
        Values values;
        prefetch(p);
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) {
            const Group<T> group = PART ? load_group_n(p, count) : load_group(p + g * Group<T>::size);
#pragma GCC unroll 2
            for (int k = 0; k < Group<T>::vectors; ++k) values.v[g * Group<T>::vectors + k] = group.v[k];
        }
        return values;
    }
    static void put(T* p, const Values& values, int64_t count, bool streamed) {
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) {
            Group<T> group;
#pragma GCC unroll 2
            for (int k = 0; k < Group<T>::vectors; ++k) group.v[k] = values.v[g * Group<T>::vectors + k];
            put_group<PART>(p + g * Group<T>::size, group, count, streamed);
        }
    }
    static Values row(const S* p) {
        Values values;
#pragma GCC unroll 8
        for (int i = 0; i < vectors; ++i) values.v[i] = load(p + i * lanes<V>());
        return values;
    }
    static void put_row(S* p, const Values& values) {
#pragma GCC unroll 8
        for (int i = 0; i < vectors; ++i) store(p + i * lanes<V>(), values.v[i]);
    }
};

// Calls `body(Columns<...>(), first channel, channels)` for all columns of a tile. A column is VECTORS vectors wide if
// possible, and one for double, which is for gradcheck.
template <class T, int VECTORS, class Body>
inline void for_columns(int64_t width, const Body& body) {
    constexpr int groups = sizeof(T) == sizeof(double) ? 1 : VECTORS / Group<T>::vectors, size = Group<T>::size;
    int64_t j = 0;
    for (; groups > 1 && j + groups * size <= width; j += groups * size) {
        body(Columns<T, groups, false>(), j, groups * size);
    }
    for (; j + size <= width; j += size) body(Columns<T, 1, false>(), j, size);
    if (j < width) body(Columns<T, 1, true>(), j, width - j);
}

// A row with one number per channel of a tile, in the order of groups, padded.
template <class S>
struct alignas(64) Row {
    S v[MAX_CHANNELS + 32];
};

template <class T, Activation ACT>
struct Nhwc : Tensors<T> {
    static constexpr bool PLAIN = ACT != Activation::before_norm;
    typedef typename Tensors<T>::S S;
    typedef typename Tensors<T>::V V;
    using Tensors<T>::Tensors;
    using Tensors<T>::call;

    static int64_t padded(int64_t width) { return round_up(width, Group<T>::size); }
    template <class Value>
    static void fill(Row<S>& row, int64_t width, const Value& value) {
        for (int64_t i = 0; i < padded(width); ++i) row.v[slot_of<T>(i)] = i < width ? S(value(i)) : S(0);
    }
    template <class R>
    static void in_order(const Row<R>& row, int64_t width, double* to) {
        for (int64_t i = 0; i < width; ++i) to[i] = row.v[slot_of<T>(i)];
    }
    int64_t at(int64_t unit, int64_t position) const {
        return (this->sample(unit) * call.p + position) * call.c + this->channel(unit);
    }

    // Parameters of the activation before the norm.
    struct BeforeNorm {
        Row<S> strength, bias;
        const S* noise;
        BeforeNorm(const Nhwc& own, int64_t unit) {
            if constexpr (!PLAIN) {
                fill(strength, own.width(unit), [&](int64_t i) { return own.strength_at(unit, i); });
                fill(bias, own.width(unit), [&](int64_t i) { return own.bias_at(unit, i); });
                noise = own.noise_of(unit);
            }
        }
        S noise_at(int64_t position) const {
            if constexpr (PLAIN) return 0;
            return noise ? noise[position] : S(0);
        }
    };

    // Sums of z - shift and of its squares over the positions of a chunk.
    FASTGAN_NOINLINE void distances(const T* x, int64_t begin, int64_t end, int64_t width, const BeforeNorm& before,
                                    const Row<S>& shift, Row<S>& sums, Row<S>& squares) const {
        const V gain = this->gain, gain_below = this->gain_below;
        for_columns<T, 4>(width, [&](auto columns, int64_t j, int64_t count) {
            typedef decltype(columns) C;
            const auto shifts = C::row(shift.v + j);
            const auto strengths = C::row(before.strength.v + j), biases = C::row(before.bias.v + j);
            typename C::Values first, second;
            for (int i = 0; i < C::vectors; ++i) first.v[i] = second.v[i] = broadcast<V>(S(0));
            const T* from = x + j;
            for (int64_t position = begin; position < end; ++position, from += call.c) {
                const V noise = broadcast<V>(before.noise_at(position));
                const auto values = C::get(from, count);
#pragma GCC unroll 8
                for (int i = 0; i < C::vectors; ++i) {
                    const V z = activated<PLAIN>(values.v[i], strengths.v[i], noise, biases.v[i], gain, gain_below).z;
                    const V distance = z - shifts.v[i];
                    first.v[i] += distance;
                    second.v[i] += distance * distance;
                }
            }
            C::put_row(sums.v + j, first);
            C::put_row(squares.v + j, second);
        });
    }

    void moments(int64_t unit, int64_t begin, int64_t end, double* mean, double* squares) const {
        const int64_t width = this->width(unit), slots = padded(width);
        const BeforeNorm before(*this, unit);
        Row<S> shift = {}, sums, square_sums;
        Row<double> means, all_squares;
        for (int64_t i = 0; i < slots; ++i) means.v[i] = 0, all_squares.v[i] = 0;
        const int64_t first_end = min(begin + CHUNK, end);
        distances(this->x + at(unit, begin), begin, first_end, width, before, shift, sums, square_sums);
        for (int64_t i = 0; i < slots; ++i) shift.v[i] = sums.v[i] / S(first_end - begin);
        for (int64_t from = begin; from < end; from += CHUNK) {
            const int64_t to = min(from + CHUNK, end);
            distances(this->x + at(unit, from), from, to, width, before, shift, sums, square_sums);
            const double count = double(from - begin), added = double(to - from);
            for (int64_t i = 0; i < slots; ++i) {
                add_moments(means.v[i], all_squares.v[i], count, shift.v[i], sums.v[i], square_sums.v[i], added);
                shift.v[i] = S(means.v[i]);
            }
        }
        in_order(means, width, mean);
        in_order(all_squares, width, squares);
    }

    void normalise(int64_t unit, int64_t begin, int64_t end, const double* mean, const double* squares) const {
        const int64_t width = this->width(unit);
        const BeforeNorm before(*this, unit);
        const V gain = this->gain, gain_below = this->gain_below;
        Row<S> means, factors, shifts;
        fill(means, width, [&](int64_t i) { return mean[i]; });
        fill(factors, width, [&](int64_t i) { return this->scale_at(unit, i) * this->inverse_of(squares[i]); });
        fill(shifts, width, [&](int64_t i) { return this->shift_at(unit, i); });
        for (int64_t chunk = begin; chunk < end; chunk += CHUNK) {
            for_columns<T, 4>(width, [&](auto columns, int64_t j, int64_t count) {
                typedef decltype(columns) C;
                const auto strengths = C::row(before.strength.v + j), biases = C::row(before.bias.v + j);
                const auto m = C::row(means.v + j), f = C::row(factors.v + j), s = C::row(shifts.v + j);
                const bool streamed = this->streamed;
                const T* from = this->x + at(unit, chunk) + j;
                T* to = this->y + at(unit, chunk) + j;
                for (int64_t position = chunk; position < min(chunk + CHUNK, end); ++position) {
                    const V noise = broadcast<V>(before.noise_at(position));
                    auto values = C::get(from, count);
#pragma GCC unroll 8
                    for (int i = 0; i < C::vectors; ++i) {
                        const V z =
                            activated<PLAIN>(values.v[i], strengths.v[i], noise, biases.v[i], gain, gain_below).z;
                        values.v[i] = normalised(z, m.v[i], f.v[i], s.v[i]);
                        if constexpr (ACT == Activation::after_norm) {
                            values.v[i] = piecewise_linear(values.v[i], gain, gain_below).z;
                        }
                    }
                    C::put(to, values, count, streamed);
                    from += call.c, to += call.c;
                }
            });
        }
        if (this->streamed) stream_fence();
    }

    // Factor and shift of the norm; the derivative of an activation after it is computed from them.
    struct AfterNorm {
        Row<S> factor, shift;
        AfterNorm(const Nhwc& own, int64_t unit) {
            const int64_t width = own.width(unit);
            fill(factor, width, [&](int64_t i) { return own.scale_at(unit, i) * own.inverse_at(unit, i); });
            if constexpr (ACT == Activation::after_norm) {
                fill(shift, width, [&](int64_t i) { return own.shift_at(unit, i); });
            }
        }
    };

    // Sums of dy, of dy * (z - mean) and of z - mean.
    void products(int64_t unit, int64_t begin, int64_t end, double* to) const {
        const int64_t width = this->width(unit), slots = padded(width);
        const BeforeNorm before(*this, unit);
        const AfterNorm after(*this, unit);
        const V gain = this->gain, gain_below = this->gain_below;
        Row<S> means, chunk_sums, chunk_products, distances;
        Row<double> total, total_products, total_distances;
        fill(means, width, [&](int64_t i) { return this->mean_at(unit, i); });
        for (int64_t i = 0; i < slots; ++i) total.v[i] = total_products.v[i] = total_distances.v[i] = 0;
        for (int64_t chunk = begin; chunk < end; chunk += CHUNK) {
            for_columns<T, 4>(width, [&](auto columns, int64_t j, int64_t count) {
                typedef decltype(columns) C;
                const auto strengths = C::row(before.strength.v + j), biases = C::row(before.bias.v + j);
                const auto m = C::row(means.v + j), f = C::row(after.factor.v + j), s = C::row(after.shift.v + j);
                typename C::Values first, second, third;
                for (int i = 0; i < C::vectors; ++i) first.v[i] = second.v[i] = third.v[i] = broadcast<V>(S(0));
                const T *from = this->x + at(unit, chunk) + j, *from_dy = this->dy + at(unit, chunk) + j;
                for (int64_t position = chunk; position < min(chunk + CHUNK, end); ++position) {
                    const V noise = broadcast<V>(before.noise_at(position));
                    const auto values = C::get(from, count), g = C::get(from_dy, count);
#pragma GCC unroll 8
                    for (int i = 0; i < C::vectors; ++i) {
                        const V z =
                            activated<PLAIN>(values.v[i], strengths.v[i], noise, biases.v[i], gain, gain_below).z;
                        V dv = g.v[i];
                        if constexpr (ACT == Activation::after_norm) {
                            dv *= piecewise_linear(normalised(z, m.v[i], f.v[i], s.v[i]), gain, gain_below).slope;
                        }
                        const V distance = z - m.v[i];
                        first.v[i] += dv;
                        second.v[i] += dv * distance;
                        third.v[i] += distance;
                    }
                    from += call.c, from_dy += call.c;
                }
                C::put_row(chunk_sums.v + j, first);
                C::put_row(chunk_products.v + j, second);
                C::put_row(distances.v + j, third);
            });
            for (int64_t i = 0; i < slots; ++i) {
                total.v[i] += chunk_sums.v[i], total_products.v[i] += chunk_products.v[i],
                    total_distances.v[i] += distances.v[i];
            }
        }
        in_order(total, width, to);
        in_order(total_products, width, to + this->plan.tile);
        in_order(total_distances, width, to + 2 * this->plan.tile);
    }

    // Writes dx, and sums dx (`biases`) and dx * noise (`strengths`).
    void gradients(int64_t unit, int64_t begin, int64_t end, const double* sums, double* biases,
                   double* strengths) const {
        const int64_t width = this->width(unit), slots = padded(width);
        const BeforeNorm before(*this, unit);
        const AfterNorm after(*this, unit);
        const V gain = this->gain, gain_below = this->gain_below;
        Row<S> means, grad_means, grad_slopes, chunk_sums, chunk_products;
        Row<double> total, total_noisy;
        fill(means, width, [&](int64_t i) { return this->mean_at(unit, i); });
        fill(grad_means, width, [&](int64_t i) { return this->coefficients_at(unit, sums, i).grad_mean; });
        fill(grad_slopes, width, [&](int64_t i) { return this->coefficients_at(unit, sums, i).grad_slope; });
        for (int64_t i = 0; i < slots; ++i) total.v[i] = 0, total_noisy.v[i] = 0;
        for (int64_t chunk = begin; chunk < end; chunk += CHUNK) {
            for_columns<T, PLAIN ? 4 : 2>(width, [&](auto columns, int64_t j, int64_t count) {
                typedef decltype(columns) C;
                const auto ss = C::row(before.strength.v + j), bs = C::row(before.bias.v + j);
                const auto m = C::row(means.v + j), f = C::row(after.factor.v + j), s = C::row(after.shift.v + j);
                const auto gm = C::row(grad_means.v + j), gs = C::row(grad_slopes.v + j);
                typename C::Values first, second;
                for (int i = 0; i < C::vectors; ++i) first.v[i] = second.v[i] = broadcast<V>(S(0));
                const bool streamed = this->streamed, written = this->dx != nullptr;
                const T *from = this->x + at(unit, chunk) + j, *from_dy = this->dy + at(unit, chunk) + j;
                T* to = this->dx + at(unit, chunk) + j;
                for (int64_t position = chunk; position < min(chunk + CHUNK, end); ++position) {
                    const V noise = broadcast<V>(before.noise_at(position));
                    auto values = C::get(from, count);
                    const auto g = C::get(from_dy, count);
#pragma GCC unroll 8
                    for (int i = 0; i < C::vectors; ++i) {
                        const Activated<V> z = activated<PLAIN>(values.v[i], ss.v[i], noise, bs.v[i], gain, gain_below);
                        V dv = g.v[i];
                        if constexpr (ACT == Activation::after_norm) {
                            dv *= piecewise_linear(normalised(z.z, m.v[i], f.v[i], s.v[i]), gain, gain_below).slope;
                        }
                        V du = input_gradient(dv, z.z, m.v[i], f.v[i], gm.v[i], gs.v[i]);
                        if constexpr (!PLAIN) {
                            du *= z.slope;
                            first.v[i] += du;
                            second.v[i] += du * noise;
                        }
                        values.v[i] = du;
                    }
                    if (written) C::put(to, values, count, streamed);
                    from += call.c, from_dy += call.c, to += call.c;
                }
                C::put_row(chunk_sums.v + j, first);
                C::put_row(chunk_products.v + j, second);
            });
            if constexpr (!PLAIN) {
                for (int64_t i = 0; i < slots; ++i)
                    total.v[i] += chunk_sums.v[i], total_noisy.v[i] += chunk_products.v[i];
            }
        }
        if (this->streamed) stream_fence();
        in_order(total, width, biases);
        in_order(total_noisy, width, strengths);
    }
};

// NCHW ----------------------------------------------------------------------------------------------------------------

template <class T, Activation ACT>
struct Nchw : Tensors<T> {
    static constexpr bool PLAIN = ACT != Activation::before_norm;
    typedef typename Tensors<T>::S S;
    typedef typename Tensors<T>::V V;
    using Tensors<T>::Tensors;
    using Tensors<T>::call;

    // Calls `body(Whole() or Part(), index in the tensors, elements, sum, z, noise)` for each vector of a segment.
    // `sum`, 0 to 3, is the sum it belongs to: four independent sums hide the latency of an addition.
    template <class Body>
    void each(int64_t unit, int64_t begin, int64_t end, const Body& body) const {
        if constexpr (ACT == Activation::after_norm) {  // units span all samples
            for (int64_t next; begin < end; begin = next) {
                const int64_t sample = begin / call.p, first = sample * call.p;
                next = min(first + call.p, end);
                each_of_plane(unit, (sample * call.c + unit) * call.p, begin - first, next - first, body);
            }
        } else {
            each_of_plane(unit, unit * call.p, begin, end, body);
        }
    }
    template <class Body>
    void each_of_plane(int64_t unit, int64_t plane, int64_t begin, int64_t end, const Body& body) const {
        const int64_t width = lanes<V>();
        const V gain = this->gain, gain_below = this->gain_below;
        const V strength = broadcast<V>(this->strength_at(unit, 0)), bias = broadcast<V>(this->bias_at(unit, 0));
        const S* noise_of = this->noise_of(unit);
        auto one = [&](auto part, int64_t i, int64_t count, int which) {
            constexpr bool PART = decltype(part)::part;
            V noise = broadcast<V>(S(0));
            if (!PLAIN && noise_of) noise = PART ? load_n(noise_of + i, count) : load(noise_of + i);
            const T* from = this->x + plane + i;
            if constexpr (!PART) prefetch(from);
            const V x = PART ? load_n(from, count) : load(from);
            body(part, plane + i, count, which, activated<PLAIN>(x, strength, noise, bias, gain, gain_below), noise);
        };
        int64_t i = begin;
        for (; i + 4 * width <= end; i += 4 * width) {
#pragma GCC unroll 4
            for (int which = 0; which < 4; ++which) one(Whole(), i + which * width, width, which);
        }
        for (; i + width <= end; i += width) one(Whole(), i, width, 0);
        if (i < end) one(Part(), i, end - i, 0);
    }

    static V first_lanes(int64_t count) {  // 1 in the first `count` lanes, else 0
        alignas(VECTOR_BYTES) S row[lanes<V>()] = {};
        for (int64_t i = 0; i < count; ++i) row[i] = 1;
        return load(row);
    }
    struct Four {
        V v[4] = {broadcast<V>(S(0)), broadcast<V>(S(0)), broadcast<V>(S(0)), broadcast<V>(S(0))};
        S total() const { return sum((v[0] + v[1]) + (v[2] + v[3])); }
    };

    FASTGAN_NOINLINE void distances(int64_t unit, int64_t begin, int64_t end, S shift, S& sums, S& squares) const {
        Four first, second;
        each(unit, begin, end, [&](auto part, int64_t, int64_t count, int which, Activated<V> u, V) {
            V distance = u.z - broadcast<V>(shift);
            if (decltype(part)::part) distance *= first_lanes(count);
            first.v[which] += distance;
            second.v[which] += distance * distance;
        });
        sums = first.total(), squares = second.total();
    }

    FASTGAN_NOINLINE void moments(int64_t unit, int64_t begin, int64_t end, double* mean, double* squares) const {
        S sums, square_sums;
        const int64_t first_end = min(begin + NCHW_CHUNK, end);
        distances(unit, begin, first_end, S(0), sums, square_sums);
        S shift = sums / S(first_end - begin);
        *mean = *squares = 0;
        for (int64_t from = begin; from < end; from += NCHW_CHUNK) {
            const int64_t to = min(from + NCHW_CHUNK, end);
            distances(unit, from, to, shift, sums, square_sums);
            add_moments(*mean, *squares, double(from - begin), shift, sums, square_sums, double(to - from));
            shift = S(*mean);
        }
    }

    FASTGAN_NOINLINE void normalise(int64_t unit, int64_t begin, int64_t end, const double* mean,
                                    const double* squares) const {
        const V m = broadcast<V>(S(*mean)), shift = broadcast<V>(this->shift_at(unit, 0));
        const V factor = broadcast<V>(S(this->scale_at(unit, 0) * this->inverse_of(*squares)));
        each(unit, begin, end, [&](auto part, int64_t i, int64_t count, int, Activated<V> u, V) {
            V v = normalised(u.z, m, factor, shift);
            if constexpr (ACT == Activation::after_norm) v = piecewise_linear(v, this->gain, this->gain_below).z;
            put<decltype(part)::part>(this->y + i, v, count, this->streamed);
        });
        if (this->streamed) stream_fence();
    }

    V read_dy(bool part, int64_t i, int64_t count) const {
        if (part) return load_n(this->dy + i, count);
        prefetch(this->dy + i);
        return load(this->dy + i);
    }

    // Gradient of the norm's output, given dy. `factor` and `shift` are those of the norm.
    V through_activation(V dy, V z, V mean, V factor, V shift) const {
        if constexpr (ACT != Activation::after_norm) return dy;
        return dy * piecewise_linear(normalised(z, mean, factor, shift), this->gain, this->gain_below).slope;
    }

    FASTGAN_NOINLINE void products(int64_t unit, int64_t begin, int64_t end, double* sums) const {
        const V m = broadcast<V>(this->mean_at(unit, 0)), shift = broadcast<V>(this->shift_at(unit, 0));
        const V factor = broadcast<V>(S(this->scale_at(unit, 0) * this->inverse_at(unit, 0)));
        sums[0] = sums[1] = sums[2] = 0;
        for (int64_t chunk = begin; chunk < end; chunk += NCHW_CHUNK) {
            Four first, second, third;
            each(unit, chunk, min(chunk + NCHW_CHUNK, end),
                 [&](auto part, int64_t i, int64_t count, int which, Activated<V> u, V) {
                     const V dy = read_dy(decltype(part)::part, i, count);  // zero in lanes past the end
                     const V dv = through_activation(dy, u.z, m, factor, shift);
                     V distance = u.z - m;
                     first.v[which] += dv;
                     second.v[which] += dv * distance;
                     if (decltype(part)::part) distance *= first_lanes(count);
                     third.v[which] += distance;
                 });
            sums[0] += first.total(), sums[1] += second.total(), sums[2] += third.total();
        }
    }

    FASTGAN_NOINLINE void gradients(int64_t unit, int64_t begin, int64_t end, const double* sums, double* biases,
                                    double* strengths) const {
        const V m = broadcast<V>(this->mean_at(unit, 0)), shift = broadcast<V>(this->shift_at(unit, 0));
        const V factor = broadcast<V>(S(this->scale_at(unit, 0) * double(this->inverse_at(unit, 0))));
        const auto coefficients = this->coefficients_at(unit, sums, 0);
        const V grad_mean = broadcast<V>(S(coefficients.grad_mean));
        const V grad_slope = broadcast<V>(S(coefficients.grad_slope));
        *biases = *strengths = 0;
        for (int64_t chunk = begin; chunk < end; chunk += NCHW_CHUNK) {
            Four first, second;
            each(unit, chunk, min(chunk + NCHW_CHUNK, end),
                 [&](auto part, int64_t i, int64_t count, int which, Activated<V> u, V noise) {
                     constexpr bool PART = decltype(part)::part;
                     const V dv = through_activation(read_dy(PART, i, count), u.z, m, factor, shift);
                     V du = input_gradient(dv, u.z, m, factor, grad_mean, grad_slope);
                     if constexpr (!PLAIN) {
                         du *= u.slope;
                         if (PART) du *= first_lanes(count);
                         first.v[which] += du;
                         second.v[which] += du * noise;
                     }
                     if (this->dx) put<PART>(this->dx + i, du, count, this->streamed);
                 });
            *biases += first.total(), *strengths += second.total();
        }
        if (this->streamed) stream_fence();
    }
};

// Both ----------------------------------------------------------------------------------------------------------------

void merge_moments(int64_t tile, double* rows, double count, const double* more, double added) {
    for (int64_t i = 0; i < tile; ++i) add_moments(rows[i], rows[tile + i], count, more[i], 0, more[tile + i], added);
}

void merge_sums(int64_t tile, double* rows, double, const double* more, double) {
    for (int64_t i = 0; i < FIRST_ROWS * tile; ++i) rows[i] += more[i];
}

template <class Layout>
void forward(const NormCall& call) {
    const Plan plan = plan_of(call);
    const Layout layout(call, plan);
    const auto first = [](const void* layout, int64_t unit, int64_t begin, int64_t end, double* rows) {
        const Layout& own = *(const Layout*)layout;
        own.moments(unit, begin, end, rows, rows + own.plan.tile);
    };
    const auto second = [](const void* layout, int64_t unit, int64_t segment, int64_t end, const double* rows) {
        const Layout& own = *(const Layout*)layout;
        if (segment == 0) own.write_statistics(unit, rows, rows + own.plan.tile);
        own.normalise(unit, own.plan.begin(segment), end, rows, rows + own.plan.tile);
    };
    two_passes(call, plan, {&layout, first, merge_moments, second});
}

// Gradients of bias and strength: adds up the segments of all samples, channel by channel, in order.
template <class S>
void add_up(const NormCall& call, const Plan& plan) {
    double all_channels = 0;
    for (int64_t c = 0; c < call.c; ++c) {
        double bias = 0, strength = 0;
        for (int64_t sample = 0; sample < call.n; ++sample) {
            for (int64_t segment = 0; segment < plan.segments; ++segment) {
                const double* rows = rows_of(call, plan, sample * plan.tiles + c / plan.tile, segment) + c % plan.tile;
                bias += rows[FIRST_ROWS * plan.tile];
                strength += rows[(FIRST_ROWS + 1) * plan.tile];
            }
        }
        if (call.dbias) ((S*)call.dbias)[c] = S(bias);
        if (call.dstrength && call.strength_per_channel) ((S*)call.dstrength)[c] = S(strength);
        all_channels += strength;
    }
    if (call.dstrength && !call.strength_per_channel) *(S*)call.dstrength = S(all_channels);
}

template <class Layout>
void backward(const NormCall& call) {
    const Plan plan = plan_of(call);
    const Layout layout(call, plan);
    const auto first = [](const void* layout, int64_t unit, int64_t begin, int64_t end, double* rows) {
        ((const Layout*)layout)->products(unit, begin, end, rows);
    };
    const auto second = [](const void* layout, int64_t unit, int64_t segment, int64_t end, const double* sums) {
        const Layout& own = *(const Layout*)layout;
        if (segment == 0) own.style_gradients(unit, sums);
        if (!own.call.dx && !own.call.dbias && !own.call.dstrength) return;
        double* biases = rows_of(own.call, own.plan, unit, segment) + FIRST_ROWS * own.plan.tile;
        own.gradients(unit, own.plan.begin(segment), end, sums, biases, biases + own.plan.tile);
    };
    two_passes(call, plan, {&layout, first, merge_sums, second});
    if (call.dbias || call.dstrength) add_up<typename Layout::S>(call, plan);
}

template <class T, Activation ACT>
void run(const NormCall& call) {
    if (call.y) {
        call.channels_last ? forward<Nhwc<T, ACT>>(call) : forward<Nchw<T, ACT>>(call);
    } else {
        call.channels_last ? backward<Nhwc<T, ACT>>(call) : backward<Nchw<T, ACT>>(call);
    }
}

void run(const NormCall& call) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        switch (call.activation()) {
            case Activation::none:  // double, for gradcheck, takes the general case
                return run<T, sizeof(T) == sizeof(double) ? Activation::before_norm : Activation::none>(call);
            case Activation::before_norm: return run<T, Activation::before_norm>(call);
            case Activation::after_norm: return run<T, Activation::after_norm>(call);
        }
    });
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void instance_norm_forward(const NormCall& call) { run(call); }

void instance_norm_backward(const NormCall& call) { run(call); }

int64_t instance_norm_workspace(const NormCall& call) {
    const Plan plan = plan_of(call);
    return plan.units * plan.segments * ROWS * plan.tile * (int64_t)sizeof(double);
}

}  // namespace FASTGAN_ISA
