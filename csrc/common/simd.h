// SIMD vectors for the CPU kernels: width, loads and stores of every activation type, math functions, threads. Written
// with the compiler's vector extensions, so that one source serves SSE2, AVX2, AVX-512 and NEON. Intrinsics appear only
// where the extensions compile to poor code.
//
// Everything lives in the namespace of the instruction set, since the linker merges inline code from objects that were
// built with different flags: the baseline path would then execute AVX-512. For the same reason no template of the
// standard library may be used in CPU kernels.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "common/types.h"

#ifndef FASTGAN_ISA
#error "FASTGAN_ISA names the instruction set: baseline, avx2 or avx512"
#endif

// Names for the arithmetic.h headers, which CPU and CUDA sources share.
#define FASTGAN_VALUES FASTGAN_ISA
#define FASTGAN_INLINE inline

// Marks functions outside of the inner loops that many instantiations call: inlined in all of them, they would make up
// most of the code and of the time to compile it.
#define FASTGAN_NOINLINE __attribute__((noinline))

namespace FASTGAN_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

typedef float VFloat __attribute__((vector_size(VECTOR_BYTES)));
typedef double VDouble __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t VLong __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t VInt __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t VUint __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t VHalf __attribute__((vector_size(VECTOR_BYTES / 2)));  // one for each float of a VFloat

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// Type of the arithmetic for an activation type, and its vector.
template <class T>
struct Arithmetic {
    typedef float Scalar;
    typedef VFloat Vector;
};
template <>
struct Arithmetic<double> {
    typedef double Scalar;
    typedef VDouble Vector;
};

template <class V>
constexpr int lanes() {
    return VECTOR_BYTES / sizeof(V{}[0]);
}

// The same value in every lane. Specialised, since the compiler would insert the lanes one by one.
template <class V>
inline V broadcast(double value);
#if defined(__AVX512F__)
template <>
inline VFloat broadcast<VFloat>(double value) {
    return (VFloat)_mm512_set1_ps((float)value);
}
template <>
inline VDouble broadcast<VDouble>(double value) {
    return (VDouble)_mm512_set1_pd(value);
}
#elif defined(__AVX2__)
template <>
inline VFloat broadcast<VFloat>(double value) {
    return (VFloat)_mm256_set1_ps((float)value);
}
template <>
inline VDouble broadcast<VDouble>(double value) {
    return (VDouble)_mm256_set1_pd(value);
}
#else
template <>
inline VFloat broadcast<VFloat>(double value) {
    float f = (float)value;
    return VFloat{f, f, f, f};
}
template <>
inline VDouble broadcast<VDouble>(double value) {
    return VDouble{value, value};
}
#endif
template <class V>
inline V broadcast(float value) {
    return broadcast<V>((double)value);
}
template <class V>
inline V broadcast(int value) {
    return broadcast<V>((double)value);
}
inline VUint broadcast_bits(uint32_t value) {
#if defined(__AVX512F__)
    return (VUint)_mm512_set1_epi32((int)value);
#elif defined(__AVX2__)
    return (VUint)_mm256_set1_epi32((int)value);
#else
    return VUint{value, value, value, value};
#endif
}

// Sum of all lanes, by halves.
#if defined(__AVX512F__)
inline float sum(VFloat v) { return _mm512_reduce_add_ps((__m512)v); }
inline double sum(VDouble v) { return _mm512_reduce_add_pd((__m512d)v); }
#elif defined(__AVX2__)
inline float sum(VFloat v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
inline double sum(VDouble v) {
    const __m128d a = _mm_add_pd(_mm256_castpd256_pd128((__m256d)v), _mm256_extractf128_pd((__m256d)v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a)));
}
#else
template <class V>
inline auto sum(V v) {
    constexpr int count = lanes<V>();
    decltype(v[0] + v[0]) row[count];
    memcpy(row, &v, sizeof v);
    for (int half = count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) row[i] += row[i + half];
    }
    return row[0];
}
#endif

// 16-bit types ------------------------------------------------------------------------------------------------------

