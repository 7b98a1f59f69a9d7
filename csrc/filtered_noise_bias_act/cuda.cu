// filtered_noise_bias_act on the GPU, in NHWC. Forward is the strip of upfirdn2d (upfirdn2d/gpu.h), which applies the
// epilogue to the outputs of a row. Backward is one pass as well, with the gradient between the epilogue and the filter in
// registers. It filters x again: otherwise forward would have to write the filtered values.
#include "filtered_noise_bias_act/call.h"
#include "noise_bias_act/gpu.h"
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

constexpr Act ACT = Act::piecewise_linear;

// Noise of a pixel, at which a strip points.
template <class S>
struct Noise {
    const S* at;
    bool per_sample;

    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels) {
        if (at) at += (per_sample ? sample * pixels : 0) + pixel;
    }
    FASTGAN_INLINE void move(int64_t pixels) {
        if (at) at += pixels;
    }
    FASTGAN_INLINE S load(bool there, int i) const { return there && at ? at[i] : S(0); }
};

// Part `which` of the small tensors of a channel: scale, strength, bias or post.
template <class S>
FASTGAN_INLINE S small_part(const Epilogue<S>& epilogue, int which, int64_t sample, int channel, int c) {
    const Small<S> small = small_at<S>(epilogue, sample, channel, c);
    return which == 0 ? small.scale : which == 1 ? small.strength : which == 2 ? small.bias : small.post;
}

// Reads the small tensors of a thread's channels q * W to q * W + W from shared memory; the noise is left out.
template <class Table, class S, int W>
FASTGAN_INLINE void read_small(const Table& table, int q, Small<S> (&small)[W]) {
    const gpu::Vec<S, W> scale = table.read(0, q), strength = table.read(1, q), bias = table.read(2, q),
                         post = table.read(3, q);
    GPU_UNROLL
    for (int w = 0; w < W; ++w) small[w] = {scale.v[w], strength.v[w], bias.v[w], post.v[w], S(0)};
}

// Forward: y = noise_bias_act(output of the filter).
template <class T, int V, bool LIMITED>
struct EpilogueStore {
    using S = typename ArithmeticOf<T>::type;
    struct Loaded {
        S noise;
    };
    static constexpr int SUMS = 0, SMALL = 4, THREADS = V == 8 ? BLOCK / 2 : BLOCK;
    Shape<S, LIMITED> shape;
    Epilogue<S> epilogue;
    Noise<S> noise;
    T* y;

    explicit EpilogueStore(const FilteredNoiseBiasActCall& call)
        : shape(shape_of<S, LIMITED>(S(call.epilogue.slope), S(call.epilogue.gain), S(call.epilogue.clamp))),
          epilogue(call.epilogue),
          noise{(const S*)call.epilogue.noise, call.epilogue.noise_per_sample},
          y((T*)call.filter.y) {}

    FASTGAN_INLINE S small(int which, int64_t sample, int channel, int c) const {
        return small_part(epilogue, which, sample, channel, c);
    }
    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        y += (sample * pixels + pixel) * c + channel;
        noise.start(sample, pixel, pixels);
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) {
        y += pixels * c;
        noise.move(pixels);
    }
    FASTGAN_INLINE Loaded load(bool there, int i, int) const { return {noise.load(there, i)}; }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&loaded)[RUN], const Total& total,
                              const Table& table, S*, int c) const {
        constexpr int W = Table::W;
        gpu::Vec<T, V> out[RUN];
        GPU_UNROLL
        for (int q = 0; q < V / W; ++q) {
            Small<S> small[W];
            read_small(table, q, small);
            GPU_UNROLL
            for (int i = 0; i < RUN * W; ++i) {
                const int o = i / W, w = i % W, v = q * W + w;
                small[w].noise = loaded[o].noise;
                out[o].v[v] = gpu::from<T>(gpu_values::forward<ACT, true>(total(o, v), small[w], shape));
            }
        }
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            if (wanted[o]) gpu::store(y + o * c, out[o]);
        }
    }
};

