// instance_norm and batch_norm_act on the GPU, with 16-byte accesses where the sizes allow.
//
// A unit of work is a tile of channels of a sample (NHWC) or a few channels (NCHW); for batch_norm_act, of all samples.
//
//   * On chip: if the positions of a unit fit into shared memory, and there are enough units to keep the GPU busy, a
//     block takes a unit and reads x (and dy) once.
//   * In turns: otherwise a unit is cut into pieces. A block takes a piece for its moments (or sums), or to apply those
//     of the whole unit. Both kinds of blocks alternate in one launch, such that a piece is applied while the L2 still
//     holds it: x (and dy) are read once from memory. The block that is the last of a unit with its moments merges
//     those of all pieces; blocks that apply them wait for it.
//
// All sums are taken in a fixed order, without atomics. The variance is taken about a value of each thread, and merged
// with that of others about the mean of both (Chan, Golub and LeVeque 1983): never as a difference of large numbers.
#include <algorithm>

#include "noise_bias_act/gpu.h"

#include "norm/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

constexpr int MIN_BLOCKS = 264;                         // 2 for each multiprocessor of an H100
constexpr int64_t RUN = 16;                             // loop steps between two corrections of a thread's mean
constexpr int64_t PIECE_BYTES = 64 * 1024;              // bytes of each activation in a piece, at most
constexpr int64_t LEAD_BYTES = 128 * 1024;              // bytes a multiprocessor from moments to their use
constexpr int64_t TILE_BYTES = 128;                     // bytes of a row of a tile (NHWC) that is cut into pieces
constexpr int64_t UNIT_BYTES = 8 * 1024 * 1024;         // larger units have tiles half as wide
constexpr std::size_t MAX_RESIDENT_BYTES = 88 * 1024;   // two such blocks fit on a multiprocessor of an H100
constexpr std::size_t STATIC_SHARED_BYTES = 25 * 1024;  // upper bound of a kernel's static shared memory

// Plan of a launch, on the host. Kernels take the Split alone: the members of a base class cost them registers.
struct Plan : Split {
    std::size_t resident;  // bytes of shared memory that hold the activations of a unit; 0 for pieces

    int64_t units(const NormCall& call) const { return call.channels_last ? call.n * tiles : tiles; }
    int64_t per_unit(const NormCall& call) const {
        return call.batch && !call.channels_last ? call.n * per_sample : per_sample;
    }
    int channels(const NormCall& call) const { return call.channels_last ? columns * vector : rows; }  // of a unit
};

// Units with `columns` threads along the contiguous dimension, each in one piece.
Plan units_of(const NormCall& call, int vector, int columns) {
    Plan plan{};
    plan.vector = vector, plan.columns = columns, plan.rows = BLOCK / columns;
    plan.tiles = call.channels_last ? ceil_div(call.c, int64_t(columns) * vector) : ceil_div(call.rows(), plan.rows);
    plan.per_sample = 1, plan.positions = call.p;
    return plan;
}

// Positions of a step of all threads, and number of steps in a sample.
int64_t step_of(const NormCall& call, const Plan& plan) {
    return call.channels_last ? plan.rows : int64_t(plan.columns) * plan.vector;
}
int64_t steps_of(const NormCall& call, const Plan& plan) { return ceil_div(call.p, step_of(call, plan)); }

// `tensors` is the number of activations that are read twice: x forward, x and dy backward.
Plan plan_in_turns(const NormCall& call, int vector, int tensors) {
    const int64_t bytes = bytes_of(call.dtype), fast = (call.channels_last ? call.c : call.p) / vector;
    const int64_t row = call.p * tensors * TILE_BYTES > UNIT_BYTES ? TILE_BYTES / 2 : TILE_BYTES;
    Plan plan = units_of(call, vector, power_of_two_from(fast, call.channels_last ? int(row / bytes / vector) : BLOCK));
    // Smaller pieces if there were not enough of them for all multiprocessors. Those for moments take one run.
    const int64_t most = min(PIECE_BYTES / (BLOCK * vector * bytes), tensors == 1 ? RUN : INT64_MAX);
    const int64_t steps = steps_of(call, plan) * plan.per_unit(call) * plan.units(call);
    plan.positions = min(max(ceil_div(steps, 2 * gpu::multiprocessors()), MIN_STEPS), most) * step_of(call, plan);
    plan.per_sample = max(1, ceil_div(call.p, plan.positions));
    return plan;
}

Plan plan_of(const NormCall& call, int vector, int tensors) {
    if (call.batch) return plan_in_turns(call, vector, tensors);
    const std::size_t limit = std::min(gpu::max_shared_bytes() - STATIC_SHARED_BYTES, MAX_RESIDENT_BYTES);
    const int64_t fast = (call.channels_last ? call.c : call.p) / vector;
    // In NHWC, the widest tile that leaves enough blocks. It has at least 32 bytes, the size of a memory sector.
    const int max_columns = power_of_two_from(fast, call.channels_last ? 32 : BLOCK), min_columns = vector > 1 ? 2 : 8;
    for (int columns = max_columns;; columns /= 2) {
        Plan plan = units_of(call, vector, columns);
        plan.resident = std::size_t(steps_of(call, plan) * BLOCK * vector * bytes_of(call.dtype) * tensors);
        const int64_t blocks = plan.units(call);
        if (plan.resident <= limit && blocks >= MIN_BLOCKS) return plan;
        const bool last = !call.channels_last || columns <= min_columns;
        // With fewer blocks the pieces would be small: one kernel is faster.
        if (last && plan.resident <= limit && (blocks >= MIN_BLOCKS / 4 || plan.resident <= 16 * 1024)) return plan;
        if (last) return plan_in_turns(call, vector, tensors);
    }
}

