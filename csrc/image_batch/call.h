// A batch of images from a set of bytes: rows of it, turned left to right where that is asked for, in the range of
// networks.
//
//     y[n, h, w] = p / 127.5 - 1,   p = pixels[index[n], h, mirrored[n] ? W - 1 - w : w]     (each with C channels)
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

#ifdef FASTGAN_ARITHMETIC
namespace FASTGAN_ARITHMETIC {

// As (2p - 255) / 255: the difference is exact, so nothing cancels near grey, and since the product is the only rounding,
// all backends give the same bits.
template <class V>
FASTGAN_INLINE V scaled(V p) {
    return (p + p - all<V>(255.0)) * all<V>(1.0 / 255.0);
}

}  // namespace FASTGAN_ARITHMETIC
#endif
