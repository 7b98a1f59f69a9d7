// The only header through which the CUDA sources reach the GPU: kernel launches, shared memory, vector access, sums.
//
// A .cu file includes this header, the C++ standard library and headers of this folder, nothing else. It is compiled
// twice: by nvcc for the GPU, and by an ordinary C++ compiler with -DFASTGAN_EMULATE for the tests, which execute the
// kernels on the CPU and check them (see tests/emulation/cuda_emulation.h). For both to work:
//
//   * launch through gpu::Launch, declare shared memory with SHARED and DYN_SHARED: no <<<>>>, no raw __shared__;
//   * no inline PTX, cooperative groups, wmma, cp.async or __activemask;
//   * every thread of a block reaches every __syncthreads(): use a `live` flag, not an early return;
//   * masks of warp operations name exactly the lanes that take part; blocks are whole warps, or masks are exact;
//   * a block waits only for blocks with an earlier ticket (gpu::take_ticket);
//   * no object in a kernel has a destructor that matters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#ifdef FASTGAN_EMULATE

#include "cuda_emulation.h"

// Device functions whose errors the emulation reports take the caller's file and line as last, default arguments;
// GPU_HERE passes them on. Only the emulation has these arguments.
#define GPU_PLACE , const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define GPU_HERE , file, line
#define GPU_BARRIER() __syncthreads(file, line)
#define GPU_UNROLL

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if defined(__GNUC__)
#include <cxxabi.h>

#include <cstdlib>
#endif

#define GPU_PLACE
#define GPU_HERE
#define GPU_BARRIER() __syncthreads()
#define GPU_UNROLL _Pragma("unroll")  // stands before loops over registers

// SHARED(float, tile, [16][17]) declares an array in static shared memory.
#define SHARED(T, name, extents) __shared__ T name extents

// DYN_SHARED(float, rows) declares a pointer to the launch's dynamic shared memory. All such declarations in a kernel
// name the same bytes. The untyped array behind it lets instantiations of a template use different types.
#define DYN_SHARED(T, name)                                                          \
    extern __shared__ __align__(16) unsigned char fastgan_dynamic_shared[];          \
    static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes"); \
    T* name = reinterpret_cast<T*>(fastgan_dynamic_shared)

#endif  // FASTGAN_EMULATE

namespace gpu {

constexpr int warp_size = 32;
constexpr unsigned full_mask = 0xffffffffu;

// ---------------------------------------------------------------------------------------------------------- launches

namespace detail {

// A 64-bit count passed to a 32-bit kernel parameter would be truncated silently, as with <<<>>>.
template <class P, class A>
constexpr bool fits_parameter = !(std::is_integral_v<P> && std::is_integral_v<A>) || sizeof(A) <= sizeof(P);

#ifndef FASTGAN_EMULATE

inline std::string name_of(const void* kernel) {
#if CUDART_VERSION >= 12030
    const char* mangled = nullptr;
    if (cudaFuncGetName(&mangled, kernel) == cudaSuccess && mangled != nullptr) {
#if defined(__GNUC__)
        int status = 0;
        if (char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status)) {
            std::string name = plain;
            std::free(plain);
            return name;
        }
#endif
        return mangled;
    }
#endif
    return "a kernel";
}

inline std::string shape(dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // clears the error, which torch would report again at a later call
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

#endif

}  // namespace detail

// gpu::Launch(grid, block, shared_bytes, stream)(kernel<float, 4>, arguments...) launches a kernel. `stream` is a
// cudaStream_t. Raises the kernel's limit of dynamic shared memory as needed. Throws std::runtime_error with kernel,
// launch shape and cause if the launch is refused; errors while a kernel runs surface later.
class Launch {
public:
#ifdef FASTGAN_EMULATE
    Launch(dim3 grid, dim3 block, std::size_t shared_bytes, void* stream, const char* file = __builtin_FILE(),
           int line = __builtin_LINE())
        : configuration_{grid, block, shared_bytes, {file, line}} {
        (void)stream;
    }
#else
    Launch(dim3 grid, dim3 block, std::size_t shared_bytes, void* stream)
        : grid_(grid), block_(block), shared_bytes_(shared_bytes), stream_(static_cast<cudaStream_t>(stream)) {}
#endif

