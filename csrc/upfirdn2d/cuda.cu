// upfirdn2d on the GPU.
//
// NHWC: the strip of gpu.h in the common cases (a separable filter of 4 taps, up or down by 2 or neither); for all
// other filters a thread computes one output.
//
// NCHW: a block loads the inputs of a tile of outputs, of one or several small planes, into shared memory, and filters
// there, along x and then along y if the filter is separable.
#include "upfirdn2d/gpu.h"

namespace fastgan::cuda {
namespace {

int64_t taps_to_arrange(const Upfirdn2dCall& call) { return call.separable ? 2 * call.kw : call.kh * call.kw; }

// NHWC ----------------------------------------------------------------------------------------------------------------

// A launch with one row of blocks for each row of outputs, whose `jobs` the threads loop over.
struct RowGrid {
    dim3 grid;  // (rows of all samples, parts of a row)
    unsigned threads;

    RowGrid(const Upfirdn2dCall& call, int64_t jobs) {
        if (jobs > (int64_t(1) << 30)) throw std::runtime_error("upfirdn2d: a row of the image is too long");
        threads = unsigned(jobs < BLOCK ? round_up(jobs, gpu::warp_size) : BLOCK);
        grid = dim3(unsigned(call.n * call.oh), unsigned(min(ceil_div(jobs, threads), MAX_GRID_Y)));
    }
};

// Grid: see RowGrid. A thread computes V channels of a pixel at a time.
template <class T, int V>
__global__ void nhwc_any_filter(Geometry g, int runs, int vectors, const typename ArithmeticOf<T>::type* taps,
                                const T* x, const T* addend, T* y) {
    using S = typename ArithmeticOf<T>::type;
    DYN_SHARED(S, arranged);
    arrange_taps(g, taps, arranged);
    const int64_t row = blockIdx.x, sample = row / g.oh;
    const Reach there_y = reach(g.y, row % g.oh);
    for (int job = int(blockIdx.y * blockDim.x + threadIdx.x); job < runs * vectors;
         job += int(gridDim.y * blockDim.x)) {
        const int64_t channel = int64_t(job % vectors) * V, ox = job / vectors;
        const Reach there_x = reach(g.x, ox);
        S total[V] = {};
        for (int64_t r = 0; r < there_y.count; ++r) {
            const int64_t tap_y = there_y.tap + r * g.y.up;
            const S weight_y = g.separable ? arranged[g.x.taps + tap_y] : S(1);
            const S* taps_x = g.separable ? arranged : arranged + tap_y * g.x.taps;
            const T* from = x + ((sample * g.y.size + there_y.at + r) * g.x.size + there_x.at) * g.c + channel;
            for (int64_t i = 0; i < there_x.count; ++i) {
                const S weight = weight_y * taps_x[there_x.tap + i * g.x.up];
                const gpu::Vec<T, V> value = gpu::load<V>(from + i * g.c);
                GPU_UNROLL
                for (int v = 0; v < V; ++v) total[v] += weight * gpu::to<S>(value.v[v]);
            }
        }
        const int64_t at = (row * g.ow + ox) * g.c + channel;
        const gpu::Vec<T, V> added = gpu::load_or_zeros<V>(addend != nullptr, addend + at);
        gpu::Vec<T, V> out;
        GPU_UNROLL
        for (int v = 0; v < V; ++v) out.v[v] = gpu::from<T>(total[v] + gpu::to<S>(added.v[v]));
        gpu::store(y + at, out);
    }
}

// The kernel of its own that a filter has: 1 (neither up nor down), 2 (up by 2) or 3 (down by 2); 0 for none.
int kernel_of(const Upfirdn2dCall& call) {
    if (!call.separable || call.kw != 4) return 0;
    if (call.up_x != call.up_y || call.down_x != call.down_y || call.up_x * call.down_x > 2) return 0;
    return call.up_x == 2 ? 2 : call.down_x == 2 ? 3 : 1;
}

// Writes the sums of the outputs and `addend`, which may be y.
template <class T, int V>
struct AddingStore {
    using S = typename ArithmeticOf<T>::type;
    using Loaded = gpu::Vec<T, V>;
    static constexpr int SUMS = 0, SMALL = 0, THREADS = V == 8 ? BLOCK / 2 : BLOCK;
    PlainStore<T, V> to;
    const T* addend;

