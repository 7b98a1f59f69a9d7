// squared_norm and lerp_samples on the CPU: compiled once for each instruction set, in the namespace of that name.
//
// The rows are cut into pieces of a size that depends on the shape alone; each writes its own sum, and these are added up
// in order: results do not depend on the number of threads.
#include "common/simd.h"

#include "samples/arithmetic.h"

namespace FASTGAN_ISA::of_samples {

using fastgan::Dtype;
using fastgan::SamplesCall;

// Numbers of a piece: enough to hide its start, few enough to share out evenly. A longer sum would round more.
constexpr int64_t MAPPED = 16384, SUMMED = 512;

template <int64_t PIECE>
static int64_t pieces_of(const SamplesCall& call) {
    return (call.size + PIECE - 1) / PIECE;
}

// `body(whole, index, count)` for the groups of a piece, and with `part` for what remains of one.
struct Whole {
    static constexpr bool part = false;
};
struct Part {
    static constexpr bool part = true;
};

template <class T, int64_t PIECE, class Body>
static inline void for_groups(const SamplesCall& call, int64_t piece, const Body& body) {
    const int64_t pieces = pieces_of<PIECE>(call), width = Group<T>::size;
    const int64_t from = piece % pieces * PIECE, to = from + PIECE < call.size ? from + PIECE : call.size;
    const int64_t begin = piece / pieces * call.size + from, whole = (to - from) / width * width;
    for (int64_t i = 0; i < whole; i += width) body(Whole{}, begin + i, width);
    if (from + whole < to) body(Part{}, begin + whole, to - from - whole);
}

template <bool PART, class T>
static inline Group<T> get(const T* p, int64_t count) {
    if constexpr (PART) return load_group_n(p, count);
    prefetch(p);
    return load_group(p);
}

template <SampleMap MAP, class T>
static void map(const SamplesCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const T *a = (const T*)call.a, *b = (const T*)call.b;
    T *first = (T*)call.first, *second = (T*)call.second;
    const int64_t count = call.n * call.size;
    const bool aligned = is_aligned(first) && is_aligned(second) && call.size % Group<T>::size == 0;
    const bool streamed = aligned && worth_streaming(count * sizeof(T));
    const int64_t pieces = pieces_of<MAPPED>(call);

    parallel_for(call.n * pieces, count > 16384, [&](int64_t piece) {
        const V weight = broadcast<V>(((const S*)call.weight)[piece / pieces]);
        for_groups<T, MAPPED>(call, piece, [&](auto extent, int64_t i, int64_t there) {
            constexpr bool part = decltype(extent)::part;
            Group<T> x = get<part>(a + i, there), y = x, one, two;
            if constexpr (MAP == SampleMap::lerp) y = get<part>(b + i, there);
            for (int k = 0; k < Group<T>::vectors; ++k) {
                const Mapped<V> result = mapped<MAP>(x.v[k], y.v[k], weight);
                one.v[k] = result.first, two.v[k] = result.second;
            }
            put_group<part>(first + i, one, there, streamed);
            if constexpr (MAP == SampleMap::split) {
                if (second) put_group<part>(second + i, two, there, streamed);
            }
        });
        if (streamed) stream_fence();
    });
}

template <class T>
static void sum_of_squares(const SamplesCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const T* x = (const T*)call.a;
    S* partial = (S*)call.workspace;
    const int64_t pieces = pieces_of<SUMMED>(call);

    parallel_for(call.n * pieces, call.n * call.size > 16384, [&](int64_t piece) {
        const int chains = 4;  // of additions, which do not wait for each other
        V sums[chains][Group<T>::vectors] = {};
        int turn = 0;
        for_groups<T, SUMMED>(call, piece, [&](auto extent, int64_t i, int64_t there) {
            const Group<T> v = get<decltype(extent)::part>(x + i, there);
            for (int k = 0; k < Group<T>::vectors; ++k) sums[turn][k] += v.v[k] * v.v[k];
            turn = (turn + 1) % chains;
        });
        V total = {};
        for (int k = 0; k < Group<T>::vectors; ++k) {
            total += (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]);
        }
        partial[piece] = sum(total);
    });
    for (int64_t sample = 0; sample < call.n; ++sample) {
        double total = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) total += partial[sample * pieces + piece];
        ((S*)call.sums)[sample] = S(total);
    }
}

template <SampleMap MAP>
static void map_for_dtype(const SamplesCall& call) {
    switch (call.dtype) {
        case Dtype::float32: return map<MAP, float>(call);
        case Dtype::bfloat16: return map<MAP, BFloat16>(call);
        case Dtype::float16: return map<MAP, Float16>(call);
        case Dtype::float64: return map<MAP, double>(call);
    }
}

}  // namespace FASTGAN_ISA::of_samples

namespace FASTGAN_ISA {

using fastgan::SamplesCall;

void squared_norm_forward(const SamplesCall& call) {
    switch (call.dtype) {
        case fastgan::Dtype::float32: return of_samples::sum_of_squares<float>(call);
        case fastgan::Dtype::bfloat16: return of_samples::sum_of_squares<BFloat16>(call);
        case fastgan::Dtype::float16: return of_samples::sum_of_squares<Float16>(call);
        case fastgan::Dtype::float64: return of_samples::sum_of_squares<double>(call);
    }
}
void squared_norm_backward(const SamplesCall& call) { of_samples::map_for_dtype<SampleMap::scale>(call); }
void lerp_samples_forward(const SamplesCall& call) { of_samples::map_for_dtype<SampleMap::lerp>(call); }
void lerp_samples_backward(const SamplesCall& call) { of_samples::map_for_dtype<SampleMap::split>(call); }

int64_t squared_norm_workspace(const SamplesCall& call) {
    const int64_t pieces = call.n * of_samples::pieces_of<of_samples::SUMMED>(call);
    return pieces * (call.dtype == fastgan::Dtype::float64 ? sizeof(double) : sizeof(float));
}

}  // namespace FASTGAN_ISA
