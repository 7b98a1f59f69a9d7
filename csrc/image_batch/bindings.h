// Bindings of image_batch.
#pragma once

#include "common/bindings.h"
#include "image_batch/call.h"

FASTGAN_KERNEL(image_batch, const fastgan::ImageBatchCall&)

namespace fastgan {
namespace {

void image_batch(int device, Address stream, int64_t images, int64_t n, int64_t h, int64_t w, int64_t c, int dtype,
                 Address y, Address pixels, Address index, Address mirrored) {
    ImageBatchCall call{images, n, h, w, c, static_cast<Dtype>(dtype), at(pixels), at(index), at(mirrored), at(y)};
    FASTGAN_RUN(image_batch, device, stream);
}

}  // namespace

inline void bind_image_batch(py::module_& m) { m.def("image_batch", &image_batch, Released()); }

}  // namespace fastgan