// Backward ------------------------------------------------------------------------------------------------------------
//
//     f = filter(x),   d = dy * act'(u),   dx = scale * post * adjoint filter(d),   u(f) as in noise_bias_act/arithmetic.h
//
// A warp takes `lanes` vectors of V channels times 32 / lanes runs of two columns (RUN), and walks down the image. In a
// step, a thread
//
//   1. filters a row of x along x and adds it to the sums of its rows of f, of which one is complete,
//   2. makes a row of d from that, and adds it to the sums of its rows of dx, of which one is complete along y,
//   3. filters this one along x: other lanes have the columns beside its own.
//
// The outer columns of a warp lack neighbours: from 2 * runs columns of d follow 2 * runs - 3 of dx, and warps overlap.
// If the derivative is computed from y, there is no f, and neither scale nor post.

constexpr int LANES = 4;  // vectors of channels of a warp, at most
constexpr int WARPS = 5;  // of a block, at most; with 4 lanes, five make the 65 columns of dx of 64 columns of dy
constexpr int LONGEST_STRIP = 72;  // rows of a strip, at most; a strip reads up to six rows of its neighbours

// Rows or columns of dx from -before on. The one at i adds up d at i + 1 - padding, the second place that it reads. If the
// padding is large or negative, it takes places outside of the image to meet all of d.
struct Span {
    int before, count;

    Span(const Axis& adjoint, int64_t outputs)
        : before(int(max(0, 1 - adjoint.before))),
          count(before + int(max(outputs, adjoint.size - 1 + adjoint.before))) {}
};

// Grid: samples x strips x tiles of columns x tiles of channels, these the fastest: adjacent blocks read adjacent sectors.
struct Walk {
    Span x, y;
    int lanes, warps, tiles, rows, strips, channel_tiles;

    Walk(const Geometry& adjoint, int vector)
        : x(adjoint.x, adjoint.ow),
          y(adjoint.y, adjoint.oh),
          lanes(power_of_two_from(ceil_div(adjoint.c, vector), LANES)) {
        const int64_t all_warps = ceil_div(x.count, columns());
        tiles = int(ceil_div(all_warps, WARPS));
        warps = int(ceil_div(all_warps, tiles));
        channel_tiles = int(ceil_div(adjoint.c, lanes * vector));
        const int64_t beside = adjoint.planes / adjoint.c * tiles * channel_tiles;
        strips = int(ceil_div(y.count, LONGEST_STRIP));
        while (beside * strips < MULTIPROCESSORS && ceil_div(y.count, strips) > 8) strips *= 2;
        rows = int(ceil_div(y.count, strips));
        strips = int(ceil_div(y.count, rows));
    }

    int64_t per_sample() const { return int64_t(strips) * tiles; }

    // Columns of dx of a warp.
    FASTGAN_INLINE __host__ int columns() const { return gpu::warp_size / lanes * RUN - 3; }
};

// Sums along y of rows that lack inputs.
template <class S, int V>
struct OpenRows {
    S sums[3][RUN][V] = {};

    // Adds a row of inputs; `row` becomes the sum that is complete then.
    FASTGAN_INLINE void add(S (&row)[RUN][V], S first, S second, S third, S fourth) {
        GPU_UNROLL
        for (int i = 0; i < RUN * V; ++i) {
            const int o = i / V, v = i % V;
            const S value = row[o][v];
            row[o][v] = sums[0][o][v] + fourth * value;
            sums[0][o][v] = sums[1][o][v] + third * value;
            sums[1][o][v] = sums[2][o][v] + second * value;
            sums[2][o][v] = first * value;
        }
    }
};

// Filters pixels along x, with the taps in reverse.
template <class T, class S, int V>
FASTGAN_INLINE void filter_pixels(const gpu::Vec<T, V> (&in)[RUN + 3], const S (&taps)[4], S (&out)[RUN][V]) {
    GPU_UNROLL
    for (int i = 0; i < RUN + 3; ++i) {
        S values[V];
        gpu::values_of(in[i], values);
        GPU_UNROLL
        for (int j = 0; j < RUN * V; ++j) {
            const int o = j / V, v = j % V, tap = i - o;
            if (tap < 0 || tap >= 4) continue;
            const S product = taps[3 - tap] * values[v];
            out[o][v] = tap == 0 ? product : out[o][v] + product;
        }
    }
}

