// filtered_lrelu on the GPU: StyleGAN3's separable filters in NHWC by columns.h, all else by planes.h.
#include "filtered_lrelu/columns.h"
#include "filtered_lrelu/planes.h"

namespace fastgan::cuda {

void filtered_lrelu_forward(const FilteredLreluCall& call, int device, void* stream) {
    const gpu::DeviceGuard guard(device);
    for_dtype(call.dtype, [&](auto element) {
        using T = decltype(element);
        if constexpr (sizeof(T) < sizeof(double)) {
            if (launch_columns<T>(call, stream)) return;
        }
        launch_planes<T>(call, stream);
    });
}

}  // namespace fastgan::cuda
