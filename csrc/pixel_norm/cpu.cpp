// pixel_norm on the CPU, compiled once per instruction set.
//
// Each position is normalised on its own. Its channels are read twice: for the sums, then, from the L1 cache, to be
// scaled. In NHWC the channels lie in one row; in NCHW the loops process a few vectors of positions at a time.
#include "common/simd.h"

#include "pixel_norm/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::PixelNormCall;

namespace {

// Tensors of a call, accessed by groups of channels (NHWC) or vectors of positions (NCHW).
template <int ORDER, class T>
struct Tensors {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;

    const T *x, *dy, *gx;
    T *first, *second;
    bool streamed;

    Tensors(const PixelNormCall& call, int64_t row, int64_t unit)
        : x((const T*)call.x),
          dy((const T*)call.dy),
          gx((const T*)call.gx),
          first((T*)call.first),
          second((T*)call.second) {
        streamed = should_stream(call.n * call.c * call.p * sizeof(T), row, unit, first, second);
    }

    // Calls `body(x, dy, gx)` with the values at index i; arguments that ORDER does not use are x again.
    template <class Get, class Body>
    static void with(const Get& get, const T* x, const T* dy, const T* gx, int64_t i, const Body& body) {
        auto a = get(x + i), b = a, c = a;
        if constexpr (ORDER >= 1) b = get(dy + i);
        if constexpr (ORDER == 2) c = get(gx + i);
        body(a, b, c);
    }

    template <bool PART>
    void add_group(int64_t i, int64_t count, Products<V>& sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_group_n(p, count);
            prefetch(p);
            return load_group(p);
        };
        with(get, x, dy, gx, i, [&](const Group<T>& a, const Group<T>& b, const Group<T>& c) {
            for (int k = 0; k < Group<T>::vectors; ++k) add_products<ORDER>(sums, a.v[k], b.v[k], c.v[k]);
        });
    }

    template <bool PART>
    void write_group(int64_t i, int64_t count, const Factors<V>& f) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_group_n(p, count);
            return load_group(p);
        };
        with(get, x, dy, gx, i, [&](const Group<T>& a, const Group<T>& b, const Group<T>& c) {
            Group<T> one, two;
            for (int k = 0; k < Group<T>::vectors; ++k) {
                const Results<V> result = results<ORDER>(f, a.v[k], b.v[k], c.v[k]);
                one.v[k] = result.first, two.v[k] = result.second;
            }
            put_group<PART>(first + i, one, count, streamed);
            if constexpr (ORDER == 2) put_group<PART>(second + i, two, count, streamed);
        });
    }

    template <bool PART>
    void add_positions(int64_t i, int64_t count, Products<V>& sums) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_n(p, count);
            return load(p);
        };
        with(get, x, dy, gx, i, [&](V a, V b, V c) { add_products<ORDER>(sums, a, b, c); });
    }

    template <bool PART>
    void write_positions(int64_t i, int64_t count, const Factors<V>& f) const {
        auto get = [&](const T* p) {
            if constexpr (PART) return load_n(p, count);
            return load(p);
        };
        with(get, x, dy, gx, i, [&](V a, V b, V c) {
            const Results<V> result = results<ORDER>(f, a, b, c);
            put<PART>(first + i, result.first, count, streamed);
            if constexpr (ORDER == 2) put<PART>(second + i, result.second, count, streamed);
        });
    }
};

