// One call of image_batch.
#pragma once

#include "common/types.h"

namespace fastgan {

// One call. `index` (int64) and `mirrored` (bytes), one a sample, are null where they are absent.
struct ImageBatchCall {
    int64_t images;      // in `pixels`
    int64_t n, h, w, c;  // of the batch, in NHWC as the pixels
    Dtype dtype;         // of y
    const void *pixels, *index, *mirrored;
    void* y;
};

}  // namespace fastgan
