// One call of filtered_noise_bias_act: an FIR filter followed by noise_bias_act, as at the end of a StyleGAN2 layer that
// doubles the resolution. On the GPU, in NHWC, for a separable filter of four taps and piecewise linear activations.
#pragma once

#include "noise_bias_act/call.h"
#include "upfirdn2d/call.h"

namespace fastgan {

struct FilteredNoiseBiasActCall {
    Upfirdn2dCall filter;       // forward: x and y; backward: x
    NoiseBiasActCall epilogue;  // small tensors and options; backward: dy, dx (of the filter's output) and workspace
};

}  // namespace fastgan

namespace fastgan::cuda {

void filtered_noise_bias_act_forward(const FilteredNoiseBiasActCall& call, int device, void* stream);
// Leaves the sums for the gradients of bias, strength, scale and post in the workspace, [N, pieces, 4, C].
void filtered_noise_bias_act_backward(const FilteredNoiseBiasActCall& call, int device, void* stream);
int64_t filtered_noise_bias_act_pieces(const FilteredNoiseBiasActCall& call);

}  // namespace fastgan::cuda
