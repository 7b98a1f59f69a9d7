// squared_norm and lerp_samples on the CPU, compiled once per instruction set.
//
// Rows are cut into pieces whose size depends on the shape alone. Each piece writes its own sum, and these are added up
// in a fixed order, so that results do not depend on the number of threads.
#include "common/simd.h"

#include "samples/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::SamplesCall;

namespace {

// Elements in a piece: enough to hide its start-up, few enough for an even split. Longer sums would round more.
constexpr int64_t MAPPED = 16384, SUMMED = 512;

template <int64_t PIECE>
int64_t pieces_of(const SamplesCall& call) {
    return ceil_div(call.size, PIECE);
}

// Calls `body(Whole(), index, size)` for each group of a piece, and `body(Part(), index, count)` for its tail.
template <class T, int64_t PIECE, class Body>
inline void for_groups(const SamplesCall& call, int64_t piece, const Body& body) {
    const int64_t pieces = pieces_of<PIECE>(call), width = Group<T>::size;
    const int64_t from = piece % pieces * PIECE, to = min(from + PIECE, call.size);
    const int64_t begin = piece / pieces * call.size + from, whole = (to - from) / width * width;
    for (int64_t i = 0; i < whole; i += width) body(Whole{}, begin + i, width);
    if (from + whole < to) body(Part{}, begin + whole, to - from - whole);
}

template <bool PART, class T>
inline Group<T> get(const T* p, int64_t count) {
    if constexpr (PART) return load_group_n(p, count);
    prefetch(p);
    return load_group(p);
}

template <SampleMap MAP, class T>
void map(const SamplesCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const T *a = (const T*)call.a, *b = (const T*)call.b;
    T *first = (T*)call.first, *second = (T*)call.second;
    const int64_t count = call.n * call.size;
    const bool streamed = should_stream(count * sizeof(T), call.size, Group<T>::size, first, second);
    const int64_t pieces = pieces_of<MAPPED>(call);

    parallel_for(call.n * pieces, worth_threads(count), [&](int64_t piece) {
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
void sum_of_squares(const SamplesCall& call) {
    typedef typename Arithmetic<T>::Scalar S;
    typedef typename Arithmetic<T>::Vector V;
    const T* x = (const T*)call.a;
    S* partial = (S*)call.workspace;
    const int64_t pieces = pieces_of<SUMMED>(call);

    parallel_for(call.n * pieces, worth_threads(call.n * call.size), [&](int64_t piece) {
        const int chains = 4;  // independent additions
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
void map(const SamplesCall& call) {
    for_dtype(call.dtype, [&](auto element) { map<MAP, decltype(element)>(call); });
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void squared_norm_forward(const SamplesCall& call) {
    for_dtype(call.dtype, [&](auto element) { sum_of_squares<decltype(element)>(call); });
}
void squared_norm_backward(const SamplesCall& call) { map<SampleMap::scale>(call); }
void lerp_samples_forward(const SamplesCall& call) { map<SampleMap::lerp>(call); }
void lerp_samples_backward(const SamplesCall& call) { map<SampleMap::split>(call); }

int64_t squared_norm_workspace(const SamplesCall& call) {
    const int64_t pieces = call.n * pieces_of<SUMMED>(call);
    return pieces * arithmetic_bytes(call.dtype);
}

}  // namespace FASTGAN_ISA
