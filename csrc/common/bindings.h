// What the bindings of all operations share. Raw addresses, sizes and a stream come in; checking is done by the Python
// that calls. An operation NAME has NAME/bindings.h, which defines bind_NAME; module.cpp calls it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <new>
#include <stdexcept>

#ifdef FASTGAN_WITH_CPU
#include "common/isa.h"
#endif

namespace fastgan {

namespace py = pybind11;

using Address = uintptr_t;  // 0 stands for an absent tensor

inline void* at(Address address) { return reinterpret_cast<void*>(address); }

[[noreturn, maybe_unused]] inline int left_out(const char* part) {
    throw std::runtime_error(std::string("the extension was built without its ") + part + " kernels");
}

// Memory that a kernel works in on the CPU: of the thread that calls it, which keeps what it has for its next call, and
// more than a few MB only for calls that need as much. To ask torch for a tensor takes longer than a small kernel.
inline void* scratch(int64_t bytes) {
    constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    thread_local std::unique_ptr<void, Free> memory;
    thread_local int64_t size = 0;
    constexpr int64_t few = 16 << 20;
    if (size < bytes || (size > few && bytes <= few)) {
        size = 0, memory.reset();  // before there is more, which may fail
        memory.reset(::operator new(bytes, alignment)), size = bytes;
    }
    return memory.get();
}

using Released = py::call_guard<py::gil_scoped_release>;  // for what computes

}  // namespace fastgan

// FASTGAN_ON_CPU(NAME) and FASTGAN_ON_GPU(NAME, ...) call a kernel on a variable `call`, or throw where the extension was
// built without such kernels. FASTGAN_RUN does one or the other: device -1 is the CPU, others are GPUs, with a stream.
#ifdef FASTGAN_WITH_CPU
#define FASTGAN_ON_CPU(NAME) fastgan::cpu::NAME(call)
#else
#define FASTGAN_ON_CPU(NAME) fastgan::left_out("CPU")
#define FASTGAN_CPU_ENTRY(R, NAME, A)
#endif
#ifdef FASTGAN_WITH_CUDA
#define FASTGAN_ON_GPU(NAME, ...) fastgan::cuda::NAME(__VA_ARGS__)
#else
#define FASTGAN_ON_GPU(NAME, ...) fastgan::left_out("CUDA")
#endif

// What a kernel works in, whose bytes NAME tells for a variable `call`: on a GPU at an address that the caller gives.
#define FASTGAN_SPACE(NAME, device, address) \
    ((device) < 0 ? fastgan::scratch(FASTGAN_ON_CPU(NAME)) : fastgan::at(address))

// Declarations, at file level, of the two kinds of entry that CPU and GPU have alike: one that computes, and one that
// tells the bytes of workspace that it needs.
#define FASTGAN_KERNEL(NAME, A)             \
    FASTGAN_CPU_ENTRY(void, NAME, A)        \
    namespace fastgan::cuda {               \
    void NAME(A, int device, void* stream); \
    }
#define FASTGAN_WORKSPACE(NAME, A)      \
    FASTGAN_CPU_ENTRY(int64_t, NAME, A) \
    namespace fastgan::cuda {           \
    int64_t NAME(A);                    \
    }
#define FASTGAN_RUN(NAME, device, stream)                            \
    do {                                                             \
        if ((device) < 0) {                                          \
            FASTGAN_ON_CPU(NAME);                                    \
        } else {                                                     \
            FASTGAN_ON_GPU(NAME, call, device, fastgan::at(stream)); \
        }                                                            \
    } while (false)
