// One call of instance_norm and batch_norm_act.
#pragma once

#include "common/types.h"

namespace fastgan {

// Where there is an activation, if any.
enum class Around { nothing, before, after };

// One call. Pointers are null where a part is absent (inputs) or not asked for (outputs). With `batch` it is one of
// batch_norm_act: the style is [C], nothing stands before the norm, and in NHWC all positions are those of one sample.
struct InstanceNormCall {
    int64_t n, c, p;  // samples, channels, positions
    bool pixels;      // layout: channels are adjacent (NHWC), else positions are (NCHW)
    bool batch;
    Dtype dtype;      // of x, y and their gradients; all else is float, or double where they are
    double slope, gain, eps;
    bool noise_per_sample, strength_per_channel;

    const void *noise, *strength, *bias;      // [N or 1, P], [C or 1], [C]
    const void *style_scale, *style_bias;     // [N, C]
    const void* x;
    void* y;
    // [2, N, C], mean and inverse: written in the forward pass, read in the backward pass. Of a batch [3, C]: the last is
    // the unbiased variance, for averages of it.
    void* statistics;
    const void* dy;
    void *dx, *dstrength, *dbias, *dstyle_scale, *dstyle_bias;
    void* workspace;

    Around around() const {
        if (batch) return Around::after;
        return !noise && !bias && slope == 1 && gain == 1 ? Around::nothing : Around::before;
    }
    int64_t rows() const { return batch ? c : n * c; }     // that are normalised, each for itself
    int64_t numbers() const { return batch ? n * p : p; }  // of a row
};

}  // namespace fastgan
