// Lets a C++ compiler accept the CUDA sources: csrc/common/gpu.h includes this header under -DFASTGAN_EMULATE, and
// scheduler.cpp executes the kernels. For tests only.
//
// The threads of a block run as fibers, in turn, on one CPU thread; the blocks run one after another. Barriers,
// shuffles and votes are switches between fibers, so that each of their rules can be checked. A violation becomes a
// std::runtime_error out of gpu::Launch, with file, line, kernel, block and thread.
//
// Nothing here depends on a CUDA toolkit: the 16-bit types are defined below, and kernels reach them through gpu::to
// and gpu::from. The conversions are those of the GPU, bit for bit, up to the payload of a NaN.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

struct Place {
    const char* file;
    int line;
};

struct Configuration {
    dim3 grid, block;
    std::size_t shared_bytes;
    Place place;
};

// The values of threadIdx, blockIdx, blockDim and gridDim; the scheduler updates them at every switch.
struct Current {
    uint3 thread, block;
    dim3 block_extent, grid_extent;
};
extern Current current;

enum class WarpOperation { shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all, sync };

void launch(const Configuration& configuration, const void* kernel, void (*thread)(void*), void* body);
[[noreturn]] void complain(const char* what, Place place);
int barrier(bool predicate, Place place);  // returns the number of threads whose predicate holds
std::uint64_t warp_operation(WarpOperation operation, unsigned mask, std::uint64_t value, int argument, int width,
                             Place place);
void* static_shared(const void* declaration, std::size_t bytes, std::size_t alignment, const char* name, Place place);
void* dynamic_shared();
void check_global(const void* p, Place place);  // a store to global memory
int attribute(const char* name, int value);     // of the device, by its name in cudaDevAttr
unsigned skipped_blocks();                      // blocks before this one that are not executed (FASTGAN_EMULATED_ENDS)
void check_wait(bool satisfied, Place place);   // blocks run one after another: none can wait

// Marks accesses in its scope as the last to their bytes, for traffic.cpp. Calls, which accesses cannot be moved across.
extern bool last_access;
void mark_last_access(bool last);
struct LastAccess {
    explicit LastAccess(bool last) { mark_last_access(last); }
    ~LastAccess() { mark_last_access(false); }
};

inline void check_alignment(const void* p, std::size_t bytes, Place place) {
    if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) complain("misaligned vector access", place);
}

template <class T>
T shuffle(WarpOperation operation, unsigned mask, T value, int argument, int width, Place place) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves at most 8 bytes");
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    word = warp_operation(operation, mask, word, argument, width, place);
    std::memcpy(&value, &word, sizeof(T));
    return value;
}

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace emulation

#define threadIdx (::emulation::current.thread)
#define blockIdx (::emulation::current.block)
#define blockDim (::emulation::current.block_extent)
#define gridDim (::emulation::current.grid_extent)
constexpr int warpSize = 32;

// A reference to an array, so that the sanitizers know its extents. The static variable identifies the declaration: one
// for each instantiation of a template, as on the GPU.
#define SHARED(T, name, extents)                                        \
    static char name##_declaration;                                     \
    auto& name = *static_cast<T(*) extents>(::emulation::static_shared( \
        &name##_declaration, sizeof(T extents), alignof(T), #name, ::emulation::Place{__FILE__, __LINE__}))

#define DYN_SHARED(T, name)                                                          \
    static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes"); \
    T* name = static_cast<T*>(::emulation::dynamic_shared())

// ------------------------------------------------------------------------------------------------- barriers and warps

#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_PLACE) { emulation::barrier(false, {file, line}); }
inline int __syncthreads_count(int p, EMULATION_PLACE) { return emulation::barrier(p != 0, {file, line}); }
inline int __syncthreads_or(int p, EMULATION_PLACE) { return emulation::barrier(p != 0, {file, line}) != 0; }
inline int __syncthreads_and(int p, EMULATION_PLACE) { return emulation::barrier(p == 0, {file, line}) == 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_PLACE) {
    emulation::warp_operation(emulation::WarpOperation::sync, mask, 0, 0, 32, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int p, EMULATION_PLACE) {
    return static_cast<unsigned>(
        emulation::warp_operation(emulation::WarpOperation::ballot, mask, p != 0, 0, 32, {file, line}));
}
inline int __any_sync(unsigned mask, int p, EMULATION_PLACE) {
    return static_cast<int>(
        emulation::warp_operation(emulation::WarpOperation::any, mask, p != 0, 0, 32, {file, line}));
}
inline int __all_sync(unsigned mask, int p, EMULATION_PLACE) {
    return static_cast<int>(
        emulation::warp_operation(emulation::WarpOperation::all, mask, p != 0, 0, 32, {file, line}));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_PLACE) {
    return emulation::shuffle(emulation::WarpOperation::shuffle, mask, value, source, width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_PLACE) {
    return emulation::shuffle(emulation::WarpOperation::shuffle_up, mask, value, static_cast<int>(delta), width,
                              {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_PLACE) {
    return emulation::shuffle(emulation::WarpOperation::shuffle_down, mask, value, static_cast<int>(delta), width,
                              {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATION_PLACE) {
    return emulation::shuffle(emulation::WarpOperation::shuffle_xor, mask, value, lane_mask, width, {file, line});
}

#undef EMULATION_PLACE

// ------------------------------------------------------------------------------- memory: only one fiber runs at a time

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T value) {
    *p = value;
}

template <class T>
T emulated_atomic(T* p, T value) {
    T old = *p;
    *p = value;
    return old;
}
template <class T>
T atomicAdd(T* p, T value) {
    return emulated_atomic(p, static_cast<T>(*p + value));
}
template <class T>
T atomicMax(T* p, T value) {
    return emulated_atomic(p, *p < value ? value : *p);
}
template <class T>
T atomicMin(T* p, T value) {
    return emulated_atomic(p, value < *p ? value : *p);
}
template <class T>
T atomicExch(T* p, T value) {
    return emulated_atomic(p, value);
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
    return emulated_atomic(p, *p == expected ? value : *p);
}

// ---------------------------------------------------------------------------------------------------------- arithmetic

template <class T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
    return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7u) * 8 & 255u) << 8 * i;
    return result;
}
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

struct __half {
    std::uint16_t bits;
};

struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    return emulation::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16(float x) {
    const auto word = emulation::bit_cast<std::uint32_t>(x);
    if (x != x) return {0x7fff};
    return {static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16)};  // to nearest, ties to even
}

inline float __half2float(__half x) {
    const std::uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, fraction = x.bits & 0x3ffu;
    if (exponent == 0) {  // subnormal: a multiple of 2^-24
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const std::uint32_t rebiased = exponent == 31 ? 255 : exponent + (127 - 15);
    return emulation::bit_cast<float>(sign | rebiased << 23 | fraction << 13);
}

inline __half __float2half(float x) {
    if (x != x) return {0x7fff};
    const auto word = emulation::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = word >> 16 & 0x8000u;
    std::uint32_t magnitude = word & 0x7fffffffu;
    if (magnitude >= 0x477ff000u) {  // 65520 (halfway between the largest finite value and the next) and above
        magnitude = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: the last bit of 0.5f is worth 2^-24, so adding 0.5f rounds
        const float rounded = emulation::bit_cast<float>(magnitude) + 0.5f;
        magnitude = emulation::bit_cast<std::uint32_t>(rounded) - 0x3f000000u;
    } else {  // to nearest even; a carry into the exponent is right
        magnitude = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - ((127u - 15u) << 23)) >> 13;
    }
    return {static_cast<std::uint16_t>(sign | magnitude)};
}