// Elements in an access of the backward pass in turns. In NHWC, 16 bytes would take too many registers.
constexpr int backward_vector(int vector, bool channels_last) {
    return channels_last && vector > 1 ? vector / 2 : vector;
}

Plan backward_plan(const NormCall& call, int vector) {
    const Plan plan = plan_of(call, vector, 2);
    return plan.resident ? plan : plan_in_turns(call, backward_vector(vector, call.channels_last), 2);
}

// Order of the blocks that take pieces. Blocks draw tickets. The first `lead` compute moments; then those that apply
// them and those that compute moments alternate. The moments of a unit are given out `lead - per_unit` pieces before
// they are needed.
struct Turns {
    int64_t pieces, per_unit, lead;
    unsigned *tickets, *arrived;  // counters, [1] and [units]
    bool reversed;                // all is applied in a second launch, latest pieces first: the L2 may hold these

    struct Turn {
        bool applies;
        int64_t piece;
    };

    FASTGAN_INLINE Turn next() const {
        const int64_t ticket = gpu::take_ticket(tickets);
        if (ticket < lead) return {false, ticket};
        const int64_t round = (ticket - lead) / 2, read = lead + round;
        if (read >= pieces) return {true, reversed ? 2 * pieces - 1 - ticket : ticket - pieces};
        return (ticket - lead) % 2 ? Turn{false, read} : Turn{true, round};
    }
};

template <class S>
struct Moments {
    S mean, squares, count;  // squares of the distances from the mean
};

template <class S>
FASTGAN_INLINE Moments<S> merged(const Moments<S>& a, const Moments<S>& b) {
    const S count = a.count + b.count, share = count > 0 ? b.count / count : S(0), delta = b.mean - a.mean;
    return {a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share), count};
}

template <class S>
struct Pair {
    S a, b;
};

// Sums of a row in the first backward pass: of dy, of dy * (z - mean) and of z - mean.
template <class S>
struct Triple {
    S a, b, c;

    // Sums about the exact mean: corrects `b` for the rounding error of the mean, and returns this error as `c`.
    FASTGAN_INLINE Triple about_the_mean(S numbers) const {
        const S mean_error = c / numbers;
        return {a, b - mean_error * a, mean_error};
    }
};

template <class S>
FASTGAN_INLINE Triple<S> merged(const Triple<S>& x, const Triple<S>& y) {
    return {x.a + y.a, x.b + y.b, x.c + y.c};
}

template <class S>
FASTGAN_INLINE S inverse_root(S squares, S p, S eps) {
    return S(1) / sqrt(squares / p + eps);
}

template <class S>
FASTGAN_INLINE Moments<S> shuffle_xor(const Moments<S>& own, int distance) {
    return {__shfl_xor_sync(gpu::full_mask, own.mean, distance, gpu::warp_size),
            __shfl_xor_sync(gpu::full_mask, own.squares, distance, gpu::warp_size),
            __shfl_xor_sync(gpu::full_mask, own.count, distance, gpu::warp_size)};
}

template <class S>
FASTGAN_INLINE Triple<S> shuffle_xor(const Triple<S>& own, int distance) {
    return {__shfl_xor_sync(gpu::full_mask, own.a, distance, gpu::warp_size),
            __shfl_xor_sync(gpu::full_mask, own.b, distance, gpu::warp_size),
            __shfl_xor_sync(gpu::full_mask, own.c, distance, gpu::warp_size)};
}

// Shared memory for the values of all threads of a block, W of each.
template <class S, int W>
FASTGAN_INLINE S* slots_of_block() {
    constexpr int merging = W * BLOCK * int(sizeof(Moments<S>) / sizeof(S)), writing = COLUMN_SLOTS<2, W>;
    SHARED(S, slots, [merging > writing ? merging : writing]);
    return &slots[0];
}

// Slots of the values that the warps of a block leave, after shuffles: `count` for each channel, `step` apart. Channels
// of adjacent threads lie in different banks.
template <bool NHWC>
struct Slots {
    int channels, count, step, pitch;  // pitch: slots from one channel of a thread to its next

    FASTGAN_INLINE explicit Slots(int columns) {
        const bool narrow = columns < gpu::warp_size;
        const int rows = BLOCK / (narrow ? gpu::warp_size : columns);
        channels = NHWC ? columns : BLOCK / columns;
        count = NHWC ? rows : narrow ? 1 : columns / gpu::warp_size;
        step = NHWC ? columns : 1;
        pitch = narrow ? (rows * columns + gpu::warp_size - 1) / gpu::warp_size * gpu::warp_size + columns : BLOCK;
    }
    // The first slot of channel i % channels of the threads' (i / channels)-th.
    FASTGAN_INLINE int first(int i) const { return i / channels * pitch + i % channels * (NHWC ? 1 : count); }
};