    template <class... P, class... A>
    void operator()(void (*kernel)(P...), A... arguments) const {
        static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
        static_assert((detail::fits_parameter<P, A> && ...),
                      "an integer argument is wider than the kernel's parameter");
        std::tuple<P...> parameters(static_cast<P>(arguments)...);
#ifdef FASTGAN_EMULATE
        auto thread = [&] { std::apply(kernel, parameters); };
        emulation::launch(
            configuration_, reinterpret_cast<const void*>(kernel),
            [](void* body) { (*static_cast<decltype(thread)*>(body))(); }, &thread);
#else
        std::apply(
            [&](P&... p) { submit(reinterpret_cast<const void*>(kernel), {static_cast<void*>(&p)..., nullptr}); },
            parameters);
#endif
    }

private:
#ifdef FASTGAN_EMULATE
    emulation::Configuration configuration_;
#else
    template <std::size_t N>
    void submit(const void* kernel, void* (&&pointers)[N]) const {
        // Static shared memory counts towards the same 48 KB that need no permission, hence the lower threshold.
        cudaError_t status = cudaSuccess;
        if (shared_bytes_ > 16 * 1024) {
            status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes_));
        }
        if (status == cudaSuccess) status = cudaLaunchKernel(kernel, grid_, block_, pointers, shared_bytes_, stream_);
        if (status != cudaSuccess) {
            const std::string what = "launch of " + detail::name_of(kernel) + " with grid " + detail::shape(grid_) +
                                     ", block " + detail::shape(block_) + ", " + std::to_string(shared_bytes_) +
                                     " bytes of dynamic shared memory";
            detail::check(status, what.c_str());
        }
    }

    dim3 grid_, block_;
    std::size_t shared_bytes_;
    cudaStream_t stream_;
#endif
};

