// image_batch on the CPU, compiled once per instruction set.
//
// Images that are not mirrored are converted as one run of bytes. Rows of mirrored images are first reversed, piece by
// piece, into a buffer in the L1 cache.
#include "common/simd.h"

#include "image_batch/arithmetic.h"

namespace FASTGAN_ISA {

using fastgan::ImageBatchCall;

namespace {

constexpr int64_t PIECE = 16384;  // approximate number of elements in a piece, which has whole rows
constexpr int64_t BUFFER = 4096;  // bytes mirrored at a time
constexpr int64_t SHUFFLED = 16;  // bytes that one instruction permutes

// Bytes to numbers ----------------------------------------------------------------------------------------------------

inline void widen_bytes(const uint8_t* p, VFloat& v) {
#if defined(__AVX512F__)
    v = (VFloat)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    v = (VFloat)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(__SSE2__)
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const __m128i zero = _mm_setzero_si128(), halves = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bits), zero);
    v = (VFloat)_mm_cvtepi32_ps(_mm_unpacklo_epi16(halves, zero));
#else
    for (int i = 0; i < lanes<VFloat>(); ++i) v[i] = p[i];
#endif
}
inline void widen_bytes(const uint8_t* p, VDouble& v) {
    for (int i = 0; i < lanes<VDouble>(); ++i) v[i] = p[i];
}

template <class T>
inline Group<T> load_bytes(const uint8_t* p) {
    Group<T> g;
    widen_bytes(p, g.v[0]);
    return g;
}
template <>  // even elements first, then odd ones: the order of groups
inline Group<BFloat16> load_bytes<BFloat16>(const uint8_t* p) {
    VHalf pairs;
    memcpy(&pairs, p, sizeof pairs);
#if defined(__AVX512F__)
    const VUint both = (VUint)_mm512_cvtepu16_epi32((__m256i)pairs);
#elif defined(__AVX2__)
    const VUint both = (VUint)_mm256_cvtepu16_epi32((__m128i)pairs);
#else
    const VUint both = __builtin_convertvector(pairs, VUint);
#endif
    return {
        {__builtin_convertvector((VInt)(both & 0xffu), VFloat), __builtin_convertvector((VInt)(both >> 8), VFloat)}};
}

template <class T>
inline Group<T> scaled_group(const uint8_t* p) {
    Group<T> g = load_bytes<T>(p);
    for (int k = 0; k < Group<T>::vectors; ++k) g.v[k] = scaled(g.v[k]);
    return g;
}

template <class T>
inline void convert(const uint8_t* x, T* y, int64_t count, bool may_stream) {
    const int64_t width = Group<T>::size, whole = count / width * width;
    const bool streamed = may_stream && is_aligned(y);
    for (int64_t i = 0; i < whole; i += width) {
        const Group<T> g = scaled_group<T>(x + i);
        put_group<false>(y + i, g, width, streamed);
    }
    if (whole < count) {
        uint8_t row[Group<T>::size] = {};
        memcpy(row, x + whole, count - whole);
        store_group_n(y + whole, scaled_group<T>(row), count - whole);
    }
}

// Mirroring -----------------------------------------------------------------------------------------------------------

// Mirrors rows of pixels with C channels (`channels` if C is 0).
template <int C>
class Reverser {
public:
    explicit Reverser(int64_t channels) : c(C ? C : channels), at_once(SHUFFLED / c) {
        for (int64_t i = 0; i < SHUFFLED; ++i) {
            order[i] = i < at_once * c ? uint8_t((at_once - 1 - i / c) * c + i % c) : uint8_t(0x80);
        }
    }

    // Converts a row of `w` pixels, the last pixel first.
    template <class T>
    void convert_row(const uint8_t* row, T* y, int64_t w, bool may_stream) const {
        if (c > SHUFFLED) {  // long pixels need no buffer
            for (int64_t i = 0; i < w; ++i) convert(row + (w - 1 - i) * c, y + i * c, c, may_stream);
            return;
        }
        alignas(VECTOR_BYTES) uint8_t buffer[BUFFER + SHUFFLED];  // shuffles write past the last pixel
        const int64_t pixels = BUFFER / c;
        for (int64_t from = 0; from < w; from += pixels) {
            const int64_t count = min(pixels, w - from);
            reverse(row + (w - from - count) * c, buffer, count);
            convert(buffer, y + from * c, count * c, may_stream);
        }
    }

private:
    inline void copy_mirrored(const uint8_t* x, uint8_t* y, int64_t count, int64_t i) const {
        const int64_t channels = C ? C : c;
        for (int64_t k = 0; k < channels; ++k) y[i * channels + k] = x[(count - 1 - i) * channels + k];
    }

    inline void reverse(const uint8_t* x, uint8_t* y, int64_t count) const {
        int64_t i = 0;
#if defined(__SSSE3__)
        // A shuffle reads 16 bytes, which may reach into the pixel after those it reverses. So the row's last pixel,
        // which has none after it, is copied alone.
        if (SHUFFLED % c) copy_mirrored(x, y, count, i++);
        const __m128i to = _mm_loadu_si128((const __m128i*)order);
        for (; i + at_once <= count; i += at_once) {
            const __m128i pixels = _mm_loadu_si128((const __m128i*)(x + (count - i - at_once) * c));
            _mm_storeu_si128((__m128i*)(y + i * c), _mm_shuffle_epi8(pixels, to));
        }
#endif
        for (; i < count; ++i) copy_mirrored(x, y, count, i);
    }

    int64_t c, at_once;       // channels; pixels in a shuffle
    uint8_t order[SHUFFLED];  // source index of each byte in a shuffle
};

// --------------------------------------------------------------------------------------------------------------------

template <class T, int C>
void image_batch(const ImageBatchCall& call) {
    const uint8_t *pixels = (const uint8_t*)call.pixels, *mirrored = (const uint8_t*)call.mirrored;
    const int64_t* index = (const int64_t*)call.index;
    const int64_t row = call.w * call.c, size = call.h * row, count = call.n * size;
    const int64_t rows = row < PIECE ? PIECE / row : 1, pieces = ceil_div(call.h, rows);
    const bool may_stream = worth_streaming(count * sizeof(T));
    const Reverser<C> reverser(call.c);

    parallel_for(call.n * pieces, worth_threads(count), [&](int64_t piece) {
        const int64_t sample = piece / pieces, from = piece % pieces * rows;
        const int64_t to = min(from + rows, call.h);
        const uint8_t* x = pixels + (index ? index[sample] : sample) * size;
        T* y = (T*)call.y + sample * size;
        if (mirrored && mirrored[sample]) {
            for (int64_t h = from; h < to; ++h) reverser.convert_row(x + h * row, y + h * row, call.w, may_stream);
        } else {
            convert(x + from * row, y + from * row, (to - from) * row, may_stream);
        }
        if (may_stream) stream_fence();
    });
}

template <class T>
void for_channels(const ImageBatchCall& call) {
    if constexpr (sizeof(T) < sizeof(double)) {
        if (call.c == 1) return image_batch<T, 1>(call);
        if (call.c == 3) return image_batch<T, 3>(call);
    }
    image_batch<T, 0>(call);
}

}  // namespace

// Entry points, called through FASTGAN_CPU_ENTRY (common/isa.h).

void image_batch(const ImageBatchCall& call) {
    for_dtype(call.dtype, [&](auto element) { for_channels<decltype(element)>(call); });
}

}  // namespace FASTGAN_ISA
