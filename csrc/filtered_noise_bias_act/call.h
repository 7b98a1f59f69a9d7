// filtered_noise_bias_act: a FIR filter and noise_bias_act behind it, on the GPU, in NHWC, for a separable filter of four
// taps and piecewise linear activations: the end of a layer of StyleGAN2 that doubles the resolution.
#pragma once

#include "noise_bias_act/call.h"
#include "upfirdn2d/call.h"

namespace fastgan {

struct FilteredNoiseBiasActCall {
    Upfirdn2dCall filter;       // forward: x to y; backward: x
    NoiseBiasActCall epilogue;  // its small tensors and options; backward: dy, dx of the filter's output, and workspace
};

}  // namespace fastgan

namespace fastgan::cuda {

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream);
// The workspace receives the sums of the gradients of bias, strength, scale and post, [N, pieces, 4, C].
void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream);
int64_t filtered_noise_bias_act_pieces(const FilteredNoiseBiasActCall& call);

}  // namespace fastgan::cuda