// Merges the values of all threads of a block with the same channel, and calls write(i, value) in one thread for each:
// i is the column of the channel, plus w * columns for the w-th of a thread (NHWC), or its row (NCHW). Returns whether
// the results are in the slots too. Once in a kernel for each W.
template <bool NHWC, class S, template <class> class R, int W, class F>
FASTGAN_INLINE bool merge_in_block(R<S> (&values)[W], int columns, const F& write) {
    const int thread = int(threadIdx.x), lane = thread % gpu::warp_size, warp = thread / gpu::warp_size;
    const bool narrow = columns < gpu::warp_size;
    // Bits of the thread index that differ among threads of one channel: the upper ones (NHWC) or the lower ones
    // (NCHW).
    const int first = NHWC ? columns : 1, past = NHWC || !narrow ? gpu::warp_size : columns;
    for (int distance = first; distance < past; distance *= 2) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            const R<S> other = shuffle_xor(values[w], distance);
            values[w] = thread & distance ? merged(other, values[w]) : merged(values[w], other);
        }
    }
    const Slots<NHWC> at(columns);
    if (at.count == 1) {  // uniform
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            if (NHWC || thread % columns == 0) write(NHWC ? thread + w * columns : thread / columns, values[w]);
        }
        return false;
    }
    R<S>* slots = reinterpret_cast<R<S>*>(slots_of_block<S, W>());
    GPU_UNROLL
    for (int w = 0; w < W; ++w) {
        if (NHWC && lane < columns) slots[w * at.pitch + (narrow ? warp * columns + lane : thread)] = values[w];
        if (!NHWC && lane == 0) slots[warp] = values[w];
    }
    __syncthreads();
    for (int i = thread; i < W * at.channels; i += BLOCK) {
        R<S>* from = slots + at.first(i);
        R<S> total = from[0];
        for (int k = 1; k < at.count; ++k) total = merged(total, from[k * at.step]);
        write(i, from[0] = total);
    }
    return true;
}

// The same; each thread gets the results of its channels.
template <bool NHWC, class S, template <class> class R, int W>
FASTGAN_INLINE void merge_for_all(R<S> (&values)[W], int columns) {
    if (!merge_in_block<NHWC>(values, columns, [](int, const R<S>&) {})) return;  // uniform
    __syncthreads();
    const Slots<NHWC> at(columns);
    const R<S>* slots = reinterpret_cast<R<S>*>(slots_of_block<S, W>());
    const int own = NHWC ? int(threadIdx.x) % columns : int(threadIdx.x) / columns;
    GPU_UNROLL
    for (int w = 0; w < W; ++w) values[w] = slots[at.first(own + w * at.channels)];
}

template <class T>
struct Tensors {
    using S = typename ArithmeticOf<T>::type;
    int64_t n, c, p, rows, numbers;
    const T *x, *dy;
    T *y, *dx;
    const S *noise, *strength, *bias, *style_scale, *style_bias;
    S *statistics, *dstyle_scale, *dstyle_bias;
    S gain, gain_below, gain_after, gain_below_after, eps;  // activations before and after the norm
    bool noise_per_sample, strength_per_channel, beyond_style;

    explicit Tensors(const NormCall& call)
        : n(call.n),
          c(call.c),
          p(call.p),
          rows(call.rows()),
          numbers(call.count()),
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
          dstyle_scale((S*)call.dstyle_scale),
          dstyle_bias((S*)call.dstyle_bias),
          gain(S(call.batch ? 1 : call.gain)),
          gain_below(S(call.batch ? 1 : call.gain * call.slope)),
          gain_after(S(call.gain)),
          gain_below_after(S(call.gain * call.slope)),
          eps(S(call.eps)),
          noise_per_sample(call.noise_per_sample),
          strength_per_channel(call.strength_per_channel),
          beyond_style(call.dx || call.dbias || call.dstrength) {}
};

// The work of a thread on a piece: W channels of a sample, and every `stride`-th position, V elements at a time. In
// shared memory each thread reads only its own values, so that no barrier is needed.
template <class T, int V, bool NHWC, bool BATCH>
struct Part {
    using S = typename Tensors<T>::S;
    using Vector = gpu::Vec<T, V>;
    static constexpr int W = NHWC ? V : 1;
    static constexpr int NOISES = NHWC ? 1 : V;  // numbers of noise at V elements
    const Tensors<T>& t;
    int64_t sample, channel, row;  // row: index of the first channel in [N, C], or in [C] of a batch
    int sums;                      // row of the piece in tables of sums, [N, per_sample]
    int64_t base;                  // index of the element at which the piece starts
    const S* noise;                // there; null for none
    int first, end, stride;        // positions in the piece: 32 bits take fewer registers
    bool live, leads;              // leads: this thread writes the results of its channels
    S strength[W], bias[W];

