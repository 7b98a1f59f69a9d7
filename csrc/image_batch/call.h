// One call of image_batch.
#pragma once

#include "common/types.h"

namespace fastgan {

#define IMAGE_BATCH_FIELDS(FIELD)                               \
    FIELD(int64_t, images) /* number of images in `pixels` */   \
    FIELD(int64_t, n)      /* sizes of the batch y, NHWC */     \
    FIELD(int64_t, h)                                           \
    FIELD(int64_t, w)                                           \
    FIELD(int64_t, c)                                           \
    FIELD(Dtype, dtype) /* dtype of y */                        \
    FIELD(void*, y)                                             \
    FIELD(const void*, pixels)   /* [images, h, w, c], bytes */ \
    FIELD(const void*, index)    /* [N] int64, or null */       \
    FIELD(const void*, mirrored) /* [N] bytes, or null */

struct ImageBatchCall {
    FASTGAN_MEMBERS(IMAGE_BATCH_FIELDS)
};

}  // namespace fastgan

FASTGAN_KERNEL(ImageBatchCall, image_batch, no_workspace, "image_batch.run")
