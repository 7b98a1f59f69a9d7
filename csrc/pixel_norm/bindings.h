// Bindings of pixel_norm.
#pragma once

#include "common/bindings.h"
#include "pixel_norm/call.h"

FASTGAN_KERNEL(pixel_norm, const fastgan::PixelNormCall&)

namespace fastgan {
namespace {

void pixel_norm(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype, int order,
                double eps, Address first, Address second, Address x, Address dy, Address gx) {
    PixelNormCall call{n,      c,      p,         channels_last, static_cast<Dtype>(dtype), order, eps, at(x),
                       at(dy), at(gx), at(first), at(second)};
    FASTGAN_RUN(pixel_norm, device, stream);
}

}  // namespace

inline void bind_pixel_norm(py::module_& m) { m.def("pixel_norm", &pixel_norm, Released()); }

}  // namespace fastgan
