// Bindings of upfirdn2d.
#pragma once

#include "common/bindings.h"
#include "upfirdn2d/call.h"

FASTGAN_KERNEL(upfirdn2d_forward, const fastgan::Upfirdn2dCall&)

namespace fastgan {
namespace {

void upfirdn2d_forward(int device, Address stream, int64_t n, int64_t c, int64_t h, int64_t w, int64_t oh, int64_t ow,
                       bool channels_last, int dtype, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                       int64_t left, int64_t top, int64_t kh, int64_t kw, bool separable, double gain, bool flip,
                       Address taps, Address x, Address y) {
    Upfirdn2dCall call{};
    call.n = n, call.c = c, call.h = h, call.w = w, call.oh = oh, call.ow = ow;
    call.channels_last = channels_last, call.dtype = static_cast<Dtype>(dtype);
    call.up_x = up_x, call.up_y = up_y, call.down_x = down_x, call.down_y = down_y;
    call.left = left, call.top = top, call.kh = kh, call.kw = kw, call.separable = separable;
    call.gain = gain, call.flip = flip;
    call.taps = at(taps), call.x = at(x), call.y = at(y);
    FASTGAN_RUN(upfirdn2d_forward, device, stream);
}

}  // namespace

inline void bind_upfirdn2d(py::module_& m) { m.def("upfirdn2d_forward", &upfirdn2d_forward, Released()); }

}  // namespace fastgan
