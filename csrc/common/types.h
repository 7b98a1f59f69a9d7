// Types shared by the calls of all operations, and the macros that declare a call.
#pragma once

#include <stdint.h>

namespace fastgan {

// Element type of activations and their gradients. Parameters, statistics and arithmetic are float, or double where the
// activations are.
enum class Dtype : int { float32, bfloat16, float16, float64 };

}  // namespace fastgan

// The members of a call. FIELDS(FIELD) lists them as FIELD(type, name), in the order of the NamedTuple of the same name
// in kernels/calls.py: the bindings read a call from that tuple. An enum has a function `names`, which gives the string
// for each of its values. A null pointer stands for None.
#define FASTGAN_MEMBERS(FIELDS)                          \
    FIELDS(FASTGAN_MEMBER)                               \
    void* workspace = nullptr; /* set by the bindings */ \
    template <class Visitor>                             \
    void for_each_field(Visitor visit) {                 \
        FIELDS(FASTGAN_VISIT)                            \
    }
#define FASTGAN_MEMBER(TYPE, NAME) TYPE NAME = {};
#define FASTGAN_VISIT(TYPE, NAME) visit(#NAME, NAME);

// A kernel of a call, FASTGAN_KERNEL(call, function, workspace, "operation.kernel"...): the function for CPU and GPU,
// the function that gives the bytes of its workspace (or no_workspace), and the names that Python calls it by.
// FASTGAN_CPU_KERNEL and FASTGAN_GPU_KERNEL declare a kernel for one of the two. FASTGAN_WORKSPACE and the two like it
// declare the second function. Only the bindings (common/bindings.h) use these; elsewhere they are empty.
#ifndef FASTGAN_BINDINGS
#define FASTGAN_WORKSPACE(CALL, NAME)
#define FASTGAN_CPU_WORKSPACE(CALL, NAME)
#define FASTGAN_GPU_WORKSPACE(CALL, NAME)
#define FASTGAN_KERNEL(CALL, NAME, WORKSPACE, ...)
#define FASTGAN_CPU_KERNEL(CALL, NAME, WORKSPACE, ...)
#define FASTGAN_GPU_KERNEL(CALL, NAME, WORKSPACE, ...)
#endif