template <int ORDER, class T>
void nhwc(const PixelNormCall& call) {
    typedef Tensors<ORDER, T> Here;
    typedef typename Here::S S;
    typedef typename Here::V V;
    const int64_t rows = call.n * call.p, width = Group<T>::size;
    const S inverse_c = S(1.0 / call.c), eps = S(call.eps);
    const Here shared(call, call.c, width);

    const int64_t few = 8192 / call.c + 1, pieces = ceil_div(rows, few);
    parallel_for(pieces, worth_threads(rows * call.c), [&](int64_t piece) {
        const Here tensors = shared;  // a copy that no store can alias
        const int64_t c = call.c, whole = c / width * width;
        for (int64_t row = piece * few; row < rows && row < (piece + 1) * few; ++row) {
            const int64_t at = row * c;
            Products<V> sums{};
            for (int64_t j = 0; j < whole; j += width) tensors.template add_group<false>(at + j, width, sums);
            if (whole < c) tensors.template add_group<true>(at + whole, c - whole, sums);
            const Products<S> total = {sum(sums.xx), sum(sums.xd), sum(sums.xg), sum(sums.dg)};
            const Factors<S> f = factors<ORDER>(total, inverse_c, eps);
            const Factors<V> all_lanes = {broadcast<V>(f.r), broadcast<V>(f.k), broadcast<V>(f.a), broadcast<V>(f.b)};
            for (int64_t j = 0; j < whole; j += width) tensors.template write_group<false>(at + j, width, all_lanes);
            if (whole < c) tensors.template write_group<true>(at + whole, c - whole, all_lanes);
        }
        if (tensors.streamed) stream_fence();
    });
}

// Sums over channels of the products at `count` positions from index `at` on, for VECTORS adjacent vectors.
template <int VECTORS, bool PART, int ORDER, class T, class V>
void add_channels(const Tensors<ORDER, T>& tensors, int64_t at, int64_t count, int64_t c, int64_t p,
                  Products<V> (&sums)[VECTORS]) {
    const int64_t run = 16, width = lanes<V>();  // longer sums would round more
    for (int64_t from = 0; from < c; from += run) {
        Products<V> few[VECTORS] = {};
        for (int64_t j = from; j < c && j < from + run; ++j) {
            for (int k = 0; k < VECTORS; ++k)
                tensors.template add_positions<PART>(at + j * p + k * width, count, few[k]);
        }
        for (int k = 0; k < VECTORS; ++k) {
            sums[k].xx += few[k].xx;
            if constexpr (ORDER >= 1) sums[k].xd += few[k].xd;
            if constexpr (ORDER == 2) sums[k].xg += few[k].xg, sums[k].dg += few[k].dg;
        }
    }
}

template <int ORDER, class T>
void nchw(const PixelNormCall& call) {
    typedef Tensors<ORDER, T> Here;
    typedef typename Here::V V;
    const int vectors = 4;  // vectors of positions at a time: longer runs of memory, and independent additions
    const int64_t width = lanes<V>(), block = vectors * width, blocks = ceil_div(call.p, block);
    const V inverse_c = broadcast<V>(1.0 / call.c), eps = broadcast<V>(call.eps);
    const Here shared(call, call.p, width);

    parallel_for(call.n * blocks, worth_threads(call.n * call.c * call.p), [&](int64_t piece) {
        const Here tensors = shared;  // a copy that no store can alias
        const int64_t c = call.c, p = call.p;
        const int64_t from = piece % blocks * block, at = piece / blocks * c * p + from;
        if (from + block <= p) {
            Products<V> sums[vectors] = {};
            add_channels<vectors, false>(tensors, at, width, c, p, sums);
            Factors<V> f[vectors];
            for (int k = 0; k < vectors; ++k) f[k] = factors<ORDER>(sums[k], inverse_c, eps);
            for (int64_t j = 0; j < c; ++j) {
                for (int k = 0; k < vectors; ++k) {
                    tensors.template write_positions<false>(at + j * p + k * width, width, f[k]);
                }
            }
        } else {
            for (int64_t k = 0; from + k < p; k += width) {
                const int64_t count = min(p - from - k, width);
                Products<V> sums[1] = {};
                add_channels<1, true>(tensors, at + k, count, c, p, sums);
                const Factors<V> f = factors<ORDER>(sums[0], inverse_c, eps);
                for (int64_t j = 0; j < c; ++j) tensors.template write_positions<true>(at + j * p + k, count, f);
            }
        }
        if (tensors.streamed) stream_fence();
    });
}

template <int ORDER>
void run(const PixelNormCall& call) {
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        call.channels_last ? nhwc<ORDER, T>(call) : nchw<ORDER, T>(call);
    });
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void pixel_norm(const PixelNormCall& call) {
    switch (call.order) {
        case 0: return run<0>(call);
        case 1: return run<1>(call);
        default: return run<2>(call);
    }
}

}  // namespace FASTGAN_ISA