    FASTGAN_INLINE Part(const Tensors<T>& tensors, const Split& plan, int64_t unit, int64_t segment) : t(tensors) {
        const int lane = int(threadIdx.x) % plan.columns, row_of_block = int(threadIdx.x) / plan.columns;
        if constexpr (NHWC) {
            sample = unit / plan.tiles;
            channel = (unit % plan.tiles * plan.columns + lane) * V;
            live = channel < t.c;
            first = row_of_block, stride = plan.rows;
            leads = live && row_of_block == 0;
            row = sample * t.c + channel;
            base = sample * t.p * t.c + channel;
        } else {
            row = unit * plan.rows + row_of_block;
            live = row < t.rows;
            sample = BATCH ? segment / plan.per_sample : row / t.c, channel = BATCH ? row : row % t.c;
            if (BATCH) segment %= plan.per_sample;
            first = lane * V, stride = plan.columns * V;
            leads = live && lane == 0;
            base = (sample * t.c + channel) * t.p;
        }
        sums = int(sample * plan.per_sample + segment);
        const int64_t start = segment * plan.positions;
        end = int(min(plan.positions, t.p - start));
        base += start * (NHWC ? t.c : 1);
        noise = t.noise ? t.noise + (t.noise_per_sample ? sample * t.p : 0) + start : nullptr;
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            strength[w] = live && t.strength ? t.strength[t.strength_per_channel ? channel + w : 0] : S(1);
            bias[w] = live && t.bias ? t.bias[channel + w] : S(0);
        }
    }

    FASTGAN_INLINE int64_t index(int position) const { return base + position * (NHWC ? t.c : 1); }

    FASTGAN_INLINE void read_noise(int position, S (&numbers)[NOISES]) const {
        load_noise(noise ? noise + position : nullptr, numbers);
    }

    // The input of the norm, z, for the V elements of x at a position.
    FASTGAN_INLINE void activate(const Vector& x, const S (&noise)[NOISES], Activated<S> (&u)[V]) const {
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            const int w = NHWC ? v : 0;
            u[v] =
                activated<false>(gpu::to<S>(x.v[v]), strength[w], noise[NHWC ? 0 : v], bias[w], t.gain, t.gain_below);
        }
    }

    FASTGAN_INLINE S scale(int w) const { return t.style_scale ? t.style_scale[row + w] : S(1); }
    FASTGAN_INLINE S shift(int w) const { return t.style_bias ? t.style_bias[row + w] : S(0); }

    // Gradient of the norm's output, given dy.
    FASTGAN_INLINE S through_activation(S dy, S z, S mean, S factor, S shift) const {
        if constexpr (!BATCH) return dy;
        return dy * piecewise_linear(normalised(z, mean, factor, shift), t.gain_after, t.gain_below_after).slope;
    }

    // Calls f(position, values, noise) for the thread's positions from `begin` to `stop`, with the values of x or of x
    // and dy there. Loads those of AHEAD positions before it uses the first.
    template <int AHEAD, gpu::Access A, int TENSORS, class F>
    FASTGAN_INLINE void walk(const T* const (&from)[TENSORS], int begin, int stop, const F& f) const {
        for (int position = begin; position < stop; position += AHEAD * stride) {
            Vector values[AHEAD][TENSORS];
            S noise[AHEAD][NOISES];
            GPU_UNROLL
            for (int a = 0; a < AHEAD; ++a) {
                const int here = position + a * stride;
                GPU_UNROLL
                for (int i = 0; i < TENSORS; ++i) {
                    values[a][i] = gpu::load_or_zeros<V, A>(here < stop, from[i] + index(here));
                }
                if (here < stop) read_noise(here, noise[a]);
            }
            GPU_UNROLL
            for (int a = 0; a < AHEAD; ++a) {
                if (position + a * stride < stop) f(position + a * stride, values[a], noise[a]);
            }
        }
    }

    // The same for all of the thread's positions, with the values in shared memory, [TENSORS, steps].
    template <int TENSORS, class F>
    FASTGAN_INLINE void walk_on_chip(const Vector* cached, int64_t steps, const F& f) const {
        int64_t at = threadIdx.x;
        for (int position = first; position < end; position += stride, at += BLOCK) {
            Vector values[TENSORS];
            S noise[NOISES];
            GPU_UNROLL
            for (int i = 0; i < TENSORS; ++i) values[i] = cached[at + i * steps * BLOCK];
            read_noise(position, noise);
            f(position, values, noise);
        }
    }

    // Writes y. walk(f) visits the positions.
    template <gpu::Access A, class Walk>
    FASTGAN_INLINE void normalise(const S (&mean)[W], const S (&inverse)[W], const Walk& walk) const {
        S factor[W], shifts[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) factor[w] = scale(w) * inverse[w], shifts[w] = shift(w);
        walk([&](int position, const Vector(&values)[1], const S(&noise)[NOISES]) {
            Activated<S> u[V];
            Vector out;
            activate(values[0], noise, u);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = NHWC ? v : 0;
                S value = normalised(u[v].z, mean[w], factor[w], shifts[w]);
                if constexpr (BATCH) value = piecewise_linear(value, t.gain_after, t.gain_below_after).z;
                out.v[v] = gpu::from<T>(value);
            }
            gpu::store<A>(t.y + index(position), out);
        });
    }

    // Adds a position to the sums of its channels.
    FASTGAN_INLINE void add(const Vector (&values)[2], const S (&noise)[NOISES], const S (&mean)[W],
                            const S (&factor)[W], const S (&shifts)[W], Triple<S> (&sums)[W]) const {
        Activated<S> u[V];
        activate(values[0], noise, u);
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            const int w = NHWC ? v : 0;
            const S dv = through_activation(gpu::to<S>(values[1].v[v]), u[v].z, mean[w], factor[w], shifts[w]);
            const S distance = u[v].z - mean[w];
            sums[w].a += dv;
            sums[w].b += dv * distance;
            sums[w].c += distance;
        }
    }

    // Writes dx, and returns the sums of dx and of dx * noise in `total`. `sums` are the sums about the mean, walk(f)
    // visits the positions.
    template <gpu::Access A, class Walk>
    FASTGAN_INLINE void gradients(const S (&mean)[W], const S (&inverse)[W], const Triple<S> (&sums)[W],
                                  const Walk& walk, Pair<S> (&total)[W]) const {
        S factor[W], shifts[W], grad_mean[W], grad_slope[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            factor[w] = scale(w) * inverse[w], shifts[w] = BATCH ? shift(w) : S(0);
            grad_slope[w] = sums[w].b / S(t.numbers) * inverse[w] * inverse[w];
            grad_mean[w] = sums[w].a / S(t.numbers) - sums[w].c * grad_slope[w];
        }
        walk([&](int position, const Vector(&values)[2], const S(&noise)[NOISES]) {
            Activated<S> u[V];
            Vector out;
            activate(values[0], noise, u);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = NHWC ? v : 0;
                const S dv = through_activation(gpu::to<S>(values[1].v[v]), u[v].z, mean[w], factor[w], shifts[w]);
                const S du = u[v].slope * input_gradient(dv, u[v].z, mean[w], factor[w], grad_mean[w], grad_slope[w]);
                total[w].a += du;
                total[w].b += du * noise[NHWC ? 0 : v];
                out.v[v] = gpu::from<T>(du);
            }
            if (t.dx) gpu::store<A>(t.dx + index(position), out);
        });
    }
};