// Filters along x columns of which the lanes of a warp, `distance` apart, have RUN each. All lanes must call.
template <class S, int V>
FASTGAN_INLINE void filter_lanes(S (&columns)[RUN][V], const S (&taps)[4], int distance) {
    GPU_UNROLL
    for (int v = 0; v < V; ++v) {
        const S in[RUN + 3] = {__shfl_up_sync(gpu::full_mask, columns[1][v], unsigned(distance)), columns[0][v],
                               columns[1][v], __shfl_down_sync(gpu::full_mask, columns[0][v], unsigned(distance)),
                               __shfl_down_sync(gpu::full_mask, columns[1][v], unsigned(distance))};
        GPU_UNROLL
        for (int o = 0; o < RUN; ++o) {
            S total = 0;
            GPU_UNROLL
            for (int i = 0; i < 4; ++i) total += taps[i] * in[o + i];
            columns[o][v] = total;
        }
    }
}

// Scale, strength, bias, and the factor scale * post of dx.
template <class S>
struct BackwardSmall {
    static constexpr int SMALL = 4, FACTOR = 3;
    const Epilogue<S>& epilogue;

    FASTGAN_INLINE S small(int which, int64_t sample, int channel, int c) const {
        const S part = small_part(epilogue, which, sample, channel, c);
        return which == FACTOR && epilogue.scale ? part * epilogue.scale[sample * c + channel] : part;
    }
};

