// instance_norm and batch_norm_act on the GPU, with 16-byte accesses where the sizes allow.
//
// A block takes a tile of channels (NHWC) or a few channels (NCHW) of a sample. If all their positions fit into shared
// memory, and there are enough blocks to keep the GPU busy, one kernel reads x (and dy) once: RESIDENT. Otherwise the
// positions are cut into pieces: a first kernel computes the moments (or sums) of each piece, a second merges them, and
// a third reads the activations again. batch_norm_act always takes this way; its second kernel merges the pieces of all
// samples. All sums are taken in a fixed order, without atomics.
//
// The variance is taken about the running mean of each thread, and merged with that of others about the mean of both
// (Chan, Golub and LeVeque 1983): never as a difference of large numbers.
#include <algorithm>

#include "noise_bias_act/gpu.h"

#include "norm/arithmetic.h"

namespace fastgan::cuda {
namespace {

using namespace gpu_values;

constexpr int MIN_BLOCKS = 264;                         // 2 for each multiprocessor of an H100
constexpr int MAX_PIECES = 64;                          // maximum number of pieces that one thread merges
constexpr int RUN = 16;                                 // loop steps between two corrections of a thread's mean
constexpr std::size_t MAX_RESIDENT_BYTES = 88 * 1024;   // two such blocks fit on a multiprocessor of an H100
constexpr std::size_t STATIC_SHARED_BYTES = 25 * 1024;  // upper bound of a kernel's static shared memory

// Plan of a launch, on the host. Kernels take the Split alone: the members of a base class cost them registers.
struct Plan : Split {
    std::size_t resident;  // bytes of shared memory that hold the activations; 0 if they are read twice
};

// The plan that keeps `tensors` activations in shared memory, with `columns` threads along the contiguous dimension.
Plan resident_plan(const NormCall& call, int vector, int columns, int tensors) {
    Plan plan{};
    plan.vector = vector, plan.columns = columns, plan.rows = BLOCK / columns;
    plan.per_sample = 1, plan.positions = call.p;
    const int64_t row = int64_t(columns) * vector;
    plan.tiles = call.channels_last ? ceil_div(call.c, row) : ceil_div(call.n * call.c, plan.rows);
    const int64_t steps = ceil_div(call.p, call.channels_last ? plan.rows : row);
    plan.resident = std::size_t(steps * BLOCK * vector * bytes_of(call.dtype) * tensors);
    return plan;
}

Plan split_plan(const NormCall& call, int vector) {
    return {split(call.n, call.c, call.p, call.channels_last, vector, call.batch ? MAX_BLOCKS / 2 : MAX_BLOCKS,
                  call.batch ? INT64_MAX : MAX_PIECES),
            0};
}

// `tensors` is the number of activations that are read twice: x forward, x and dy backward.
Plan plan_of(const NormCall& call, int vector, int tensors) {
    if (call.batch) return split_plan(call, vector);
    const std::size_t limit = std::min(gpu::max_shared_bytes() - STATIC_SHARED_BYTES, MAX_RESIDENT_BYTES);
    const int64_t fast = (call.channels_last ? call.c : call.p) / vector;
    // In NHWC, the widest tile that leaves enough blocks. It has at least 32 bytes, the size of a memory sector.
    const int max_columns = power_of_two_from(fast, call.channels_last ? 32 : BLOCK), min_columns = vector > 1 ? 2 : 8;
    for (int columns = max_columns;; columns /= 2) {
        const Plan plan = resident_plan(call, vector, columns, tensors);
        const int64_t blocks = call.channels_last ? call.n * plan.tiles : plan.tiles;
        if (plan.resident <= limit && blocks >= MIN_BLOCKS) return plan;
        const bool last = !call.channels_last || columns <= min_columns;
        // With fewer blocks the pieces would be small: one kernel is faster than three.
        if (last && plan.resident <= limit && (blocks >= MIN_BLOCKS / 4 || plan.resident <= 16 * 1024)) return plan;
        if (last) return split_plan(call, vector);
    }
}

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

// Shared memory that the sums of a kernel use one after the other, for threads with W channels.
template <class S, int W>
FASTGAN_INLINE S* slots_of_block() {
    constexpr int merging = W * BLOCK * int(sizeof(Moments<S>) / sizeof(S)), writing = COLUMN_SLOTS<2, W>;
    SHARED(S, slots, [merging > writing ? merging : writing]);
    return &slots[0];
}

// Merges the values of all threads of a block with the same channel; each thread gets the result. May be called once in
// a kernel, before other uses of the slots.
template <bool NHWC, class S, template <class> class R, int W>
FASTGAN_INLINE void merge_in_block(R<S> (&values)[W], int columns) {
    const int thread = int(threadIdx.x);
    // Bits of the thread index that differ among threads of one channel: the upper ones (NHWC) or the lower ones
    // (NCHW).
    const int first = NHWC ? columns : 1, past = NHWC || columns > gpu::warp_size ? gpu::warp_size : columns;
    for (int distance = first; distance < past; distance *= 2) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            const R<S> other = shuffle_xor(values[w], distance);
            values[w] = thread & distance ? merged(other, values[w]) : merged(values[w], other);
        }
    }
    // The values of the warps follow: `count` for each channel, `step` threads apart.
    const int step = NHWC && columns > gpu::warp_size ? columns : gpu::warp_size;
    const int count = (NHWC ? BLOCK : columns) / step;
    if (count <= 1) return;  // uniform
    R<S>* slots = reinterpret_cast<R<S>*>(slots_of_block<S, W>());
    GPU_UNROLL
    for (int w = 0; w < W; ++w) slots[w * BLOCK + thread] = values[w];
    __syncthreads();
    const int channels = NHWC ? columns : BLOCK / columns, apart = NHWC ? 1 : columns;
    for (int i = thread; i < W * channels; i += BLOCK) {
        R<S>* from = slots + i / channels * BLOCK + i % channels * apart;
        R<S> total = from[0];
        for (int k = 1; k < count; ++k) total = merged(total, from[k * step]);
        from[0] = total;
    }
    __syncthreads();
    const int from = NHWC ? thread % columns : thread / columns * columns;
    GPU_UNROLL
    for (int w = 0; w < W; ++w) values[w] = slots[w * BLOCK + from];
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

// The work of a thread: W channels of a sample, and every `stride`-th position, V elements at a time. In shared memory
// each thread reads only its own values, so that no barrier is needed.
template <class T, int V, bool NHWC, bool BATCH>
struct Part {
    using S = typename Tensors<T>::S;
    using Vector = gpu::Vec<T, V>;
    static constexpr int W = NHWC ? V : 1;
    const Tensors<T>& t;
    int64_t piece, sample, channel, row;  // row: index of the first channel in [N, C], or in [C] of a batch
    int64_t first, end, stride, base;     // positions; base: index of the element at position 0
    bool live, leads;                     // leads: this thread writes the results of its channels
    S strength[W], bias[W];

