// The arithmetic of image_batch, shared by the CPU and the CUDA kernels: gathers images from a set of bytes, mirrors
// some, and scales them to [-1, 1].
//
//     y[n, h, w] = p / 127.5 - 1,   p = pixels[index[n], h, mirrored[n] ? W - 1 - w : w]     (each with C channels)
#pragma once

#include "image_batch/call.h"

namespace FASTGAN_VALUES {

// Computed as (2p - 255) / 255. The difference is exact, so nothing cancels near grey; and the product is the only
// rounding, so all backends give the same bits.
template <class V>
FASTGAN_INLINE V scaled(V p) {
    return (p + p - broadcast<V>(255.0)) * broadcast<V>(1.0 / 255.0);
}

}  // namespace FASTGAN_VALUES
