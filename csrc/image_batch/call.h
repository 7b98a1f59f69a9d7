// One call of image_batch.
#pragma once

#include "common/types.h"

namespace fastgan {

struct ImageBatchCall {
    int64_t images;                // number of images in `pixels`
    int64_t n, h, w, c;            // sizes of the batch y, NHWC
    Dtype dtype;                   // of y
    const void* pixels;            // [images, h, w, c], bytes
    const void *index, *mirrored;  // [N] int64 and [N] bytes, or null
    void* y;
};

}  // namespace fastgan