    FASTGAN_INLINE Part(const Tensors<T>& tensors, const Split& plan) : t(tensors) {
        const int lane = int(threadIdx.x) % plan.columns, row_of_block = int(threadIdx.x) / plan.columns;
        int64_t segment;
        if constexpr (NHWC) {
            piece = blockIdx.x, sample = piece / plan.per_sample, segment = piece % plan.per_sample;
            channel = (int64_t(blockIdx.y) * plan.columns + lane) * V;
            live = channel < t.c;
            first = row_of_block, stride = plan.rows;
            leads = live && row_of_block == 0;
            row = sample * t.c + channel;
            base = sample * t.p * t.c + channel;
        } else {
            const int64_t plane = int64_t(blockIdx.x) * plan.rows + row_of_block;
            segment = blockIdx.y;
            live = plane < t.n * t.c;
            sample = plane / t.c, channel = plane % t.c, piece = sample * plan.per_sample + segment;
            row = BATCH ? channel : plane;
            first = int64_t(lane) * V, stride = int64_t(plan.columns) * V;
            leads = live && lane == 0;
            base = plane * t.p;
        }
        first += segment * plan.positions;
        end = min((segment + 1) * plan.positions, t.p);
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            strength[w] = live && t.strength ? t.strength[t.strength_per_channel ? channel + w : 0] : S(1);
            bias[w] = live && t.bias ? t.bias[channel + w] : S(0);
        }
    }

