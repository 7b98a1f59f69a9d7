// Bindings of filtered_noise_bias_act, which is on the GPU only: on a CPU the two operations one after the other are as
// quick (docs/performance.md).
#pragma once

#include "filtered_noise_bias_act/call.h"

#include "common/bindings.h"
#include "noise_bias_act/bindings.h"  // small_tensors

namespace fastgan {
namespace {

using Sizes = std::array<int64_t, 8>;  // n, c, h, w, oh, ow, left, top

FilteredNoiseBiasActCall described(const Sizes& sizes, int dtype, double fir_gain, double slope, double gain,
                                   double clamp) {
    FilteredNoiseBiasActCall call{};
    Upfirdn2dCall& filter = call.filter;
    filter.n = sizes[0], filter.c = sizes[1], filter.h = sizes[2], filter.w = sizes[3], filter.oh = sizes[4];
    filter.ow = sizes[5], filter.left = sizes[6], filter.top = sizes[7];
    filter.channels_last = true, filter.dtype = static_cast<Dtype>(dtype);
    filter.up_x = filter.up_y = filter.down_x = filter.down_y = 1, filter.kh = filter.kw = 4, filter.separable = true;
    filter.gain = fir_gain;
    call.epilogue.slope = slope, call.epilogue.gain = gain, call.epilogue.clamp = clamp;
    return call;
}

int64_t filtered_noise_bias_act_pieces(const Sizes& sizes, int dtype) {
    [[maybe_unused]] const FilteredNoiseBiasActCall call = described(sizes, dtype, 1, 0, 1, 0);
    return FASTGAN_ON_GPU(filtered_noise_bias_act_pieces, call);
}

void filtered_noise_bias_act_forward(int device, Address stream, const Sizes& sizes, int dtype, double fir_gain,
                                     double slope, double gain, double clamp, Address taps, Address x, Address y,
                                     Address noise, bool noise_per_sample, Address strength, bool strength_per_channel,
                                     Address bias, Address scale, Address post) {
    FilteredNoiseBiasActCall call = described(sizes, dtype, fir_gain, slope, gain, clamp);
    call.filter.taps = at(taps), call.filter.x = at(x), call.filter.y = at(y);
    small_tensors(call.epilogue, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    (void)device, (void)stream;
    FASTGAN_ON_GPU(filtered_noise_bias_act_forward, call, device, at(stream));
}

void filtered_noise_bias_act_backward(int device, Address stream, const Sizes& sizes, int dtype, double fir_gain,
                                      double slope, double gain, double clamp, Address taps, Address x, Address dy,
                                      Address du, Address sums, Address noise, bool noise_per_sample, Address strength,
                                      bool strength_per_channel, Address bias, Address scale, Address post) {
    FilteredNoiseBiasActCall call = described(sizes, dtype, fir_gain, slope, gain, clamp);
    call.filter.taps = at(taps), call.filter.x = at(x);
    call.epilogue.dy = at(dy), call.epilogue.dx = at(du), call.epilogue.workspace = at(sums);
    small_tensors(call.epilogue, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    (void)device, (void)stream;
    FASTGAN_ON_GPU(filtered_noise_bias_act_backward, call, device, at(stream));
}

}  // namespace

inline void bind_filtered_noise_bias_act(py::module_& m) {
    m.def("filtered_noise_bias_act_pieces", &filtered_noise_bias_act_pieces);
    m.def("filtered_noise_bias_act_forward", &filtered_noise_bias_act_forward, Released());
    m.def("filtered_noise_bias_act_backward", &filtered_noise_bias_act_backward, Released());
}

}  // namespace fastgan
