// noise_bias_act on the GPU: what its kernels share with others that end in it.
#pragma once

#include "common/gpu_values.h"
#include "noise_bias_act/arithmetic.h"

namespace fastgan::cuda {

using namespace gpu_values;

// The options and small tensors of a call.
template <class S>
struct Epilogue {
    Shape<S> shape;
    const S *noise, *strength, *bias, *scale, *post;
    bool noise_per_sample, strength_per_channel;

    explicit Epilogue(const NoiseBiasActCall& call)
        : shape{S(call.gain), S(call.gain * call.slope), S(1 / call.gain), S(call.clamp)},
          noise((const S*)call.noise),
          strength((const S*)call.strength),
          bias((const S*)call.bias),
          scale((const S*)call.scale),
          post((const S*)call.post),
          noise_per_sample(call.noise_per_sample),
          strength_per_channel(call.strength_per_channel) {}
};

// The small tensors of one channel of one sample, without the noise. `E` has the members of Epilogue, but is not
// derived from it: in the arguments of a kernel, the members of a base class cost registers.
template <class S, class E>
FASTGAN_INLINE Small<S> small_at(const E& e, int64_t sample, int64_t channel, int64_t c) {
    return {e.scale ? e.scale[sample * c + channel] : S(1),
            e.strength ? e.strength[e.strength_per_channel ? channel : 0] : S(1), e.bias ? e.bias[channel] : S(0),
            e.post ? e.post[sample * c + channel] : S(1), S(0)};
}
template <class S, class E>
FASTGAN_INLINE S noise_at(const E& e, int64_t sample, int64_t position, int64_t p) {
    return e.noise ? e.noise[(e.noise_per_sample ? sample * p : 0) + position] : S(0);
}

template <class S>
FASTGAN_INLINE S sum_number(const Sums<S>& sums, int which) {
    return which == 0 ? sums.bias : which == 1 ? sums.strength : which == 2 ? sums.scale : sums.post;
}

}  // namespace fastgan::cuda