    FASTGAN_INLINE int64_t index(int64_t position) const { return base + position * (NHWC ? t.c : 1); }

    FASTGAN_INLINE Vector read(const T* from, int64_t position, Vector* cached, int step) const {
        return cached ? cached[int64_t(step) * BLOCK + threadIdx.x] : gpu::load<V>(from + index(position));
    }

    // The input of the norm, z, for the V elements of x at a position, and the noise there.
    FASTGAN_INLINE void activate(const Vector& x, int64_t position, Activated<S> (&u)[V], S (&noise)[V]) const {
        if constexpr (NHWC) {
            const S here = noise_at<S>(t, sample, position, t.p);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) noise[v] = here;
        } else {
            load_noise(t, sample, position, t.p, noise);
        }
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            const int w = NHWC ? v : 0;
            u[v] = activated<false>(gpu::to<S>(x.v[v]), strength[w], noise[v], bias[w], t.gain, t.gain_below);
        }
    }

    FASTGAN_INLINE S scale(int w) const { return t.style_scale ? t.style_scale[row + w] : S(1); }
    FASTGAN_INLINE S shift(int w) const { return t.style_bias ? t.style_bias[row + w] : S(0); }

    // Gradient of the norm's output, given dy.
    FASTGAN_INLINE S through_activation(S dy, S z, S mean, S factor, S shift) const {
        if constexpr (!BATCH) return dy;
        return dy * piecewise_linear(normalised(z, mean, factor, shift), t.gain_after, t.gain_below_after).slope;
    }

    // Writes y. Reads x from shared memory if it is resident, else from memory.
    FASTGAN_INLINE void normalise(const S (&mean)[W], const S (&inverse)[W], Vector* cached) const {
        S factor[W], shifts[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) factor[w] = scale(w) * inverse[w], shifts[w] = shift(w);
        int step = 0;
        for (int64_t position = first; position < end; position += stride, ++step) {
            Activated<S> u[V];
            S noise[V];
            Vector out;
            activate(read(t.x, position, cached, step), position, u, noise);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = NHWC ? v : 0;
                S value = normalised(u[v].z, mean[w], factor[w], shifts[w]);
                if constexpr (BATCH) value = piecewise_linear(value, t.gain_after, t.gain_below_after).z;
                out.v[v] = gpu::from<T>(value);
            }
            gpu::store(t.y + index(position), out);
        }
    }

    // Writes dx, and returns the sums of dx and of dx * noise in `total`. Reads x and dy from shared memory if they are
    // resident, else from memory. `sums` are the sums about the mean.
    FASTGAN_INLINE void gradients(const S (&mean)[W], const S (&inverse)[W], const Triple<S> (&sums)[W],
                                  Vector* cached_x, Vector* cached_dy, Pair<S> (&total)[W]) const {
        S factor[W], shifts[W], grad_mean[W], grad_slope[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            factor[w] = scale(w) * inverse[w], shifts[w] = BATCH ? shift(w) : S(0);
            grad_slope[w] = sums[w].b / S(t.numbers) * inverse[w] * inverse[w];
            grad_mean[w] = sums[w].a / S(t.numbers) - sums[w].c * grad_slope[w];
        }
        int step = 0;
        for (int64_t position = first; position < end; position += stride, ++step) {
            Activated<S> u[V];
            S noise[V];
            activate(read(t.x, position, cached_x, step), position, u, noise);
            const Vector dy = read(t.dy, position, cached_dy, step);
            Vector out;
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = NHWC ? v : 0;
                const S dv = through_activation(gpu::to<S>(dy.v[v]), u[v].z, mean[w], factor[w], shifts[w]);
                const S du = u[v].slope * input_gradient(dv, u[v].z, mean[w], factor[w], grad_mean[w], grad_slope[w]);
                total[w].a += du;
                total[w].b += du * noise[v];
                out.v[v] = gpu::from<T>(du);
            }
            if (t.dx) gpu::store(t.dx + index(position), out);
        }
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