// Adds `numbers` elements to a thread's moments. `distances` is the sum of their distances from `shift`, the mean so
// far (at first any number near them), and `square_sum` that of the squared distances. `inverse_count` is 1 / (number
// of elements with these).
template <class S>
FASTGAN_INLINE void add_moments(Moments<S>& m, S& shift, S distances, S square_sum, S numbers, S inverse_count) {
    m.count += numbers;
    const S move = distances * inverse_count, squares = m.squares + (square_sum - distances * move);
    m.squares = squares < 0 ? S(0) : squares;  // keeps NaN
    m.mean = shift = shift + move;
}

// Gradients of the style for one row, from its sums about the mean.
template <class T, class S>
FASTGAN_INLINE void style_gradients(const Tensors<T>& t, int64_t row, const Triple<S>& sums, S inverse) {
    if (t.dstyle_bias) t.dstyle_bias[row] = sums.a;
    if (t.dstyle_scale) t.dstyle_scale[row] = sums.b * inverse;
}

// Writes the sums of a block for the gradients of bias and strength: [N, per_sample, 2, C], and [pieces] for a
// scalar strength, which is a sum over channels as well.
template <bool NHWC, class Mine, class S>
FASTGAN_INLINE void write_sums(const Mine& mine, const Pair<S> (&sums)[Mine::W], int columns, int64_t piece, S* partial,
                               S* strength) {
    constexpr int W = Mine::W;
    if (strength) {  // uniform
        S total = 0;
        GPU_UNROLL
        for (int w = 0; w < W; ++w) total += sums[w].b;
        total = gpu::block_sum(total);
        if (threadIdx.x == 0) strength[piece] = total;
    }
    S values[2 * W];
    GPU_UNROLL
    for (int w = 0; w < W; ++w) values[w] = sums[w].a, values[W + w] = sums[w].b;
    if constexpr (NHWC) {
        const int64_t first = mine.channel / (columns * W) * columns * W;  // of the tile
        write_sums_of_columns<2, W>(values, columns, mine.t.c - first, slots_of_block<S, W>(),
                                    partial + 2 * mine.t.c * mine.sums + first, mine.t.c);
    } else {
        sum_rows(values, columns);
        if (!mine.leads) return;
        S* to = partial + 2 * mine.t.c * mine.sums + mine.channel;
        to[0] = values[0], to[mine.t.c] = values[1];
    }
}

// Moments of a thread's positions, in runs of at most RUN steps; ONE_RUN: there are no more. walk(start, stop, f)
// visits the positions of a run.
template <bool ONE_RUN, class Mine, class S, class Walk>
FASTGAN_INLINE void add_positions(const Mine& mine, Moments<S> (&moments)[Mine::W], const Walk& walk) {
    constexpr int W = Mine::W, V = Mine::NOISES * W;
    S shift[W] = {};
    int position = mine.first;
    while (position < mine.end) {
        const int stop = ONE_RUN ? mine.end : int(min(position + RUN * mine.stride, mine.end));
        S distances[W] = {}, squares[W] = {};
        int added = 0;
        walk(position, stop, [&](int at, const typename Mine::Vector(&values)[1], const S(&noise)[Mine::NOISES]) {
            Activated<S> u[V];
            mine.activate(values[0], noise, u);
            if (at == mine.first) {
                GPU_UNROLL
                for (int w = 0; w < W; ++w) shift[w] = u[w].z;
            }
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = W == 1 ? 0 : v;
                const S distance = u[v].z - shift[w];
                distances[w] += distance;
                squares[w] += distance * distance;
            }
            ++added;
        });
        const S numbers = S(added * (V / W)), inverse_count = S(1) / (moments[0].count + numbers);
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            add_moments(moments[w], shift[w], distances[w], squares[w], numbers, inverse_count);
        }
        if (ONE_RUN) return;
        position = stop;
    }
}

// On chip -------------------------------------------------------------------------------------------------------------

template <class T, int V, bool NHWC>
__global__ void forward_on_chip(Tensors<T> t, Split plan) {
    using Mine = Part<T, V, NHWC, false>;
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    DYN_SHARED(typename Mine::Vector, cached);
    const Mine mine(t, plan, blockIdx.x, 0);
    Moments<S> moments[W] = {};
    if (mine.live) {
        int step = 0;
        add_positions<false>(mine, moments, [&](int begin, int stop, const auto& add) {
            mine.template walk<1, gpu::Access::any>({t.x}, begin, stop,
                                                    [&](int at, const auto& values, const auto& noise) {
                                                        cached[int64_t(step++) * BLOCK + threadIdx.x] = values[0];
                                                        add(at, values, noise);
                                                    });
        });
    }
    merge_for_all<NHWC>(moments, plan.columns);
    if (!mine.live) return;
    S mean[W], inverse[W];
    GPU_UNROLL
    for (int w = 0; w < W; ++w) {
        mean[w] = moments[w].mean, inverse[w] = inverse_root(moments[w].squares, S(t.p), t.eps);
        if (mine.leads) t.statistics[mine.row + w] = mean[w], t.statistics[t.rows + mine.row + w] = inverse[w];
    }
    mine.template normalise<gpu::Access::any>(mean, inverse,
                                              [&](const auto& f) { mine.template walk_on_chip<1>(cached, 0, f); });
}

