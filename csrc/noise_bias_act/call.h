// One call of noise_bias_act.
#pragma once

#include "common/types.h"

namespace fastgan {

enum class Act : int { piecewise_linear, tanh, sigmoid, silu, softplus };

// Pointers are null for parts that are absent (inputs) or not wanted (outputs).
struct NoiseBiasActCall {
    int64_t n, c, p;     // samples, channels, positions
    bool channels_last;  // NHWC, else NCHW
    Dtype dtype;         // of x, y and their gradients
    Act act;
    double slope, gain, clamp;  // clamp: infinity for none
    bool from_output;           // take the derivative from y (then `reference` is y), else from x
    bool noise_per_sample, strength_per_channel;

    const void *noise, *strength, *bias, *scale, *post;  // [N or 1, P], [C or 1], [C], [N, C], [N, C]
    const void* x;                                       // forward: input
    void* y;                                             // forward: output
    const void *dy, *reference;                          // backward and double backward: inputs
    void* dx;
    void *dstrength, *dbias, *dscale, *dpost;
    // Double backward: cotangents of backward's results. `ddy` and the d* above receive its gradients.
    const void *gx, *gstrength, *gbias, *gscale, *gpost;
    void* ddy;
    void* workspace;
};

// Number of sums over samples and positions in a backward pass: for bias, strength, scale and post.
constexpr int MAX_SUMS = 4;

}  // namespace fastgan
