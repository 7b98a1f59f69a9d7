// upfirdn2d on the GPU.
//
// NCHW, and NHWC with few channels: the tiles of tiles.h for separable filters. NHWC with vectors of channels: the strip of gpu.h for a
// separable filter of 4 taps, up or down by 2 or neither. All else: a thread computes one output.
#include "upfirdn2d/tiles.h"

namespace fastgan::cuda {
namespace {

// Any filter ----------------------------------------------------------------------------------------------------------

// A launch with one row of blocks for each row of outputs, whose `jobs` the threads loop over.
struct RowGrid {
    dim3 grid;  // (rows of all samples, parts of a row)
    unsigned threads;

    RowGrid(int64_t rows, int64_t jobs) {
        if (jobs > (int64_t(1) << 30)) throw std::runtime_error("upfirdn2d: a row of the image is too long");
        threads = unsigned(jobs < BLOCK ? round_up(jobs, gpu::warp_size) : BLOCK);
        grid = dim3(unsigned(rows), unsigned(min(ceil_div(jobs, threads), MAX_GRID_Y)));
    }
};

// Grid: see RowGrid. A thread computes V channels of a pixel at a time. In NCHW a plane is an image of one channel.
template <class T, int V>
__global__ void any_filter(Geometry g, int runs, int vectors, const typename ArithmeticOf<T>::type* taps, const T* x,
                           const T* addend, T* y) {
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

template <class T, int V>
void launch_any_filter(const Upfirdn2dCall& call, void* stream) {
    using S = typename ArithmeticOf<T>::type;
    Geometry g = geometry_of(call);
    if (!call.channels_last) g.c = 1;
    const int64_t vectors = g.c / V, taps = call.separable ? 2 * call.kw : call.kh * call.kw;
    const RowGrid rows(g.planes / g.c * g.oh, vectors * g.ow);
    gpu::Launch(rows.grid, rows.threads, size_t(taps) * sizeof(S), stream)(
        any_filter<T, V>, g, int(call.ow), int(vectors), (const S*)call.taps, (const T*)call.x, (const T*)call.addend,
        (T*)call.y);
}

// Strips --------------------------------------------------------------------------------------------------------------

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

// Dispatch ------------------------------------------------------------------------------------------------------------

constexpr int64_t FEW_CHANNELS = 32;  // with more of them, tiles would have few pixels

// Launches with the type of a kernel for a separable filter of `taps` taps; false if there is none.
template <class F>
bool for_factors(const Upfirdn2dCall& call, int64_t taps, const F& launch) {
    if (!call.separable || call.kw != taps || call.up_x != call.up_y || call.down_x != call.down_y) return false;
    using std::integral_constant;
    const integral_constant<int, 1> one;
    const integral_constant<int, 2> two;
    if (call.up_x == 1 && call.down_x == 1) return launch(one, one);
    if (call.up_x == 2 && call.down_x == 1) return launch(two, one);
    if (call.up_x == 1 && call.down_x == 2) return launch(one, two);
    return false;
}

template <class T, int TAPS, int UP, int DOWN>
bool launch_tiles(const Upfirdn2dCall& call, void* stream) {
    const TilesLaunch<T, TAPS, UP, DOWN> tiles(call);
    if (!tiles.fits()) return false;
    const auto adding = [&](auto out) { return AddingResult<T, decltype(out)::value>{(const T*)call.addend}; };
    tiles(call, adding, stream);
    return true;
}

template <class T>
void launch(const Upfirdn2dCall& call, void* stream) {
    constexpr int V = 16 / sizeof(T);
    if (call.channels_last && call.c % V == 0 && aligned(call.x, call.y, call.addend)) {
        const auto strips = [&](auto up, auto down) {
            launch_strips<T, V, decltype(up)::value, decltype(down)::value>(call, stream);
            return true;
        };
        if (!(fits_strips(call) && for_factors(call, 4, strips))) launch_any_filter<T, V>(call, stream);
        return;
    }
    if (!call.channels_last || call.c <= FEW_CHANNELS) {
        if constexpr (sizeof(T) < sizeof(double)) {
            const auto tiles_of_four = [&](auto up, auto down) {
                return launch_tiles<T, 4, decltype(up)::value, decltype(down)::value>(call, stream);
            };
            if (for_factors(call, 4, tiles_of_four)) return;
        }
        if (launch_tiles<T, 0, 0, 0>(call, stream)) return;
    }
    launch_any_filter<T, 1>(call, stream);
}

}  // namespace

void upfirdn2d_forward(const Upfirdn2dCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) { launch<decltype(element)>(call, stream); });
}

}  // namespace fastgan::cuda
