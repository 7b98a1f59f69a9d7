// One call of noise_bias_act.
#pragma once

#include "common/types.h"

namespace fastgan {

enum class Act : int { piecewise_linear, tanh, sigmoid, silu, softplus };

// One call. Pointers are null where a part is absent (inputs) or not asked for (outputs).
struct NoiseBiasActCall {
    int64_t n, c, p;  // samples, channels, positions
    bool pixels;      // layout: channels are adjacent (NHWC), else positions are (NCHW)
    Dtype dtype;      // of x, y and their gradients; all else is float, or double where they are
    Act act;
    double slope, gain, clamp;  // clamp is infinite where there is none
    bool from_output;           // the derivative comes from y (`reference` is y), else from x
    bool noise_per_sample, strength_per_channel;

    const void *noise, *strength, *bias, *scale, *post;  // [N or 1, P], [C or 1], [C], [N, C], [N, C]
    const void *x;                                       // forward: the input
    void *y;                                             // forward: the output
    const void *dy, *reference;                          // backward and double backward
    void *dx;
    void *dstrength, *dbias, *dscale, *dpost;
    // Double backward: cotangents of the backward's results; `ddy` and the d's above receive its gradients.
    const void *gx, *gstrength, *gbias, *gscale, *gpost;
    void *ddy;
    void *workspace;
};

// The kernels need the reductions over all samples and positions in two stages: each piece of the work writes its sums,
// [pieces, sums, channels], and these are added up in a fixed order. Static, so that each object has its own copy.
constexpr int MOST_SUMS = 4;

}  // namespace fastgan