// Writes the sums for dbias and dstrength of each unit, [N, 2, C].
template <class T, int V, bool NHWC>
__global__ void backward_on_chip(Tensors<T> t, Split plan, int64_t steps, typename Tensors<T>::S* partial,
                                 typename Tensors<T>::S* strength) {
    using Mine = Part<T, V, NHWC, false>;
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    DYN_SHARED(typename Mine::Vector, cached);  // x, then dy
    const Mine mine(t, plan, blockIdx.x, 0);
    S mean[W] = {}, inverse[W] = {};
    Triple<S> sums[W] = {};
    if (mine.live) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
        }
        int64_t slot = threadIdx.x;
        mine.template walk<1, gpu::Access::any>({t.x, t.dy}, mine.first, mine.end,
                                                [&](int, const auto& values, const auto& noise) {
                                                    cached[slot] = values[0], cached[slot + steps * BLOCK] = values[1];
                                                    slot += BLOCK;
                                                    mine.add(values, noise, mean, mean, mean, sums);
                                                });
    }
    merge_for_all<NHWC>(sums, plan.columns);
    GPU_UNROLL
    for (int w = 0; w < W; ++w) {
        sums[w] = sums[w].about_the_mean(S(t.numbers));
        if (mine.leads) style_gradients(t, mine.row + w, sums[w], inverse[w]);
    }
    if (!t.beyond_style) return;  // uniform
    Pair<S> total[W] = {};
    if (mine.live) {
        mine.template gradients<gpu::Access::any>(
            mean, inverse, sums, [&](const auto& f) { mine.template walk_on_chip<2>(cached, steps, f); }, total);
    }
    __syncthreads();  // all threads have read the results in the slots
    write_sums<NHWC>(mine, total, plan.columns, blockIdx.x, partial, strength);
}

// In turns ------------------------------------------------------------------------------------------------------------

// Merges the values of all pieces of a unit, in one block. piece(k, at) gives the k-th; its numbers are those of
// partial[at] and every `channels`-th that follows. Calls write(row, value) for each row of the unit.
template <int NUMBERS, bool NHWC, class R, class Mine, class Piece, class F>
FASTGAN_INLINE void merge_unit(const Mine& mine, const Split& plan, const Turns& turns, int64_t unit,
                               const Piece& piece, const F& write) {
    const int channels = NHWC ? plan.columns * Mine::W : plan.rows, slices = BLOCK / channels;
    const int channel = int(threadIdx.x) % channels;
    R total[1] = {};
    for (int64_t k = int(threadIdx.x) / channels; k < turns.per_unit; k += slices) {
        total[0] = merged(total[0], piece(k, (unit * turns.per_unit + k) * NUMBERS * channels + channel));
    }
    merge_in_block<true>(total, channels, [&](int i, const R& value) {
        if constexpr (NHWC) {
            const int64_t here = (unit % plan.tiles * plan.columns + i % plan.columns) * Mine::W + i / plan.columns;
            if (here < mine.t.c) write(mine.sample * mine.t.c + here, value);
        } else {
            const int64_t here = unit * plan.rows + i;
            if (here < mine.t.rows) write(here, value);
        }
    });
}

// Whether this block is the last of a unit to arrive. All threads must call.
FASTGAN_INLINE bool arrives_last(const Turns& turns, int64_t unit) {
    SHARED(bool, last, [1]);
    const unsigned before = gpu::arrive(&turns.arrived[unit]);
    if (threadIdx.x == 0) last[0] = before == turns.per_unit - 1;
    __syncthreads();
    __threadfence();
    return last[0];
}

// `partial` are the moments of pieces, [pieces, 2, channels of a unit].
template <class T, int V, bool NHWC, bool BATCH>
__global__ void forward(Tensors<T> t, Split plan, Turns turns, typename Tensors<T>::S* partial) {
    using Mine = Part<T, V, NHWC, BATCH>;
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    const Turns::Turn turn = turns.next();
    const int64_t unit = turn.piece / turns.per_unit;
    const Mine mine(t, plan, unit, turn.piece % turns.per_unit);
    if (turn.applies) {  // uniform
        gpu::wait_for(&turns.arrived[unit], unsigned(turns.per_unit + 1));
        if (!mine.live) return;
        S mean[W], inverse[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
        }
        mine.template normalise<gpu::Access::last>(mean, inverse, [&](const auto& f) {
            mine.template walk<2, gpu::Access::last>({t.x}, mine.first, mine.end, f);
        });
        return;
    }
    Moments<S> moments[W] = {};
    if (mine.live) {
        add_positions<true>(mine, moments, [&](int begin, int stop, const auto& add) {
            mine.template walk<2, gpu::Access::any>({t.x}, begin, stop, add);
        });
    }
    const int channels = NHWC ? plan.columns * W : plan.rows;
    merge_in_block<NHWC>(moments, plan.columns, [&](int i, const Moments<S>& value) {
        S* to = partial + turn.piece * 2 * channels + i;
        to[0] = value.mean, to[channels] = value.squares;
    });
    if (!arrives_last(turns, unit)) return;  // uniform
    merge_unit<2, NHWC, Moments<S>>(
        mine, plan, turns, unit,
        [&](int64_t k, int64_t at) {
            const int64_t remaining = t.p - k % plan.per_sample * plan.positions;
            return Moments<S>{partial[at], partial[at + channels], S(min(remaining, plan.positions))};
        },
        [&](int64_t row, const Moments<S>& value) {
            t.statistics[row] = value.mean;
            t.statistics[t.rows + row] = inverse_root(value.squares, S(t.numbers), t.eps);
            if (BATCH) t.statistics[2 * t.rows + row] = value.squares / S(t.numbers - 1);
        });
    gpu::arrive(&turns.arrived[unit]);
}

