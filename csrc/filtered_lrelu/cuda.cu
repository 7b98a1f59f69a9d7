// filtered_lrelu on the GPU.
#include "filtered_lrelu/planes.h"

namespace fastgan::cuda {

void filtered_lrelu_forward(const FilteredLreluCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) { launch_planes<decltype(element)>(call, stream); });
}

}  // namespace fastgan::cuda