    FASTGAN_INLINE void start(int64_t sample, int64_t pixel, int64_t pixels, int c, int channel) {
        to.start(sample, pixel, pixels, c, channel);
        addend += (sample * pixels + pixel) * c + channel;
    }
    FASTGAN_INLINE void move(int64_t pixels, int c) {
        to.move(pixels, c);
        addend += pixels * c;
    }
    FASTGAN_INLINE Loaded load(bool there, int i, int c) const { return gpu::load_or_zeros<V>(there, addend + i * c); }
    template <class Table, class Total>
    FASTGAN_INLINE void store(const bool (&wanted)[RUN], const Loaded (&loaded)[RUN], const Total& total,
                              const Table& table, S* sums, int c) const {
        const typename PlainStore<T, V>::Loaded nothing[RUN] = {};
        const auto sum = [&](int o, int v) { return total(o, v) + gpu::to<S>(loaded[o].v[v]); };
        to.store(wanted, nothing, sum, table, sums, c);
    }
};

template <class T, int V, int UP, int DOWN>
void launch_strips(const Upfirdn2dCall& call, void* stream) {
    using Load = PlainLoad<T, V>;
    const PlainStore<T, V> plain{(T*)call.y};
    const auto launch = [&](const auto& store) {
        const StripLaunch<T, V, UP, DOWN, Load, std::decay_t<decltype(store)>> strips(call);
        strips(call.taps, Load{(const T*)call.x}, store, stream);
    };
    call.addend ? launch(AddingStore<T, V>{plain, (const T*)call.addend}) : launch(plain);
}

template <class T>
void nhwc(const Upfirdn2dCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    constexpr int V = 16 / sizeof(T);
    const bool vectorised = call.c % V == 0 && aligned(call.x, call.y, call.addend);
    const Geometry g = geometry_of(call);
    if (vectorised && fits_strips(call)) {
        const int which = kernel_of(call);
        if (which == 1) return launch_strips<T, V, 1, 1>(call, stream);
        if (which == 2) return launch_strips<T, V, 2, 1>(call, stream);
        if (which == 3) return launch_strips<T, V, 1, 2>(call, stream);
    }
    const int64_t vectors = call.c / (vectorised ? V : 1);
    const RowGrid rows(call, vectors * call.ow);
    const gpu::Launch all(rows.grid, rows.threads, size_t(taps_to_arrange(call)) * sizeof(S), stream);
    auto launch = [&](auto kernel) {
        all(kernel, g, int(call.ow), int(vectors), (const S*)call.taps, (const T*)call.x, (const T*)call.addend,
            (T*)call.y);
    };
    if (vectorised) {
        launch(nhwc_any_filter<T, V>);
    } else {
        launch(nhwc_any_filter<T, 1>);
    }
}

// NCHW ----------------------------------------------------------------------------------------------------------------

// Tiles of tw x th outputs, of `planes` planes at a time, and the inputs that they read at most.
struct Tiles {
    int tw, th, planes, in_w, in_h;
    int64_t across, down;    // tiles in a plane
    int64_t inputs, middle;  // elements in shared memory; elements that are filtered along x
};

int reads(const Axis& axis, int outputs) { return int(((outputs - 1) * axis.down + axis.taps - 1) / axis.up) + 2; }

Tiles tiles_of(const Geometry& g, int most) {
    Tiles t;
    t.tw = power_of_two_from(g.ow, int(min(most, 32)));
    t.th = power_of_two_from(g.oh, int(min(most / t.tw, 32)));
    t.planes = most / (t.tw * t.th);
    t.in_w = reads(g.x, t.tw), t.in_h = reads(g.y, t.th);
    t.across = ceil_div(g.ow, t.tw), t.down = ceil_div(g.oh, t.th);
    t.inputs = int64_t(t.planes) * t.in_h * t.in_w;
    t.middle = g.separable ? int64_t(t.planes) * t.in_h * t.tw : 0;
    return t;
}

// Along an axis: the first input of a tile, and the distance of the first output behind it.
struct Origin {
    int64_t from;
    int phase;
};

FASTGAN_INLINE Origin origin(const Axis& axis, int64_t first) {
    const int64_t start = first * axis.down - axis.before, from = floor_div(start, axis.up);
    return {from, int(start - from * axis.up)};
}

// The filter along one axis at output `o` of a tile; inputs are `step` apart. TAPS, UP and DOWN are 0 if not known at
// compile time.
template <int TAPS, int UP, int DOWN, class S>
FASTGAN_INLINE S filtered(const Axis& axis, int phase, int o, const S* taps, const S* inputs, int step) {
    const int up = UP ? UP : int(axis.up), count = TAPS ? TAPS : int(axis.taps);
    const int start = o * (DOWN ? DOWN : int(axis.down)) + phase, at = (start + up - 1) / up;
    S total = 0;
    GPU_UNROLL
    for (int i = 0; i < (TAPS ? TAPS / UP : count); ++i) {
        const int tap = at * up - start + i * up;
        if (TAPS == 0 && tap >= count) break;
        total += taps[tap] * inputs[(at + i) * step];
    }
    return total;
}

// Grid: (tiles of a plane, groups of planes); blocks loop over more groups than a grid can have.
template <class T, int TAPS, int UP, int DOWN>
__global__ void nchw(Geometry g, Tiles t, const typename ArithmeticOf<T>::type* taps, const T* x, const T* addend,
                     T* y) {
    using S = typename ArithmeticOf<T>::type;
    DYN_SHARED(S, inputs);
    S* middle = inputs + t.inputs;
    S* arranged = middle + t.middle;
    arrange_taps(g, taps, arranged);
    const int64_t tile_x = blockIdx.x % t.across, tile_y = blockIdx.x / t.across;
    const Origin at_x = origin(g.x, tile_x * t.tw), at_y = origin(g.y, tile_y * t.th);
    const int taps_x = int(g.x.taps);

    for (int64_t first = int64_t(blockIdx.y) * t.planes; first < g.planes; first += int64_t(gridDim.y) * t.planes) {
        for (int i = int(threadIdx.x); i < t.planes * t.in_h * t.in_w; i += BLOCK) {
            const int64_t plane = first + i / (t.in_h * t.in_w);
            const int64_t iy = at_y.from + i / t.in_w % t.in_h, ix = at_x.from + i % t.in_w;
            const bool inside = plane < g.planes && iy >= 0 && iy < g.y.size && ix >= 0 && ix < g.x.size;
            inputs[i] = inside ? gpu::to<S>(x[(plane * g.y.size + iy) * g.x.size + ix]) : S(0);
        }
        __syncthreads();
        if (g.separable) {
            for (int i = int(threadIdx.x); i < t.planes * t.in_h * t.tw; i += BLOCK) {
                middle[i] =
                    filtered<TAPS, UP, DOWN>(g.x, at_x.phase, i % t.tw, arranged, inputs + i / t.tw * t.in_w, 1);
            }
            __syncthreads();
        }
        for (int i = int(threadIdx.x); i < t.planes * t.th * t.tw; i += BLOCK) {
            const int p = i / (t.th * t.tw), oy = i / t.tw % t.th, ox = i % t.tw;
            const int64_t plane = first + p, to_y = tile_y * t.th + oy, to_x = tile_x * t.tw + ox;
            if (plane >= g.planes || to_y >= g.oh || to_x >= g.ow) continue;
            S total = 0;
            if (g.separable) {
                total = filtered<TAPS, UP, DOWN>(g.y, at_y.phase, oy, arranged + taps_x,
                                                 middle + p * t.in_h * t.tw + ox, t.tw);
            } else {
                const int up = int(g.y.up), start = oy * int(g.y.down) + at_y.phase, at = (start + up - 1) / up;
                for (int r = 0, tap = at * up - start; tap < int(g.y.taps); ++r, tap += up) {
                    total += filtered<0, 0, 0>(g.x, at_x.phase, ox, arranged + tap * taps_x,
                                               inputs + (p * t.in_h + at + r) * t.in_w, 1);
                }
            }
            const int64_t at = (plane * g.oh + to_y) * g.ow + to_x;
            if (addend) total += gpu::to<S>(addend[at]);
            y[at] = gpu::from<T>(total);
        }
        __syncthreads();
    }
}

template <class T>
void nchw(const Upfirdn2dCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    const Geometry g = geometry_of(call);
    Tiles t;
    size_t bytes = 0;
    for (int most = 1024; most > 0; most /= 4) {  // smaller tiles for long filters
        t = tiles_of(g, most);
        bytes = size_t(t.inputs + t.middle + taps_to_arrange(call)) * sizeof(S);
        if (bytes <= 48 * 1024) break;
    }
    const int64_t groups = ceil_div(g.planes, t.planes);
    const dim3 grid(unsigned(t.across * t.down), unsigned(min(groups, MAX_GRID_Y)));
    const gpu::Launch all(grid, BLOCK, bytes, stream);
    auto launch = [&](auto kernel) {
        all(kernel, g, t, (const S*)call.taps, (const T*)call.x, (const T*)call.addend, (T*)call.y);
    };
    if constexpr (sizeof(T) < sizeof(double)) {
        const int which = kernel_of(call);
        if (which == 1) return launch(nchw<T, 4, 1, 1>);
        if (which == 2) return launch(nchw<T, 4, 2, 1>);
        if (which == 3) return launch(nchw<T, 4, 1, 2>);
    }
    launch(nchw<T, 0, 0, 0>);
}

}  // namespace

void upfirdn2d_forward(const Upfirdn2dCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        call.channels_last ? nhwc<T>(call, stream) : nchw<T>(call, stream);
    });
}

}  // namespace fastgan::cuda