// `partial` are the sums of dy, of dy * (z - mean) and of z - mean of pieces, [pieces, 3, channels of a unit]; `totals`
// those of units about the mean, [3, N, C] or [3, C]. Writes the sums for dbias and dstrength of each piece, [N,
// per_sample, 2, C].
template <class T, int V, bool NHWC, bool BATCH>
__global__ void __launch_bounds__(BLOCK, V > 1 && (!NHWC || V * sizeof(T) == 8) ? 3 : 1)
    backward(Tensors<T> t, Split plan, Turns turns, typename Tensors<T>::S* partial, typename Tensors<T>::S* totals,
             typename Tensors<T>::S* sums_of_pieces, typename Tensors<T>::S* strength) {
    using Mine = Part<T, V, NHWC, BATCH>;
    using S = typename Mine::S;
    constexpr int W = Mine::W, AHEAD = NHWC ? 3 : 2;  // more of 16 bytes would leave too few registers
    const Turns::Turn turn = turns.next();
    const int64_t unit = turn.piece / turns.per_unit;
    const Mine mine(t, plan, unit, turn.piece % turns.per_unit);
    S mean[W] = {}, inverse[W] = {};
    if (mine.live) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
        }
    }
    Triple<S> sums[W] = {};
    if (turn.applies) {  // uniform
        gpu::wait_for(&turns.arrived[unit], unsigned(turns.per_unit + 1));
        Pair<S> total[W] = {};
        if (mine.live) {
            GPU_UNROLL
            for (int w = 0; w < W; ++w) {
                const S* from = totals + mine.row + w;
                sums[w] = {from[0], from[t.rows], from[2 * t.rows]};
            }
            mine.template gradients<gpu::Access::last>(
                mean, inverse, sums,
                [&](const auto& f) {
                    mine.template walk<AHEAD, gpu::Access::last>({t.x, t.dy}, mine.first, mine.end, f);
                },
                total);
        }
        if constexpr (!BATCH) {
            write_sums<NHWC>(mine, total, plan.columns, turn.piece, sums_of_pieces, strength);
        }
        return;
    }
    if (mine.live) {
        S factor[W], shifts[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            factor[w] = BATCH ? mine.scale(w) * inverse[w] : S(0), shifts[w] = BATCH ? mine.shift(w) : S(0);
        }
        mine.template walk<2, gpu::Access::any>(
            {t.x, t.dy}, mine.first, mine.end,
            [&](int, const auto& values, const auto& noise) { mine.add(values, noise, mean, factor, shifts, sums); });
    }
    const int channels = NHWC ? plan.columns * W : plan.rows;
    merge_in_block<NHWC>(sums, plan.columns, [&](int i, const Triple<S>& value) {
        S* to = partial + turn.piece * 3 * channels + i;
        to[0] = value.a, to[channels] = value.b, to[2 * channels] = value.c;
    });
    if (!arrives_last(turns, unit)) return;  // uniform
    merge_unit<3, NHWC, Triple<S>>(
        mine, plan, turns, unit,
        [&](int64_t, int64_t at) { return Triple<S>{partial[at], partial[at + channels], partial[at + 2 * channels]}; },
        [&](int64_t row, const Triple<S>& value) {
            const Triple<S> sums = value.about_the_mean(S(t.numbers));
            totals[row] = sums.a, totals[t.rows + row] = sums.b, totals[2 * t.rows + row] = sums.c;
            style_gradients(t, row, sums, t.statistics[t.rows + row]);
        });
    gpu::arrive(&turns.arrived[unit]);
}

__global__ void clear(unsigned* counters, int64_t count) {
    const int64_t i = int64_t(blockIdx.x) * BLOCK + threadIdx.x;
    if (i < count) counters[i] = 0;
}

// Launching -----------------------------------------------------------------------------------------------------------

// Parts of the workspace, in this order.
struct Workspace {
    int64_t counters;                         // of Turns, 4 bytes each, a multiple of 4
    int64_t totals, partial, sums, strength;  // numbers

    Workspace(const NormCall& call, const Plan& plan) {
        const int64_t units = plan.units(call), pieces = units * plan.per_unit(call);
        const bool forward = call.y != nullptr;
        counters = plan.resident ? 0 : round_up(units + 1, 4);
        totals = plan.resident || forward ? 0 : 3 * call.rows();
        partial = plan.resident ? 0 : (forward ? 2 : 3) * pieces * plan.channels(call);
        sums = forward ? 0 : 2 * call.n * plan.per_sample * call.c;
        strength = forward ? 0 : pieces;
    }
    int64_t bytes(const NormCall& call) const {
        return 4 * counters + (totals + partial + sums + strength) * arithmetic_bytes(call.dtype);
    }
};

