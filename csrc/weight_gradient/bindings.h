// Bindings of weight_gradient, which is for CPUs only.
#pragma once

#include "common/bindings.h"
#include "weight_gradient/call.h"

FASTGAN_CPU_ENTRY(void, weight_gradient, const fastgan::WeightGradientCall&)
FASTGAN_CPU_ENTRY(int64_t, weight_gradient_workspace, const fastgan::WeightGradientCall&)

namespace fastgan {
namespace {

// The dtype; samples, channels, height and width of `small`; channels, height and width of `large`; the kernel's height
// and width, stride, and what is padded at the top and on the left.
WeightGradientCall described(int dtype, int64_t n, int64_t a, int64_t height, int64_t width, int64_t b,
                             int64_t large_height, int64_t large_width, int64_t kh, int64_t kw, int64_t stride,
                             int64_t top, int64_t left) {
    WeightGradientCall call{};
    call.dtype = static_cast<Dtype>(dtype);
    call.n = n, call.a = a, call.height = height, call.width = width;
    call.b = b, call.large_height = large_height, call.large_width = large_width;
    call.kh = kh, call.kw = kw, call.stride = stride, call.top = top, call.left = left;
    return call;
}

int64_t weight_gradient_workspace(int dtype, int64_t n, int64_t a, int64_t height, int64_t width, int64_t b,
                                  int64_t large_height, int64_t large_width, int64_t kh, int64_t kw, int64_t stride,
                                  int64_t top, int64_t left) {
    const WeightGradientCall call =
        described(dtype, n, a, height, width, b, large_height, large_width, kh, kw, stride, top, left);
    return FASTGAN_ON_CPU(weight_gradient_workspace);
}

void weight_gradient(int dtype, int64_t n, int64_t a, int64_t height, int64_t width, int64_t b, int64_t large_height,
                     int64_t large_width, int64_t kh, int64_t kw, int64_t stride, int64_t top, int64_t left,
                     Address workspace, Address dw, Address small, Address large) {
    WeightGradientCall call =
        described(dtype, n, a, height, width, b, large_height, large_width, kh, kw, stride, top, left);
    call.workspace = at(workspace), call.dw = at(dw);
    call.small = at(small), call.large = at(large);
    FASTGAN_ON_CPU(weight_gradient);
}

}  // namespace

inline void bind_weight_gradient(py::module_& m) {
    m.def("weight_gradient_workspace", &weight_gradient_workspace);
    m.def("weight_gradient", &weight_gradient, Released());
}

}  // namespace fastgan