// `g` is that of the adjoint filter, from dy to dx; `reference` is y or x. Sums: [pieces, SUMS, C], and `second` [blocks]
// for the second sum added up over channels as well; null if it is not wanted.
template <class T, int V, bool FROM_OUTPUT, bool LIMITED>
__global__ void __launch_bounds__(WARPS* gpu::warp_size, sizeof(typename ArithmeticOf<T>::type) == 8 ? 1 : 3)
    backward_strips(Geometry g, Walk walk, const typename ArithmeticOf<T>::type* taps, const T* reference, const T* dy,
                    T* dx, Shape<typename ArithmeticOf<T>::type, LIMITED> shape,
                    Epilogue<typename ArithmeticOf<T>::type> epilogue, typename ArithmeticOf<T>::type* partial,
                    typename ArithmeticOf<T>::type* second) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int SUMS = FROM_OUTPUT ? 2 : MAX_SUMS, INPUTS = FROM_OUTPUT ? RUN : RUN + 3;
    constexpr int LEAD = FROM_OUTPUT ? 3 : 6;  // steps before the first row of dx
    constexpr int AHEAD = 2;                   // rows that are loaded at once
    const int h = int(g.oh), w = int(g.ow), oh = int(g.y.size), ow = int(g.x.size), c = int(g.c);
    const int piece = int(blockIdx.x) / walk.channel_tiles, strip = piece / walk.tiles;
    const int64_t sample = strip / walk.strips;
    const int lane = int(threadIdx.x) % gpu::warp_size, warp = int(threadIdx.x) / gpu::warp_size;
    const int first_channel = int(blockIdx.x) % walk.channel_tiles * walk.lanes * V;
    const int channel = first_channel + lane % walk.lanes * V;
    const bool live = channel < c;

    using SmallVector = gpu::Vec<S, V>;
    constexpr int small_vectors = BackwardSmall<S>::SMALL * LANES;
    SHARED(SmallVector, small, [small_vectors]);
    SHARED(S, arranged, [8]);
    if constexpr (!FROM_OUTPUT) {
        SmallTensors<S, V>::fill(BackwardSmall<S>{epilogue}, &small[0].v[0], walk.lanes, sample, first_channel, c);
    }
    arrange_taps(g, taps, arranged);
    const S* small_here = &small[lane % walk.lanes].v[0];
    S taps_x[4], taps_y[4];
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) taps_x[i] = arranged[i], taps_y[i] = arranged[4 + i];

    // Columns: the first of this thread in dx, in y and in the reference.
    const int in_warp = lane / walk.lanes * RUN - 1;
    const int ix = (piece % walk.tiles * walk.warps + warp) * walk.columns() + in_warp - walk.x.before;
    const int ox = ix + 1 - int(g.x.before), rx = FROM_OUTPUT ? ox : ix - 2;
    const int reference_h = FROM_OUTPUT ? oh : h, reference_w = FROM_OUTPUT ? ow : w;
    // Bits of the accesses of a row: the reference, dy, the noise, the sums, dx.
    constexpr int DY = INPUTS, NOISE = DY + RUN, SUM = NOISE + RUN, DX = SUM + RUN;
    constexpr int ALL_INPUTS = (1 << INPUTS) - 1, ALL = (1 << RUN) - 1;
    int columns = 0;
    GPU_UNROLL
    for (int i = 0; i < INPUTS; ++i) {
        if (live && rx + i >= 0 && rx + i < reference_w) columns |= 1 << i;
    }
    GPU_UNROLL
    for (int o = 0; o < RUN; ++o) {
        const bool made = live && in_warp + o >= 0 && in_warp + o < walk.columns();
        const bool in_y = live && ox + o >= 0 && ox + o < ow;
        if (in_y) columns |= 1 << (DY + o);
        if (in_y && epilogue.noise) columns |= 1 << (NOISE + o);
        if (in_y && made) columns |= 1 << (SUM + o);
        if (made && ix + o >= 0 && ix + o < w) columns |= 1 << (DX + o);
    }

    // Rows: a step makes the one at step + to_dx, and reads the last one of y and of the reference that this depends on.
    const int begin = strip % walk.strips * walk.rows, end = int(min(begin + walk.rows, walk.y.count));
    const int to_dx = -walk.y.before, to_y = to_dx + 3 - int(g.y.before), to_x = FROM_OUTPUT ? to_y : to_dx + 3;
    int step = begin - LEAD;
    reference += ((sample * reference_h + step + to_x) * reference_w + rx) * c + channel;
    dy += ((sample * oh + step + to_y) * ow + ox) * c + channel;
    dx += ((sample * h + step + to_dx) * w + ix) * c + channel;
    const S* noise = epilogue.noise + (epilogue.noise_per_sample ? sample * oh * ow : 0);
    int pixel_of_noise = (step + to_y) * ow + ox;

    OpenRows<S, V> rows_of_f, rows_of_dx;
    S sums[SUMS * V] = {};
    for (; step < end; step += AHEAD) {
        gpu::Vec<T, V> in[AHEAD][INPUTS], gradient[AHEAD][RUN];
        S at_pixel[AHEAD][RUN];
        int accesses[AHEAD];
        GPU_UNROLL
        for (int a = 0; a < AHEAD; ++a) {
            const int now = step + a;
            const bool row_of_reference = now < end && unsigned(now + to_x) < unsigned(reference_h);
            const bool row_of_y = unsigned(now + to_y) < unsigned(oh);
            const bool row_of_dy = row_of_y && now >= begin - 3 && now < end;
            const bool row_of_sums = row_of_y && now >= begin - 2 && now < end - 2;
            accesses[a] = columns & ((row_of_reference ? ALL_INPUTS : 0) | (row_of_dy ? ALL << DY | ALL << NOISE : 0) |
                                     (row_of_sums ? ALL << SUM : 0) | ALL << DX);
            GPU_UNROLL
            for (int i = 0; i < INPUTS; ++i) {
                in[a][i] = gpu::load_or_zeros<V>(accesses[a] >> i & 1, reference + (a * reference_w + i) * c);
            }
        }
        const auto load_gradient = [&](int a) {
            GPU_UNROLL
            for (int o = 0; o < RUN; ++o) {
                gradient[a][o] = gpu::load_or_zeros<V>(accesses[a] >> (DY + o) & 1, dy + (a * ow + o) * c);
                at_pixel[a][o] = accesses[a] >> (NOISE + o) & 1 ? noise[pixel_of_noise + a * ow + o] : S(0);
            }
        };
        load_gradient(0);
        GPU_UNROLL
        for (int a = 0; a < AHEAD; ++a) {
            S f[RUN][V], d[RUN][V];
            if constexpr (!FROM_OUTPUT) {
                filter_pixels(in[a], taps_x, f);
                rows_of_f.add(f, taps_y[3], taps_y[2], taps_y[1], taps_y[0]);
            }
            GPU_UNROLL
            for (int v = 0; v < V; ++v) {
                __syncwarp();  // small tensors are read from shared memory again, and take no registers
                const auto small_part_of = [&](int which) { return small_here[which * walk.lanes * V + v]; };
                GPU_UNROLL
                for (int o = 0; o < RUN; ++o) {
                    const S above = gpu::to<S>(gradient[a][o].v[v]), pixel = at_pixel[a][o];
                    S left = 0, right = 0;  // their product is the term of the sum for `post`
                    if constexpr (FROM_OUTPUT) {
                        d[o][v] = above * slope_from_output<ACT>(gpu::to<S>(in[a][o].v[v]), shape);
                    } else {
                        const S u = small_part_of(0) * f[o][v] + (small_part_of(1) * pixel + small_part_of(2));
                        const Curve<S> curved = clamped(curve<ACT>(u, shape), shape);
                        d[o][v] = above * curved.first;
                        left = LIMITED ? above : d[o][v], right = LIMITED ? curved.value : u;
                    }
                    if (!(accesses[a] >> (SUM + o) & 1)) continue;
                    sums[v] += d[o][v];
                    sums[V + v] += d[o][v] * pixel;
                    if constexpr (!FROM_OUTPUT) {
                        sums[2 * V + v] += d[o][v] * f[o][v];
                        sums[3 * V + v] += left * right;
                    }
                }
            }
            if (a + 1 < AHEAD) load_gradient(a + 1);
            rows_of_dx.add(d, taps_y[0], taps_y[1], taps_y[2], taps_y[3]);
            const int now = step + a;
            if (now < begin || now >= end || unsigned(now + to_dx) >= unsigned(h)) continue;
            gpu::Vec<S, V> factor;
            if constexpr (!FROM_OUTPUT) factor = gpu::load<V>(small_here + BackwardSmall<S>::FACTOR * walk.lanes * V);
            filter_lanes(d, taps_x, walk.lanes);
            GPU_UNROLL
            for (int o = 0; o < RUN; ++o) {
                gpu::Vec<T, V> out;
                GPU_UNROLL
                for (int v = 0; v < V; ++v) out.v[v] = gpu::from<T>(FROM_OUTPUT ? d[o][v] : factor.v[v] * d[o][v]);
                if (accesses[a] >> (DX + o) & 1) gpu::store(dx + (a * w + o) * c, out);
            }
        }
        reference += AHEAD * reference_w * c;
        dy += AHEAD * ow * c, dx += AHEAD * w * c;
        pixel_of_noise += AHEAD * ow;
    }

    if constexpr (!FROM_OUTPUT) {  // `post` is a factor of all sums but its own
        GPU_UNROLL
        for (int v = 0; v < V; ++v) {
            const S post = live && epilogue.post ? epilogue.post[sample * c + channel + v] : S(1);
            GPU_UNROLL
            for (int which = 0; which < SUMS - 1; ++which) sums[which * V + v] *= post;
        }
    }
    if (second) {  // uniform
        S total = 0;
        GPU_UNROLL
        for (int v = 0; v < V; ++v) total += sums[V + v];
        total = gpu::block_sum(total);
        if (threadIdx.x == 0) second[blockIdx.x] = total;
    }
    constexpr int size = COLUMN_SLOTS<SUMS, V>;
    SHARED(S, slots, [size]);
    write_sums_of_columns<SUMS, V>(sums, walk.lanes, c - first_channel, &slots[0],
                                   partial + int64_t(piece) * SUMS * c + first_channel, c);
}

