// Bindings of noise_bias_act.
#pragma once

#include "common/bindings.h"
#include "noise_bias_act/call.h"

FASTGAN_KERNEL(noise_bias_act_forward, const fastgan::NoiseBiasActCall&)
FASTGAN_KERNEL(noise_bias_act_backward, const fastgan::NoiseBiasActCall&)
FASTGAN_KERNEL(noise_bias_act_double_backward, const fastgan::NoiseBiasActCall&)
FASTGAN_WORKSPACE(noise_bias_act_workspace, const fastgan::NoiseBiasActCall&)

namespace fastgan {
namespace {

NoiseBiasActCall described(int64_t n, int64_t c, int64_t p, bool channels_last, int dtype, int act, double slope,
                           double gain, double clamp) {
    NoiseBiasActCall call{};
    call.n = n, call.c = c, call.p = p, call.channels_last = channels_last;
    call.dtype = static_cast<fastgan::Dtype>(dtype);
    call.act = static_cast<fastgan::Act>(act);
    call.slope = slope, call.gain = gain, call.clamp = clamp;
    return call;
}

void small_tensors(NoiseBiasActCall& call, Address noise, bool noise_per_sample, Address strength,
                   bool strength_per_channel, Address bias, Address scale, Address post) {
    call.noise = at(noise), call.noise_per_sample = noise_per_sample;
    call.strength = at(strength), call.strength_per_channel = strength_per_channel;
    call.bias = at(bias), call.scale = at(scale), call.post = at(post);
}

int64_t noise_bias_act_workspace(int device, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype) {
    NoiseBiasActCall call = described(n, c, p, channels_last, dtype, 0, 0, 0, 0);
    return device < 0 ? FASTGAN_ON_CPU(noise_bias_act_workspace) : FASTGAN_ON_GPU(noise_bias_act_workspace, call);
}

void noise_bias_act_forward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                            int act, double slope, double gain, double clamp, Address workspace, Address y, Address x,
                            Address noise, bool noise_per_sample, Address strength, bool strength_per_channel,
                            Address bias, Address scale, Address post) {
    NoiseBiasActCall call = described(n, c, p, channels_last, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = FASTGAN_SPACE(noise_bias_act_workspace, device, workspace);
    call.y = at(y), call.x = at(x);
    FASTGAN_RUN(noise_bias_act_forward, device, stream);
}

void noise_bias_act_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                             int act, double slope, double gain, double clamp, Address workspace, Address dx,
                             Address dstrength, Address dbias, Address dscale, Address dpost, Address dy,
                             Address reference, bool from_output, Address noise, bool noise_per_sample,
                             Address strength, bool strength_per_channel, Address bias, Address scale, Address post) {
    NoiseBiasActCall call = described(n, c, p, channels_last, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = FASTGAN_SPACE(noise_bias_act_workspace, device, workspace);
    call.dx = at(dx), call.dy = at(dy), call.reference = at(reference);
    call.from_output = from_output;
    call.dstrength = at(dstrength), call.dbias = at(dbias), call.dscale = at(dscale), call.dpost = at(dpost);
    FASTGAN_RUN(noise_bias_act_backward, device, stream);
}

void noise_bias_act_double_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last,
                                    int dtype, int act, double slope, double gain, double clamp, Address workspace,
                                    Address ddy, Address dx, Address dstrength, Address dbias, Address dscale,
                                    Address dpost, Address dy, Address reference, bool from_output, Address noise,
                                    bool noise_per_sample, Address strength, bool strength_per_channel, Address bias,
                                    Address scale, Address post, Address gx, Address gstrength, Address gbias,
                                    Address gscale, Address gpost) {
    NoiseBiasActCall call = described(n, c, p, channels_last, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = FASTGAN_SPACE(noise_bias_act_workspace, device, workspace);
    call.ddy = at(ddy), call.dx = at(dx), call.dy = at(dy);
    call.reference = at(reference), call.from_output = from_output;
    call.dstrength = at(dstrength), call.dbias = at(dbias), call.dscale = at(dscale), call.dpost = at(dpost);
    call.gx = at(gx), call.gstrength = at(gstrength), call.gbias = at(gbias), call.gscale = at(gscale);
    call.gpost = at(gpost);
    FASTGAN_RUN(noise_bias_act_double_backward, device, stream);
}

}  // namespace

inline void bind_noise_bias_act(py::module_& m) {
    m.def("noise_bias_act_workspace", &noise_bias_act_workspace);
    m.def("noise_bias_act_forward", &noise_bias_act_forward, Released());
    m.def("noise_bias_act_backward", &noise_bias_act_backward, Released());
    m.def("noise_bias_act_double_backward", &noise_bias_act_double_backward, Released());
}

}  // namespace fastgan