// Forward: the whole pass if x is resident, else the moments of each piece, [pieces, 2, C].
template <class T, int V, bool NHWC, bool RESIDENT>
__global__ void forward(Tensors<T> t, Split plan, typename Tensors<T>::S* partial) {
    using Mine = Part<T, V, NHWC, false>;  // the moments do not depend on BATCH
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    DYN_SHARED(typename Mine::Vector, cached);
    const Mine mine(t, plan);
    Moments<S> moments[W] = {};
    if (mine.live) {
        S shift[W], noise[V];
        Activated<S> u[V] = {};
        if (mine.first < mine.end) mine.activate(gpu::load<V>(t.x + mine.index(mine.first)), mine.first, u, noise);
        GPU_UNROLL
        for (int w = 0; w < W; ++w) shift[w] = u[w].z;
        int step = 0;
        for (int64_t position = mine.first; position < mine.end;) {
            S distances[W] = {}, squares[W] = {};
            int added = 0;
            for (; added < RUN && position < mine.end; ++added, ++step, position += mine.stride) {
                const auto x = gpu::load<V>(t.x + mine.index(position));
                if constexpr (RESIDENT) cached[int64_t(step) * BLOCK + threadIdx.x] = x;
                mine.activate(x, position, u, noise);
                GPU_UNROLL
                for (int v = 0; v < V; ++v) {
                    const int w = NHWC ? v : 0;
                    const S distance = u[v].z - shift[w];
                    distances[w] += distance;
                    squares[w] += distance * distance;
                }
            }
            const S numbers = S(added * (NHWC ? 1 : V)), inverse_count = S(1) / (moments[0].count + numbers);
            GPU_UNROLL
            for (int w = 0; w < W; ++w) {
                add_moments(moments[w], shift[w], distances[w], squares[w], numbers, inverse_count);
            }
        }
    }
    merge_in_block<NHWC>(moments, plan.columns);
    if constexpr (RESIDENT) {
        if (mine.live) {
            S mean[W], inverse[W];
            GPU_UNROLL
            for (int w = 0; w < W; ++w) {
                mean[w] = moments[w].mean, inverse[w] = inverse_root(moments[w].squares, S(t.p), t.eps);
                if (mine.leads) {
                    t.statistics[mine.row + w] = mean[w];
                    t.statistics[t.rows + mine.row + w] = inverse[w];
                }
            }
            mine.normalise(mean, inverse, cached);
        }
    } else if (mine.leads) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            partial[mine.piece * 2 * t.c + mine.channel + w] = moments[w].mean;
            partial[(mine.piece * 2 + 1) * t.c + mine.channel + w] = moments[w].squares;
        }
    }
}

// Partition of the merging of pieces. For each channel, `slices` threads take every slices-th piece; `columns` adjacent
// threads take adjacent channels.
struct Merge {
    int64_t groups, pieces;  // groups with statistics of their own: samples, or the one batch; pieces in a group
    int slices, columns;
    unsigned blocks;

    Merge(const NormCall& call, const Plan& plan)
        : groups(call.batch ? 1 : call.n),
          pieces(call.n * plan.per_sample / groups),
          slices(power_of_two_from(ceil_div(pieces, MAX_PIECES), gpu::warp_size)),
          columns(BLOCK / slices),
          blocks(unsigned(ceil_div(groups * call.c, columns))) {}
};

// The work of a thread that merges pieces.
struct MergePart {
    int64_t row, channel, begin, end, stride;  // row: index in [groups, C]; begin, end, stride: pieces
    bool live, leads;

    FASTGAN_INLINE MergePart(const Merge& merge, int64_t c) {
        const int lane = int(threadIdx.x) % merge.columns, slice = int(threadIdx.x) / merge.columns;
        row = int64_t(blockIdx.x) * merge.columns + lane, channel = row % c;
        live = row < merge.groups * c, leads = live && slice == 0;
        const int64_t first = row / c * merge.pieces;
        begin = first + slice, end = live ? first + merge.pieces : begin, stride = merge.slices;
    }
};