// Makes `device` current for a scope, since a tensor need not lie on the current GPU. Throws std::runtime_error if
// there is no such device.
class DeviceGuard {
public:
#ifdef FASTGAN_EMULATE
    explicit DeviceGuard(int) {}
#else
    explicit DeviceGuard(int device) {
        detail::check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (device == previous_) return;
        detail::check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
#endif
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    [[maybe_unused]] int previous_ = 0;
    [[maybe_unused]] bool changed_ = false;
};

// Attributes of the current device; the emulation has those of an H100.
#ifdef FASTGAN_EMULATE
#define GPU_ATTRIBUTE(name, emulated) return emulation::attribute(#name, emulated)
#else
#define GPU_ATTRIBUTE(name, emulated)                                                                   \
    int device = 0, value = 0;                                                                          \
    detail::check(cudaGetDevice(&device), "cudaGetDevice");                                             \
    detail::check(cudaDeviceGetAttribute(&value, cudaDevAttr##name, device), "cudaDeviceGetAttribute"); \
    return value
#endif

// Bytes of shared memory that a block can have, if its launch asks for them.
inline std::size_t max_shared_bytes() { GPU_ATTRIBUTE(MaxSharedMemoryPerBlockOptin, 227 * 1024); }
inline int64_t l2_bytes() { GPU_ATTRIBUTE(L2CacheSize, 50 * 1024 * 1024); }
inline int multiprocessors() { GPU_ATTRIBUTE(MultiProcessorCount, 132); }

#undef GPU_ATTRIBUTE

// ------------------------------------------------------------------------------------------------------- conversions

// to<A>(x): a stored value converted to the arithmetic type A, float or double.
template <class A, class T>
__device__ __forceinline__ A to(T x) {
    static_assert(std::is_floating_point_v<A>, "arithmetic is in float or double");
    if constexpr (std::is_same_v<T, __half>) {
        return static_cast<A>(__half2float(x));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return static_cast<A>(__bfloat162float(x));
    } else {
        return static_cast<A>(x);
    }
}

// from<T>(a): an arithmetic value rounded to nearest even in storage type T; 16-bit types are rounded from float.
template <class T, class A>
__device__ __forceinline__ T from(A a) {
    static_assert(std::is_floating_point_v<A>, "arithmetic is in float or double");
    if constexpr (std::is_same_v<T, __half>) {
        return __float2half(static_cast<float>(a));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return __float2bfloat16(static_cast<float>(a));
    } else {
        return static_cast<T>(a);
    }
}

// a * b, rounded: never contracted with a following sum.
#ifdef FASTGAN_EMULATE  // compiled without contraction
template <class A>
A rounded_product(A a, A b) {
    return a * b;
}
#else
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#endif

// ----------------------------------------------------------------------------------------------------- vector access

// V values that are read or written at once. 16 bytes is the widest access that every GPU has.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
    T v[V];
};

namespace detail {

#ifndef FASTGAN_EMULATE
// An integer type of the given size.
template <std::size_t bytes>
using Word = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<
        bytes == 8, uint2,
        std::conditional_t<bytes == 4, unsigned, std::conditional_t<bytes == 2, unsigned short, unsigned char>>>>;
#endif

template <class T, int V>
__device__ __forceinline__ void check_vector(const T* p GPU_PLACE) {
    static_assert(sizeof(T) * V <= 16 && (V & (V - 1)) == 0, "a vector has 1, 2, 4, 8 or 16 bytes");
#ifdef FASTGAN_EMULATE
    emulation::check_alignment(p, sizeof(T) * V, {file, line});
#else
    (void)p;
#endif
}

}  // namespace detail

// Whether an access is the last one to these bytes for long: the L2 keeps them no longer than it must (evict-first).
enum class Access { any, last };

// load<V>(p), store(p, vec): one access of V values. p must be aligned to the size of the vector. load also reads shared
// memory; store does not write it, store_shared does.
template <int V, class T>
__device__ __forceinline__ Vec<T, V> load(const T* p GPU_PLACE) {
    detail::check_vector<T, V>(p GPU_HERE);
#ifdef FASTGAN_EMULATE
    Vec<T, V> value;
    std::memcpy(&value, p, sizeof value);  // one access; an assignment would be one for each element
    return value;
#else
    return *reinterpret_cast<const Vec<T, V>*>(p);
#endif
}

// load<V>(p) if `there`, else zeros; p is not read then.
template <int V, Access A = Access::any, class T>
__device__ __forceinline__ Vec<T, V> load_or_zeros(bool there, const T* p GPU_PLACE) {
#ifdef FASTGAN_EMULATE
    const emulation::LastAccess scope(A == Access::last);
    return there ? load<V>(p GPU_HERE) : Vec<T, V>{};
#else  // selects one word: 16-bit values would be selected, and kept in registers, one by one
    using Word = detail::Word<sizeof(T) * V>;
    union Both {
        Word word;
        Vec<T, V> value;
        __device__ Both() {}
    } both;
    both.word = Word{};
    if (there) {
        const Word* from = reinterpret_cast<const Word*>(p);
        both.word = A == Access::last ? __ldcs(from) : *from;
    }
    return both.value;
#endif
}

template <Access A = Access::any, int V, class T>
__device__ __forceinline__ void store(T* p, const Vec<T, V>& value GPU_PLACE) {
    detail::check_vector<T, V>(p GPU_HERE);
#ifdef FASTGAN_EMULATE
    emulation::check_global(p, {file, line});
    const emulation::LastAccess scope(A == Access::last);
    Vec<T, V> copy = value;
    asm volatile("" : "+m"(copy));  // one access, also where the compiler holds the elements apart
    std::memcpy(p, &copy, sizeof copy);
#else  // an assignment would be compiled to several stores of 4 bytes
    using Word = detail::Word<sizeof(T) * V>;
    const Word word = *reinterpret_cast<const Word*>(&value);
    A == Access::last ? __stcs(reinterpret_cast<Word*>(p), word) : __stwb(reinterpret_cast<Word*>(p), word);
#endif
}

template <int V, class T>
__device__ __forceinline__ void store_shared(T* p, const Vec<T, V>& value GPU_PLACE) {
    detail::check_vector<T, V>(p GPU_HERE);
#ifdef FASTGAN_EMULATE
    Vec<T, V> copy = value;
    asm volatile("" : "+m"(copy));
    std::memcpy(p, &copy, sizeof copy);
#else
    using Word = detail::Word<sizeof(T) * V>;
    *reinterpret_cast<Word*>(p) = *reinterpret_cast<const Word*>(&value);
#endif
}

// The values of a vector, converted to A. Pairs of bf16 take one instruction each; to() would first separate them.
template <class A, int V, class T>
__device__ __forceinline__ void values_of(const Vec<T, V>& in, A (&out)[V]) {
#ifndef FASTGAN_EMULATE
    if constexpr (std::is_same_v<T, __nv_bfloat16> && V % 2 == 0) {
        const unsigned* pairs = reinterpret_cast<const unsigned*>(&in);
        GPU_UNROLL
        for (int i = 0; i < V / 2; ++i) {
            out[2 * i] = __uint_as_float(pairs[i] << 16);
            out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        }
    } else
#endif
    {
        GPU_UNROLL
        for (int v = 0; v < V; ++v) out[v] = to<A>(in.v[v]);
    }
}

// -------------------------------------------------------------------------------------------------------------- sums

__device__ __forceinline__ int thread_in_block() {
    return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

__device__ __forceinline__ int threads_in_block() { return static_cast<int>(blockDim.x * blockDim.y * blockDim.z); }

// Sum over the 32 lanes of a warp, all of which must call; every lane gets it. The order of additions is fixed.
template <class A>
__device__ __forceinline__ A warp_sum(A value GPU_PLACE) {
    GPU_UNROLL
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(full_mask, value, distance, warp_size GPU_HERE);
    }
    return value;
}

// N sums over the threads of a block, all of which must call, a multiple of 32; every thread gets them. The order of
// additions is fixed. The first barrier separates writers from readers, the second permits the next call.
template <class A, int N>
__device__ __forceinline__ void block_sum(A (&values)[N] GPU_PLACE) {
    SHARED(A, partial, [N * warp_size]);
    const int lane = thread_in_block() % warp_size, warp = thread_in_block() / warp_size;
    GPU_UNROLL
    for (int i = 0; i < N; ++i) {
        values[i] = warp_sum(values[i] GPU_HERE);
        if (lane == 0) partial[i * warp_size + warp] = values[i];
    }
    GPU_BARRIER();
    GPU_UNROLL
    for (int i = 0; i < N; ++i) {
        values[i] = warp_sum(lane < threads_in_block() / warp_size ? partial[i * warp_size + lane] : A(0) GPU_HERE);
    }
    GPU_BARRIER();
}

template <class A>
__device__ __forceinline__ A block_sum(A value GPU_PLACE) {
    A values[1] = {value};
    block_sum(values GPU_HERE);
    return values[0];
}

// ------------------------------------------------------------------------------------------------ order among blocks

// Number of blocks that took a ticket from this counter before; once in a kernel, by all threads. The blocks with
// earlier tickets run already, in whatever order a GPU starts blocks. If a block waits for earlier tickets alone, the
// earliest of all waits for none, so that no launch can hang.
__device__ __forceinline__ unsigned take_ticket(unsigned* counter GPU_PLACE) {
    SHARED(unsigned, ticket, [1]);
    if (thread_in_block() == 0) {
#ifdef FASTGAN_EMULATE
        atomicAdd(counter, emulation::skipped_blocks());
#endif
        ticket[0] = atomicAdd(counter, 1u);
    }
    GPU_BARRIER();
    return ticket[0];
}

// Adds one to a counter, when all threads of the block have written what others may then read. All threads must call.
// Returns its value before, in thread 0 only.
__device__ __forceinline__ unsigned arrive(unsigned* counter GPU_PLACE) {
    __threadfence();
    GPU_BARRIER();
    return thread_in_block() == 0 ? atomicAdd(counter, 1u) : 0u;
}

// Waits until `count` blocks have arrived at the counter. All threads must call, and see then what these have written.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned count GPU_PLACE) {
    if (thread_in_block() == 0) {
#ifdef FASTGAN_EMULATE
        emulation::check_wait(*counter >= count, {file, line});
#else
        while (*static_cast<const volatile unsigned*>(counter) < count) __nanosleep(100);
#endif
        __threadfence();
    }
    GPU_BARRIER();
}

}  // namespace gpu
