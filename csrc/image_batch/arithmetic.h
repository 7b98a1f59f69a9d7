// A batch of images from a set of bytes: rows of it, turned left to right where that is asked for, in the range of
// networks.
//
//     y[n, h, w] = p / 127.5 - 1,   p = pixels[index[n], h, mirrored[n] ? W - 1 - w : w]     (each with C channels)
#pragma once

#include "image_batch/call.h"

namespace FASTGAN_VALUES {

// As (2p - 255) / 255: the difference is exact, so nothing cancels near grey, and since the product is the only rounding,
// all backends give the same bits.
template <class V>
FASTGAN_INLINE V scaled(V p) {
    return (p + p - broadcast<V>(255.0)) * broadcast<V>(1.0 / 255.0);
}

}  // namespace FASTGAN_VALUES