// Statistics from the moments of all pieces, [pieces, 2, C].
template <class T>
__global__ void merge_moments(Tensors<T> t, Merge merge, const typename Tensors<T>::S* partial, int64_t per_sample,
                              int64_t positions, bool variance) {
    using S = typename Tensors<T>::S;
    const MergePart mine(merge, t.c);
    Moments<S> total[1] = {};
    for (int64_t piece = mine.begin; piece < mine.end; piece += mine.stride) {
        const S* from = partial + piece * 2 * t.c + mine.channel;
        const int64_t remaining = t.p - piece % per_sample * positions;
        total[0] = merged(total[0], Moments<S>{from[0], from[t.c], S(min(remaining, positions))});
    }
    merge_in_block<true>(total, merge.columns);
    if (!mine.leads) return;
    t.statistics[mine.row] = total[0].mean;
    t.statistics[t.rows + mine.row] = inverse_root(total[0].squares, S(t.numbers), t.eps);
    if (variance) t.statistics[2 * t.rows + mine.row] = total[0].squares / S(t.numbers - 1);
}

template <class T, int V, bool NHWC, bool BATCH>
__global__ void normalise(Tensors<T> t, Split plan) {
    using Mine = Part<T, V, NHWC, BATCH>;
    using S = typename Mine::S;
    const Mine mine(t, plan);
    if (!mine.live) return;
    S mean[Mine::W], inverse[Mine::W];
    GPU_UNROLL
    for (int w = 0; w < Mine::W; ++w) {
        mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
    }
    mine.normalise(mean, inverse, nullptr);
}

// Gradients of the style for one row, from its sums about the mean.
template <class T, class S>
FASTGAN_INLINE void style_gradients(const Tensors<T>& t, int64_t row, const Triple<S>& sums, S inverse) {
    if (t.dstyle_bias) t.dstyle_bias[row] = sums.a;
    if (t.dstyle_scale) t.dstyle_scale[row] = sums.b * inverse;
}

// Writes the sums of a block for the gradients of bias and strength: [pieces, 2, C], and [blocks] for a scalar
// strength, which is a sum over channels as well.
template <bool NHWC, class Mine, class S>
FASTGAN_INLINE void write_sums(const Mine& mine, const Pair<S> (&sums)[Mine::W], const Split& plan, S* partial,
                               S* strength) {
    constexpr int W = Mine::W;
    if (strength) {  // uniform
        S total = 0;
        GPU_UNROLL
        for (int w = 0; w < W; ++w) total += sums[w].b;
        total = gpu::block_sum(total);
        if (threadIdx.x == 0) strength[blockIdx.x * gridDim.y + blockIdx.y] = total;
    }
    S values[2 * W];
    GPU_UNROLL
    for (int w = 0; w < W; ++w) values[w] = sums[w].a, values[W + w] = sums[w].b;
    if constexpr (NHWC) {
        const int64_t first = int64_t(blockIdx.y) * plan.columns * W;
        __syncthreads();  // all threads have read the earlier contents of the slots
        write_sums_of_columns<2, W>(values, plan.columns, mine.t.c - first, slots_of_block<S, W>(),
                                    partial + mine.piece * 2 * mine.t.c + first, mine.t.c);
    } else {
        sum_rows(values, plan.columns);
        if (!mine.leads) return;
        S* to = partial + mine.piece * 2 * mine.t.c + mine.channel;
        to[0] = values[0], to[mine.t.c] = values[1];
    }
}

// Writes the sums of a piece for its row, [pieces, 3, C].
template <class Mine, class S>
FASTGAN_INLINE void write_sums(const Mine& mine, const Triple<S> (&sums)[Mine::W], S* partial) {
    if (!mine.leads) return;
    GPU_UNROLL
    for (int w = 0; w < Mine::W; ++w) {
        S* to = partial + mine.piece * 3 * mine.t.c + mine.channel + w;
        to[0] = sums[w].a, to[mine.t.c] = sums[w].b, to[2 * mine.t.c] = sums[w].c;
    }
}