// The order of pieces, for `tensors` activations that are read twice. What the L2 must hold between the two has to fit
// in half of it; otherwise all moments come first. `applied`: not for the moments alone.
Turns turns_of(const NormCall& call, const Plan& plan, int tensors, bool applied) {
    const int64_t per_unit = plan.per_unit(call), pieces = plan.units(call) * per_unit;
    const int64_t bytes = plan.positions * plan.channels(call) * bytes_of(call.dtype) * tensors;  // of a piece
    const int64_t wanted = ceil_div(LEAD_BYTES * gpu::multiprocessors(), bytes);
    const int64_t lead = min(min(pieces, per_unit + wanted), gpu::l2_bytes() / 2 / bytes);
    const bool fits = lead >= min(pieces, per_unit + wanted / 2);
    unsigned* counters = (unsigned*)call.workspace;
    return {pieces, per_unit, fits && applied ? lead : pieces, counters, counters + 1, !fits};
}

// Calls launch(blocks) for each launch, after one that clears the counters. `applied` as above.
template <class F>
void launch_in_turns(const Turns& turns, bool applied, void* stream, const F& launch) {
    const int64_t count = turns.pieces / turns.per_unit + 1;
    gpu::Launch(unsigned(ceil_div(count, BLOCK)), BLOCK, 0, stream)(clear, turns.tickets, count);
    launch(unsigned(applied && !turns.reversed ? 2 * turns.pieces : turns.pieces));
    if (applied && turns.reversed) launch(unsigned(turns.pieces));
}

template <class T, int V, bool NHWC, bool BATCH>
void run_forward(const NormCall& call, void* stream) {
    using S = typename Tensors<T>::S;
    const Plan plan = plan_of(call, V, 1);
    const Tensors<T> t(call);
    if constexpr (!BATCH) {
        if (plan.resident) {
            const unsigned blocks = unsigned(plan.units(call));
            gpu::Launch(blocks, BLOCK, plan.resident, stream)(forward_on_chip<T, V, NHWC>, t, plan);
            return;
        }
    }
    const Turns turns = turns_of(call, plan, 1, true);
    S* partial = (S*)(turns.tickets + Workspace(call, plan).counters);
    launch_in_turns(turns, true, stream, [&](unsigned blocks) {
        gpu::Launch(blocks, BLOCK, 0, stream)(forward<T, V, NHWC, BATCH>, t, plan, turns, partial);
    });
}

template <class T, int V, bool NHWC, bool BATCH>
void run_backward(const NormCall& call, void* stream) {
    using S = typename Tensors<T>::S;
    const Plan plan = backward_plan(call, V);
    const Tensors<T> t(call);
    const Workspace parts(call, plan);
    S *totals = (S*)((unsigned*)call.workspace + parts.counters), *partial = totals + parts.totals;
    S *sums = partial + parts.partial, *strength = nullptr;
    if (call.dstrength && !call.strength_per_channel) strength = sums + parts.sums;
    if (plan.resident) {
        if constexpr (!BATCH) {
            const unsigned blocks = unsigned(plan.units(call));
            gpu::Launch(blocks, BLOCK, plan.resident, stream)(backward_on_chip<T, V, NHWC>, t, plan,
                                                              steps_of(call, plan), sums, strength);
        }
    } else {
        const Turns turns = turns_of(call, plan, 2, t.beyond_style);
        launch_in_turns(turns, t.beyond_style, stream, [&](unsigned blocks) {
            gpu::Launch(blocks, BLOCK, 0, stream)(backward<T, backward_vector(V, NHWC), NHWC, BATCH>, t, plan, turns,
                                                  partial, totals, sums, strength);
        });
    }
    const int64_t pieces = call.n * plan.per_sample;
    PieceSums<S> list;
    list.add(sums, call.dbias, 1, pieces, 2 * call.c, call.c);
    if (strength) {
        list.add(strength, call.dstrength, 1, parts.strength, 1, 1);
    } else {
        list.add(sums + call.c, call.dstrength, 1, pieces, 2 * call.c, call.c);
    }
    list.launch(stream);
}

template <class T, int V, bool NHWC, bool BATCH>
void run(const NormCall& call, void* stream) {
    call.y ? run_forward<T, V, NHWC, BATCH>(call, stream) : run_backward<T, V, NHWC, BATCH>(call, stream);
}

template <class T, int V>
void for_layout(const NormCall& call, void* stream) {
    if (call.batch) {
        call.channels_last ? run<T, V, true, true>(call, stream) : run<T, V, false, true>(call, stream);
    } else {
        call.channels_last ? run<T, V, true, false>(call, stream) : run<T, V, false, false>(call, stream);
    }
}

void run(const NormCall& call, void* stream) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        if constexpr (sizeof(T) < sizeof(double)) {  // double, for gradcheck, has one instantiation
            constexpr int V = 16 / sizeof(T);
            const bool fits = (call.channels_last ? call.c : call.p) % V == 0;
            if (fits && aligned(call.x, call.y, call.dy, call.dx, call.noise)) return for_layout<T, V>(call, stream);
        }
        for_layout<T, 1>(call, stream);
    });
}

}  // namespace

void instance_norm_forward(const NormCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    run(call, stream);
}

void instance_norm_backward(const NormCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    run(call, stream);
}

// Bytes of the workspace, enough for any vector size.
int64_t instance_norm_workspace(const NormCall& call) {
    int64_t bytes = 0;
    for (int vector : {1, vector_size(call.dtype)}) {
        bytes =
            max(bytes, Workspace(call, call.y ? plan_of(call, vector, 1) : backward_plan(call, vector)).bytes(call));
    }
    return bytes;
}

}  // namespace fastgan::cuda