// Launches ------------------------------------------------------------------------------------------------------------

// Whether the addresses of all activations allow accesses of 16 bytes: a tensor of another library may lie anywhere.
bool fits_vectors(const FilteredNoiseBiasActCall& call) {
    return aligned(call.filter.x, call.filter.y, call.epilogue.reference);
}

template <class T, int V, bool LIMITED>
void forward(const FilteredNoiseBiasActCall& call, void* stream) {
    using Load = PlainLoad<T, V>;
    using Store = EpilogueStore<T, V, LIMITED>;
    const Upfirdn2dCall& filter = call.filter;
    const StripLaunch<T, V, 1, 1, Load, Store> strips(filter);
    strips(filter.taps, Load{(const T*)filter.x}, Store(call), stream);
}

// Elements in an access of the backward pass: 8 bytes leave registers for three blocks on a multiprocessor.
template <class T>
constexpr int BACKWARD_V = 8 / sizeof(T);

template <class T, int V, bool FROM_OUTPUT, bool LIMITED>
void backward(const FilteredNoiseBiasActCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int SUMS = FROM_OUTPUT ? 2 : MAX_SUMS;
    const NoiseBiasActCall& epilogue = call.epilogue;
    const Geometry g = geometry_of(call.filter);
    const Walk walk(g, V);
    const int64_t pieces = call.filter.n * walk.per_sample(), blocks = pieces * walk.channel_tiles;
    S *partial = (S*)call.workspace, *strength = nullptr;
    if (epilogue.dstrength && !epilogue.strength_per_channel) strength = partial + pieces * SUMS * epilogue.c;
    gpu::Launch(unsigned(blocks), unsigned(walk.warps * gpu::warp_size), 0, stream)(
        backward_strips<T, V, FROM_OUTPUT, LIMITED>, g, walk, (const S*)call.filter.taps, (const T*)epilogue.reference,
        (const T*)call.filter.x, (T*)call.filter.y,
        shape_of<S, LIMITED>(S(epilogue.slope), S(epilogue.gain), S(epilogue.clamp)), Epilogue<S>(epilogue), partial,
        strength);
    add_sums<S, SUMS>(epilogue, partial, walk.per_sample(), strength, blocks, stream);
}