// Backward: the whole pass but the sums over samples if x and dy are resident; these sums are written for each piece,
// [pieces, 2, C]. Else the sums of dy, of dy * (z - mean) and of z - mean for each piece, [pieces, 3, C].
template <class T, int V, bool NHWC, bool RESIDENT, bool BATCH>
__global__ void backward(Tensors<T> t, Split plan, typename Tensors<T>::S* partial, typename Tensors<T>::S* strength) {
    using Mine = Part<T, V, NHWC, BATCH>;
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    DYN_SHARED(typename Mine::Vector, cached);
    const Mine mine(t, plan);
    // In shared memory dy follows x.
    const int64_t steps = NHWC ? (t.p + plan.rows - 1) / plan.rows : (t.p + mine.stride - 1) / mine.stride;
    typename Mine::Vector* cached_dy = cached + steps * BLOCK;
    S mean[W] = {}, inverse[W] = {};
    Triple<S> sums[W] = {};
    if (mine.live) {
        S factor[W], shifts[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
            factor[w] = BATCH ? mine.scale(w) * inverse[w] : S(0), shifts[w] = BATCH ? mine.shift(w) : S(0);
        }
        int step = 0;
        for (int64_t position = mine.first; position < mine.end; position += mine.stride, ++step) {
            const auto x = gpu::load<V>(t.x + mine.index(position)), dy = gpu::load<V>(t.dy + mine.index(position));
            if constexpr (RESIDENT) {
                cached[int64_t(step) * BLOCK + threadIdx.x] = x;
                cached_dy[int64_t(step) * BLOCK + threadIdx.x] = dy;
            }
            Activated<S> u[V];
            S noise[V];
            mine.activate(x, position, u, noise);
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                const int w = NHWC ? v : 0;
                const S dv = mine.through_activation(gpu::to<S>(dy.v[v]), u[v].z, mean[w], factor[w], shifts[w]);
                const S distance = u[v].z - mean[w];
                sums[w].a += dv;
                sums[w].b += dv * distance;
                sums[w].c += distance;
            }
        }
    }
    merge_in_block<NHWC>(sums, plan.columns);
    if constexpr (RESIDENT) {
        GPU_UNROLL
        for (int w = 0; w < W; ++w) sums[w] = sums[w].about_the_mean(S(t.numbers));
        if (mine.leads) {
            GPU_UNROLL
            for (int w = 0; w < W; ++w) style_gradients(t, mine.row + w, sums[w], inverse[w]);
        }
        if (!t.beyond_style) return;  // uniform
        Pair<S> total[W] = {};
        if (mine.live) mine.gradients(mean, inverse, sums, cached, cached_dy, total);
        write_sums<NHWC>(mine, total, plan, partial, strength);
    } else {
        write_sums(mine, sums, partial);
    }
}

// Sums over all pieces of a row, about the mean, [3, N, C] or [3, C], and the gradients of the style.
template <class T>
__global__ void merge_sums(Tensors<T> t, Merge merge, const typename Tensors<T>::S* partial,
                           typename Tensors<T>::S* totals) {
    using S = typename Tensors<T>::S;
    const MergePart mine(merge, t.c);
    Triple<S> total[1] = {};
    for (int64_t piece = mine.begin; piece < mine.end; piece += mine.stride) {
        const S* from = partial + piece * 3 * t.c + mine.channel;
        total[0] = merged(total[0], Triple<S>{from[0], from[t.c], from[2 * t.c]});
    }
    merge_in_block<true>(total, merge.columns);
    if (!mine.leads) return;
    const Triple<S> sums = total[0].about_the_mean(S(t.numbers));
    totals[mine.row] = sums.a, totals[t.rows + mine.row] = sums.b, totals[2 * t.rows + mine.row] = sums.c;
    style_gradients(t, mine.row, sums, t.statistics[t.rows + mine.row]);
}

template <class T, int V, bool NHWC, bool BATCH>
__global__ void gradients(Tensors<T> t, Split plan, const typename Tensors<T>::S* totals,
                          typename Tensors<T>::S* partial, typename Tensors<T>::S* strength) {
    using Mine = Part<T, V, NHWC, BATCH>;
    using S = typename Mine::S;
    constexpr int W = Mine::W;
    const Mine mine(t, plan);
    Pair<S> total[W] = {};
    if (mine.live) {
        S mean[W], inverse[W];
        Triple<S> sums[W];
        GPU_UNROLL
        for (int w = 0; w < W; ++w) {
            mean[w] = t.statistics[mine.row + w], inverse[w] = t.statistics[t.rows + mine.row + w];
            const S* from = totals + mine.row + w;
            sums[w] = {from[0], from[t.rows], from[2 * t.rows]};
        }
        mine.gradients(mean, inverse, sums, nullptr, nullptr, total);
    }
    if constexpr (!BATCH) {
        write_sums<NHWC>(mine, total, plan, partial, strength);
    }
}