inline VFloat widen(VHalf h, BFloat16) {
#if defined(__AVX512F__)
    return (VFloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif defined(__AVX2__)
    return (VFloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
    return (VFloat)(__builtin_convertvector(h, VUint) << 16);
#endif
}

// Rounds to nearest even; a NaN becomes a quiet NaN. AVX-512 flushes subnormals (below 2^-126) to 0.
inline VHalf narrow(VFloat f, BFloat16) {
#if defined(__AVX512F__)
    return (VHalf)_mm512_cvtneps_pbh((__m512)f);
#else
    VUint bits = (VUint)f;
    VUint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (f == f) ? rounded : broadcast_bits(0x7fc0u);
#if defined(__AVX2__)
    __m256i packed = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);  // each half of the register by itself
    return (VHalf)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(rounded, VHalf);
#endif
#endif
}

inline VFloat widen(VHalf h, Float16) {
#if defined(__AVX512F__)
    return (VFloat)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (VFloat)_mm256_cvtph_ps((__m128i)h);
#else
    VUint bits = __builtin_convertvector(h, VUint);
    VUint sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
    VUint normal = (rest << 13) + (112u << 23);
    VUint special = (rest << 13) | 0x7f800000;                                                // infinity and NaN
    VFloat subnormal = __builtin_convertvector((VInt)rest, VFloat) * 5.9604644775390625e-8f;  // 2^-24
    VUint magnitude = rest >= 0x7c00 ? special : (rest < 0x400 ? (VUint)subnormal : normal);
    return (VFloat)(magnitude | sign);
#endif
}

inline VHalf narrow(VFloat f, Float16) {
#if defined(__AVX512F__)
    return (VHalf)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (VHalf)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    VUint bits = (VUint)f;
    VUint sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    VUint normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
    // Below the smallest normal fp16 number, adding 0.5 leaves the rounded mantissa in the low bits.
    VUint subnormal = (VUint)((VFloat)rest + 0.5f) - 0x3f000000u;
    VUint magnitude = rest < (113u << 23) ? subnormal : normal;
    magnitude = rest >= 0x477ff000u ? broadcast_bits(0x7c00u) : magnitude;  // overflow after rounding, or infinity
    magnitude = rest > 0x7f800000u ? broadcast_bits(0x7e00u) : magnitude;
    return __builtin_convertvector(magnitude | sign, VHalf);
#endif
}

// Sizes -------------------------------------------------------------------------------------------------------------

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

// Loads and stores --------------------------------------------------------------------------------------------------
// `load_n` and `store_n` access only the first n elements, for the tail of a row. `stream` is a non-temporal store: it
// bypasses the caches and needs an address aligned to the bytes it writes.

inline VFloat load(const float* p) {
    VFloat v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline VDouble load(const double* p) {
    VDouble v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
inline VFloat load(const T* p) {
    VHalf h;
    memcpy(&h, p, sizeof h);
    return widen(h, T{});
}

inline void store(float* p, VFloat v) { memcpy(p, &v, sizeof v); }
inline void store(double* p, VDouble v) { memcpy(p, &v, sizeof v); }
template <class T>
inline void store(T* p, VFloat v) {
    VHalf h = narrow(v, T{});
    memcpy(p, &h, sizeof h);
}

template <class T>
inline auto load_n(const T* p, int64_t n) {
    alignas(VECTOR_BYTES) T row[lanes<typename Arithmetic<T>::Vector>()] = {};
    memcpy(row, p, n * sizeof(T));
    return load(row);
}
template <class T, class V>
inline void store_n(T* p, V v, int64_t n) {
    alignas(VECTOR_BYTES) T row[lanes<V>()];
    store(row, v);
    memcpy(p, row, n * sizeof(T));
}

#if defined(__AVX512F__)
inline void stream_bytes(void* p, VFloat v) { _mm512_stream_ps((float*)p, (__m512)v); }
inline void stream_bytes(void* p, VDouble v) { _mm512_stream_pd((double*)p, (__m512d)v); }
inline void stream_bytes(void* p, VHalf v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
#elif defined(__AVX2__)
inline void stream_bytes(void* p, VFloat v) { _mm256_stream_ps((float*)p, (__m256)v); }
inline void stream_bytes(void* p, VDouble v) { _mm256_stream_pd((double*)p, (__m256d)v); }
inline void stream_bytes(void* p, VHalf v) { _mm_stream_si128((__m128i*)p, (__m128i)v); }
#elif defined(__SSE2__)
inline void stream_bytes(void* p, VFloat v) { _mm_stream_ps((float*)p, (__m128)v); }
inline void stream_bytes(void* p, VDouble v) { _mm_stream_pd((double*)p, (__m128d)v); }
inline void stream_bytes(void* p, VHalf v) {
    long long bits;
    memcpy(&bits, &v, sizeof bits);
    _mm_stream_si64((long long*)p, bits);
}
#else
template <class V>
inline void stream_bytes(void* p, V v) {
    memcpy(p, &v, sizeof v);
}
#endif
inline void stream(float* p, VFloat v) { stream_bytes(p, v); }
inline void stream(double* p, VDouble v) { stream_bytes(p, v); }
template <class T>
inline void stream(T* p, VFloat v) {
    stream_bytes(p, narrow(v, T{}));
}
// Whether an output of this size is better streamed: it will not stay in the caches, and a plain store would first read
// the lines that it overwrites.
inline bool worth_streaming(int64_t bytes) { return bytes >= (24 << 20); }
inline bool is_aligned(const void* p) { return (uintptr_t)p % VECTOR_BYTES == 0; }
inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Prefetches the data AHEAD bytes after `p`, for a loop that advances through it. Hardware prefetchers look less far
// ahead.
template <int AHEAD = 2048, class T>
inline void prefetch(const T* p) {
    __builtin_prefetch((const char*)p + AHEAD);
}

// Words -------------------------------------------------------------------------------------------------------------
// Operands of the matrix products: a 32-bit word holds one fp32 number, or two bf16 numbers whose products are summed.

typedef uint32_t Word;

inline VUint load_words(const Word* p) {
    VUint v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline void store_words(Word* p, VUint v) { memcpy(p, &v, sizeof v); }

// sums + a * b, lane by lane; a lane of bf16 adds both of its products.
inline VFloat add_products(VFloat sums, VUint a, VUint b, float) { return sums + (VFloat)a * (VFloat)b; }
inline VFloat add_products(VFloat sums, VUint a, VUint b, BFloat16) {
#if defined(__AVX512BF16__)
    return (VFloat)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    sums += (VFloat)(a << 16) * (VFloat)(b << 16);
    return sums + (VFloat)(a & 0xffff0000u) * (VFloat)(b & 0xffff0000u);
#endif
}

// Threads -----------------------------------------------------------------------------------------------------------

// Maximum number of threads in a parallel region, and the index of the calling thread.
inline int64_t max_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}
inline int64_t thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// A range [begin, end) of indices. Its owner takes indices from the front, other threads steal from the back.
struct alignas(64) Range {
    uint64_t bounds;  // begin in the lower half, end in the upper

    void set(int64_t begin, int64_t end) { bounds = (uint64_t)end << 32 | (uint64_t)begin; }

    // The next index, or -1 if none is left.
    int64_t take(bool front) {
        uint64_t seen = __atomic_load_n(&bounds, __ATOMIC_RELAXED), left;
        int64_t taken;
        do {
            const int64_t begin = seen & 0xffffffffu, end = seen >> 32;
            if (begin >= end) return -1;
            taken = front ? begin : end - 1;
            left = front ? seen + 1 : seen - ((uint64_t)1 << 32);
        } while (!__atomic_compare_exchange_n(&bounds, &seen, left, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return taken;
    }
};

// parallel_for with the type of its body erased, so that the loop is compiled only once.
FASTGAN_NOINLINE inline void call_for_all(int64_t count, bool parallel, void (*call)(const void*, int64_t),
                                          const void* body) {
#if defined(_OPENMP)
    constexpr int64_t MAX_TEAM = 256;
    const int64_t team = min(max_threads(), MAX_TEAM);
    if (parallel && team > 1 && count > 1) {
        Range ranges[MAX_TEAM];
        for (int64_t i = 0; i < team; ++i) ranges[i].set(count * i / team, count * (i + 1) / team);
#pragma omp parallel num_threads((int)team)
        for (int64_t i = 0; i < team; ++i) {
            Range& range = ranges[(thread_index() + i) % team];
            for (int64_t k = range.take(i == 0); k >= 0; k = range.take(i == 0)) call(body, k);
        }
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) call(body, i);
}

// Work-stealing parallel loop: calls `body(i)` for all i < count (which is below 2^32), on all threads if `parallel`.
//
// Each thread starts with its own contiguous range, the same in every call of one shape (as in torch), so that it finds
// its part of the tensors in its core's cache. It then steals from the ends of the other ranges: a thread may start
// late, since waking up takes as long as a million elements do. Which thread runs an index must not affect the result.
template <class F>
inline void parallel_for(int64_t count, bool parallel, const F& body) {
    call_for_all(count, parallel, [](const void* body, int64_t i) { (*(const F*)body)(i); }, &body);
}

// Whether work on this many elements is worth waking other threads.
inline bool worth_threads(int64_t elements) { return elements > 16384; }

// Groups ------------------------------------------------------------------------------------------------------------
// Channels that a loop handles at once: one vector, but two for bf16. A register of bf16 pairs becomes two float
// vectors by one shift and one mask, and back as cheaply, if the first holds the even channels and the second the odd
// ones. So channels are permuted within a group, and per-channel parameters are laid out in the same order (`slot_of`).

template <class T>
struct Group {
    typedef typename Arithmetic<T>::Vector V;
    static constexpr int vectors = 1;
    static constexpr int size = lanes<V>();
    static int slot(int channel) { return channel; }  // position of a channel in its group
    V v[vectors];
};

template <class T>
inline Group<T> load_group(const T* p) {
    return {{load(p)}};
}
template <class T>
inline void store_group(T* p, const Group<T>& g) {
    store(p, g.v[0]);
}
template <class T>
inline void stream_group(T* p, const Group<T>& g) {
    stream(p, g.v[0]);
}

template <>
struct Group<BFloat16> {
    static constexpr int vectors = 2;
    static constexpr int size = 2 * lanes<VFloat>();
    static int slot(int channel) { return channel % 2 * lanes<VFloat>() + channel / 2; }
    VFloat v[vectors];
};

inline Group<BFloat16> load_group(const BFloat16* p) {
    VUint pairs;
    memcpy(&pairs, p, sizeof pairs);
    return {{(VFloat)(pairs << 16), (VFloat)(pairs & 0xffff0000u)}};
}

inline VUint rounded_to_bfloat16(VFloat f) {  // result in the upper half of each lane; keeps NaN
    VUint bits = (VUint)f;
    VUint up = 0x7fff + ((bits >> 16) & 1);
    return bits + (up & (VUint)(f == f));
}

inline VUint pairs_of(const Group<BFloat16>& g) {
#if defined(__AVX512F__)
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh halves = _mm512_cvtne2ps_pbh((__m512)g.v[1], (__m512)g.v[0]);
    return (VUint)_mm512_permutexvar_epi16(order, (__m512i)halves);
#else
    return (rounded_to_bfloat16(g.v[0]) >> 16) | (rounded_to_bfloat16(g.v[1]) & 0xffff0000u);
#endif
}
inline void store_group(BFloat16* p, const Group<BFloat16>& g) {
    VUint pairs = pairs_of(g);
    memcpy(p, &pairs, sizeof pairs);
}
inline void stream_group(BFloat16* p, const Group<BFloat16>& g) { stream_bytes(p, (VFloat)pairs_of(g)); }

// Position of a channel in a row that is laid out in the order of groups.
template <class T>
inline int64_t slot_of(int64_t channel) {
    const int size = Group<T>::size;
    return channel / size * size + Group<T>::slot(channel % size);
}

template <class T>
inline Group<T> load_group_n(const T* p, int64_t n) {
    alignas(VECTOR_BYTES) T row[Group<T>::size] = {};
    memcpy(row, p, n * sizeof(T));
    return load_group((const T*)row);
}
template <class T>
inline void store_group_n(T* p, const Group<T>& g, int64_t n) {
    alignas(VECTOR_BYTES) T row[Group<T>::size];
    store_group((T*)row, g);
    memcpy(p, row, n * sizeof(T));
}

// Stores a vector or a group, streaming if `streamed`; PART stores only its first n elements.
template <bool PART, class T, class V>
inline void put(T* p, V v, int64_t n, bool streamed) {
    if constexpr (PART) {
        store_n(p, v, n);
    } else if (streamed) {
        stream(p, v);
    } else {
        store(p, v);
    }
}
template <bool PART, class T>
inline void put_group(T* p, const Group<T>& g, int64_t n, bool streamed) {
    if constexpr (PART) {
        store_group_n(p, g, n);
    } else if (streamed) {
        stream_group(p, g);
    } else {
        store_group(p, g);
    }
}

// Tags for generic lambdas over a row: a whole vector (or group), or the first elements of one.
struct Whole {
    static constexpr bool part = false;
};
struct Part {
    static constexpr bool part = true;
};

// Whether to stream `bytes` of output into `to` (and a second output `also`), written in units of `unit` elements along
// rows of `row` elements: every store must be aligned.
inline bool should_stream(int64_t bytes, int64_t row, int64_t unit, const void* to, const void* also = nullptr) {
    return is_aligned(to) && is_aligned(also) && row % unit == 0 && worth_streaming(bytes);
}

// Dtypes ------------------------------------------------------------------------------------------------------------

// Calls f(T()) with the element type T of a dtype.
template <class F>
inline void for_dtype(fastgan::Dtype dtype, const F& f) {
    switch (dtype) {
        case fastgan::Dtype::float32: return f(float());
        case fastgan::Dtype::bfloat16: return f(BFloat16());
        case fastgan::Dtype::float16: return f(Float16());
        case fastgan::Dtype::float64: return f(double());
    }
}

inline int64_t arithmetic_bytes(fastgan::Dtype dtype) {
    return dtype == fastgan::Dtype::float64 ? sizeof(double) : sizeof(float);
}

// Functions ---------------------------------------------------------------------------------------------------------

template <class V>
inline V minimum(V a, V b) {
    return a < b ? a : b;
}
template <class V>
inline V maximum(V a, V b) {
    return a > b ? a : b;
}
// a * b, rounded: never contracted with a following sum.
template <class V>
inline V rounded_product(V a, V b) {
    V c = a * b;
#if defined(__x86_64__)
    asm("" : "+v"(c));
#elif defined(__aarch64__)
    asm("" : "+w"(c));
#endif
    return c;
}
inline VFloat absolute(VFloat a) { return (VFloat)((VInt)a & 0x7fffffff); }
inline VDouble absolute(VDouble a) { return (VDouble)((VLong)a & 0x7fffffffffffffffLL); }

inline float reciprocal_sqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline double reciprocal_sqrt(double x) { return 1.0 / __builtin_sqrt(x); }
inline VFloat reciprocal_sqrt(VFloat x) {
    for (int i = 0; i < lanes<VFloat>(); ++i) x[i] = __builtin_sqrtf(x[i]);
    return 1.0f / x;
}
inline VDouble reciprocal_sqrt(VDouble x) {
    for (int i = 0; i < lanes<VDouble>(); ++i) x[i] = __builtin_sqrt(x[i]);
    return 1.0 / x;
}

// exp to about 1 ulp: 2^n * exp(r), |r| <= ln(2)/2, with the coefficients of Cephes expf. At x >= 88.38, n is 128 and
// 2^n has the bits of infinity: sigmoid far below zero becomes 0, as elsewhere. Below -87.3 the result stays at
// 1.2e-38.
inline VFloat exponential(VFloat x) {
    x = minimum(broadcast<VFloat>(88.7f), maximum(broadcast<VFloat>(-87.3f), x));  // keeps NaN
    VFloat n = x * 1.44269504088896341f + 12582912.0f - 12582912.0f;               // round to an integer
    VFloat r = x - n * 0.693359375f + n * 2.12194440e-4f;
    VFloat p = broadcast<VFloat>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (VFloat)((__builtin_convertvector(n, VInt) + 127) << 23);
}

// log(1 + e) for e in [0, 1], with the coefficients of Cephes logf, around the nearer of 1 and 2.
inline VFloat log_one_plus(VFloat e) {
    VInt upper = e > 0.41421356f;
    VFloat x = upper ? (e - 1.0f) * 0.5f : e;
    VFloat p = broadcast<VFloat>(7.0376836292e-2f);
    p = p * x - 1.1514610310e-1f;
    p = p * x + 1.1676998740e-1f;
    p = p * x - 1.2420140846e-1f;
    p = p * x + 1.4249322787e-1f;
    p = p * x - 1.6668057665e-1f;
    p = p * x + 2.0000714765e-1f;
    p = p * x - 2.4999993993e-1f;
    p = p * x + 3.3333331174e-1f;
    p = p * x * x * x - 0.5f * x * x + x;
    return upper ? p + 0.693147180559945309f : p;
}

// tanh: below 0.625 the polynomial of Cephes tanhf; above, 1 - 2 / (exp(2|x|) + 1).
inline VFloat hyperbolic_tangent(VFloat x) {
    VFloat z = x * x;
    VFloat p = broadcast<VFloat>(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    p = p * z * x + x;
    VFloat magnitude = absolute(x);
    VFloat far = 1.0f - 2.0f / (exponential(magnitude + magnitude) + 1.0f);
    return magnitude < 0.625f ? p : (x < 0 ? -far : far);
}

// Double precision is for gradcheck: one lane at a time.
inline VDouble exponential(VDouble x) {
    for (int i = 0; i < lanes<VDouble>(); ++i) x[i] = __builtin_exp(x[i]);
    return x;
}
inline VDouble log_one_plus(VDouble x) {
    for (int i = 0; i < lanes<VDouble>(); ++i) x[i] = __builtin_log1p(x[i]);
    return x;
}
inline VDouble hyperbolic_tangent(VDouble x) {
    for (int i = 0; i < lanes<VDouble>(); ++i) x[i] = __builtin_tanh(x[i]);
    return x;
}

}  // namespace FASTGAN_ISA
