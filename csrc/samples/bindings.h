// Bindings of squared_norm and lerp_samples.
#pragma once

#include "common/bindings.h"
#include "samples/call.h"

FASTGAN_KERNEL(squared_norm_forward, const fastgan::SamplesCall&)
FASTGAN_KERNEL(squared_norm_backward, const fastgan::SamplesCall&)
FASTGAN_KERNEL(lerp_samples_forward, const fastgan::SamplesCall&)
FASTGAN_KERNEL(lerp_samples_backward, const fastgan::SamplesCall&)
FASTGAN_WORKSPACE(squared_norm_workspace, const fastgan::SamplesCall&)

namespace fastgan {
namespace {

SamplesCall described(int64_t n, int64_t size, int dtype) {
    SamplesCall call{};
    call.n = n, call.size = size, call.dtype = static_cast<Dtype>(dtype);
    return call;
}

int64_t squared_norm_workspace(int device, int64_t n, int64_t size, int dtype) {
    const SamplesCall call = described(n, size, dtype);
    return device < 0 ? FASTGAN_ON_CPU(squared_norm_workspace) : FASTGAN_ON_GPU(squared_norm_workspace, call);
}

void squared_norm_forward(int device, Address stream, int64_t n, int64_t size, int dtype, Address workspace,
                          Address sums, Address x) {
    SamplesCall call = described(n, size, dtype);
    call.workspace = FASTGAN_SPACE(squared_norm_workspace, device, workspace);
    call.sums = at(sums), call.a = at(x);
    FASTGAN_RUN(squared_norm_forward, device, stream);
}

void squared_norm_backward(int device, Address stream, int64_t n, int64_t size, int dtype, Address dx, Address grad,
                           Address x) {
    SamplesCall call = described(n, size, dtype);
    call.first = at(dx), call.weight = at(grad), call.a = at(x);
    FASTGAN_RUN(squared_norm_backward, device, stream);
}

void lerp_samples_forward(int device, Address stream, int64_t n, int64_t size, int dtype, Address y, Address a,
                          Address b, Address t) {
    SamplesCall call = described(n, size, dtype);
    call.first = at(y), call.a = at(a), call.b = at(b), call.weight = at(t);
    FASTGAN_RUN(lerp_samples_forward, device, stream);
}

void lerp_samples_backward(int device, Address stream, int64_t n, int64_t size, int dtype, Address da, Address db,
                           Address dy, Address t) {
    SamplesCall call = described(n, size, dtype);
    call.first = at(da), call.second = at(db), call.a = at(dy), call.weight = at(t);
    FASTGAN_RUN(lerp_samples_backward, device, stream);
}

}  // namespace

inline void bind_samples(py::module_& m) {
    m.def("squared_norm_workspace", &squared_norm_workspace);
    m.def("squared_norm_forward", &squared_norm_forward, Released());
    m.def("squared_norm_backward", &squared_norm_backward, Released());
    m.def("lerp_samples_forward", &lerp_samples_forward, Released());
    m.def("lerp_samples_backward", &lerp_samples_backward, Released());
}

}  // namespace fastgan