// Launching -----------------------------------------------------------------------------------------------------------

template <bool NHWC>
dim3 grid_of(const NormCall& call, const Plan& plan) {
    return NHWC ? dim3(unsigned(call.n * plan.per_sample), unsigned(plan.tiles))
                : dim3(unsigned(plan.tiles), unsigned(plan.per_sample));
}

template <class T, int V, bool NHWC, bool BATCH>
void run_forward(const NormCall& call, void* stream) {
    using S = typename Tensors<T>::S;
    const Plan plan = plan_of(call, V, 1);
    const Tensors<T> t(call);
    const dim3 grid = grid_of<NHWC>(call, plan);
    S* partial = (S*)call.workspace;
    if constexpr (!BATCH) {
        if (plan.resident) {
            gpu::Launch(grid, BLOCK, plan.resident, stream)(forward<T, V, NHWC, true>, t, plan, partial);
            return;
        }
    }
    const Merge merge(call, plan);
    gpu::Launch(grid, BLOCK, 0, stream)(forward<T, V, NHWC, false>, t, plan, partial);
    gpu::Launch(merge.blocks, BLOCK, 0, stream)(merge_moments<T>, t, merge, (const S*)partial, plan.per_sample,
                                                plan.positions, BATCH);
    gpu::Launch(grid, BLOCK, 0, stream)(normalise<T, V, NHWC, BATCH>, t, plan);
}

template <class T, int V, bool NHWC, bool BATCH>
void run_backward(const NormCall& call, void* stream) {
    using S = typename Tensors<T>::S;
    const Plan plan = plan_of(call, V, 2);
    const Tensors<T> t(call);
    const dim3 grid = grid_of<NHWC>(call, plan);
    const int64_t sums = call.n * plan.per_sample * call.c;  // number of elements in each table of sums
    S *totals = (S*)call.workspace, *partial = totals + 3 * call.rows(), *strength = nullptr;
    if (call.dstrength && !call.strength_per_channel) strength = partial + 3 * sums;
    if (plan.resident) {
        if constexpr (!BATCH) {
            gpu::Launch(grid, BLOCK, plan.resident, stream)(backward<T, V, NHWC, true, false>, t, plan, partial,
                                                            strength);
        }
    } else {
        const Merge merge(call, plan);
        gpu::Launch(grid, BLOCK, 0, stream)(backward<T, V, NHWC, false, BATCH>, t, plan, partial, strength);
        gpu::Launch(merge.blocks, BLOCK, 0, stream)(merge_sums<T>, t, merge, (const S*)partial, totals);
        if (t.beyond_style) {
            gpu::Launch(grid, BLOCK, 0, stream)(gradients<T, V, NHWC, BATCH>, t, plan, (const S*)totals, partial,
                                                strength);
        }
    }
    const int64_t pieces = call.n * plan.per_sample;
    PieceSums<S> list;
    list.add(partial, call.dbias, 1, pieces, 2 * call.c, call.c);
    if (strength) {
        list.add(strength, call.dstrength, 1, int64_t(grid.x) * grid.y, 1, 1);
    } else {
        list.add(partial + call.c, call.dstrength, 1, pieces, 2 * call.c, call.c);
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

// Bytes of the workspace, enough for any vector size. A resident plan has one piece per sample.
int64_t instance_norm_workspace(const NormCall& call) {
    int64_t pieces = call.n;
    for (int vector : {1, vector_size(call.dtype)}) pieces = max(pieces, call.n * split_plan(call, vector).per_sample);
    return (4 * pieces + 3 * call.n) * call.c * arithmetic_bytes(call.dtype);
}

}  // namespace fastgan::cuda