void check_size(const FilteredNoiseBiasActCall& call) {
    const int64_t row = max(call.filter.w, call.filter.ow), height = max(call.filter.h, call.filter.oh);
    if (!fits_strips(call.filter) || row * call.filter.c >= 1 << 29 || row * height >= 1 << 30) {
        throw std::runtime_error("filtered_noise_bias_act: the image is too large");
    }
}

}  // namespace

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        if (!fits_vectors(call)) return forward<T, 1, true>(call, stream);
        constexpr int V = 16 / sizeof(T);
        call.epilogue.clamp < INFINITY ? forward<T, V, true>(call, stream) : forward<T, V, false>(call, stream);
    });
}

void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    check_size(call);
    for_dtype(call.filter.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int V = BACKWARD_V<T>;
        const bool vectors = fits_vectors(call), limited = call.epilogue.clamp < INFINITY;
        if (call.epilogue.from_output) {
            if (!vectors) return backward<T, 1, true, true>(call, stream);
            limited ? backward<T, V, true, true>(call, stream) : backward<T, V, true, false>(call, stream);
        } else {
            if (!vectors) return backward<T, 1, false, true>(call, stream);
            limited ? backward<T, V, false, true>(call, stream) : backward<T, V, false, false>(call, stream);
        }
    });
}

// Bytes of the workspace: the sums of all pieces, and one number for each block.
int64_t filtered_noise_bias_act_workspace(const FilteredNoiseBiasActCall& call) {
    int64_t vector = 1;
    for_dtype(call.filter.dtype, [&](auto element) {
        if (fits_vectors(call)) vector = BACKWARD_V<decltype(element)>;
    });
    const Walk walk(geometry_of(call.filter), int(vector));
    const int64_t numbers = MAX_SUMS * call.filter.c + walk.channel_tiles;
    return call.filter.n * walk.per_sample() * numbers * arithmetic_bytes(call.filter.dtype);
}

}  // namespace fastgan::cuda
