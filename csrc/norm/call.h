// One call of instance_norm (the basis of adain and style_epilogue) or batch_norm_act.
#pragma once

#include "common/types.h"

namespace fastgan {

// Where the activation is, if any.
enum class Activation { none, before_norm, after_norm };

// Pointers are null for parts that are absent (inputs) or not wanted (outputs). For batch_norm_act, `batch` is set, the
// style is [C], nothing precedes the norm, and in NHWC the samples are merged into one (n is 1).
struct NormCall {
    int64_t n, c, p;     // samples, channels, positions
    bool channels_last;  // NHWC, else NCHW
    bool batch;
    Dtype dtype;  // of x, y and their gradients
    double slope, gain, eps;
    bool noise_per_sample, strength_per_channel;

    const void *noise, *strength, *bias;   // [N or 1, P], [C or 1], [C]
    const void *style_scale, *style_bias;  // [N, C]
    const void* x;
    void* y;
    // Mean and 1 / sqrt(var + eps), [2, N, C]: output of forward, input of backward. For batch_norm_act [3, C], with the
    // unbiased variance (for the running average) as the third.
    void* statistics;
    const void* dy;
    void *dx, *dstrength, *dbias, *dstyle_scale, *dstyle_bias;
    void* workspace;

    Activation activation() const {
        if (batch) return Activation::after_norm;
        return !noise && !bias && slope == 1 && gain == 1 ? Activation::none : Activation::before_norm;
    }
    int64_t rows() const { return batch ? c : n * c; }   // number of normalised rows
    int64_t count() const { return batch ? n * p : p; }  // elements in each
};

}  // namespace fastgan
