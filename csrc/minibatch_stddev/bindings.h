// Bindings of minibatch_stddev.
#pragma once

#include "common/bindings.h"
#include "minibatch_stddev/call.h"

FASTGAN_KERNEL(minibatch_stddev, const fastgan::MinibatchStddevCall&)
FASTGAN_WORKSPACE(minibatch_stddev_workspace, const fastgan::MinibatchStddevCall&)

namespace fastgan {
namespace {

MinibatchStddevCall described(int64_t n, int64_t c, int64_t p, bool channels_last, int dtype, int64_t size,
                              int64_t features) {
    MinibatchStddevCall call{};
    call.n = n, call.c = c, call.p = p, call.channels_last = channels_last, call.dtype = static_cast<Dtype>(dtype);
    call.size = size, call.groups = n / size, call.features = features;
    call.share = 1.0 / (double(c / features) * double(p) * double(size));
    return call;
}

int64_t minibatch_stddev_workspace(int device, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                                   int64_t size, int64_t features) {
    const MinibatchStddevCall call = described(n, c, p, channels_last, dtype, size, features);
    return device < 0 ? FASTGAN_ON_CPU(minibatch_stddev_workspace) : FASTGAN_ON_GPU(minibatch_stddev_workspace, call);
}

void minibatch_stddev(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                      int64_t size, int64_t features, int order, Address workspace, Address appended, Address dx,
                      Address x, Address dy, Address gx) {
    MinibatchStddevCall call = described(n, c, p, channels_last, dtype, size, features);
    call.workspace = FASTGAN_SPACE(minibatch_stddev_workspace, device, workspace);
    call.order = order, call.appended = at(appended), call.dx = at(dx);
    call.x = at(x), call.dy = at(dy), call.gx = at(gx);
    FASTGAN_RUN(minibatch_stddev, device, stream);
}

}  // namespace

inline void bind_minibatch_stddev(py::module_& m) {
    m.def("minibatch_stddev_workspace", &minibatch_stddev_workspace);
    m.def("minibatch_stddev", &minibatch_stddev, Released());
}

}  // namespace fastgan
