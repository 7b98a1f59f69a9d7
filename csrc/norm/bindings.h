// Bindings of instance_norm and batch_norm_act.
#pragma once

#include "common/bindings.h"
#include "norm/call.h"

FASTGAN_KERNEL(instance_norm_forward, const fastgan::NormCall&)
FASTGAN_KERNEL(instance_norm_backward, const fastgan::NormCall&)
FASTGAN_WORKSPACE(instance_norm_workspace, const fastgan::NormCall&)

namespace fastgan {
namespace {

NormCall described(int64_t n, int64_t c, int64_t p, bool channels_last, int dtype) {
    NormCall call{};
    call.n = n, call.c = c, call.p = p, call.channels_last = channels_last;
    call.dtype = static_cast<fastgan::Dtype>(dtype);
    return call;
}

void before_the_norm(NormCall& call, double slope, double gain, double eps, Address noise, bool noise_per_sample,
                     Address strength, bool strength_per_channel, Address bias) {
    call.slope = slope, call.gain = gain, call.eps = eps;
    call.noise = at(noise), call.noise_per_sample = noise_per_sample;
    call.strength = at(strength), call.strength_per_channel = strength_per_channel;
    call.bias = at(bias);
}

int64_t instance_norm_workspace(int device, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype) {
    NormCall call = described(n, c, p, channels_last, dtype);
    return device < 0 ? FASTGAN_ON_CPU(instance_norm_workspace) : FASTGAN_ON_GPU(instance_norm_workspace, call);
}

void instance_norm_forward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                           Address workspace, double slope, double gain, double eps, Address y, Address statistics,
                           Address x, Address noise, bool noise_per_sample, Address strength, bool strength_per_channel,
                           Address bias, Address style_scale, Address style_bias) {
    NormCall call = described(n, c, p, channels_last, dtype);
    before_the_norm(call, slope, gain, eps, noise, noise_per_sample, strength, strength_per_channel, bias);
    call.workspace = FASTGAN_SPACE(instance_norm_workspace, device, workspace);
    call.y = at(y), call.statistics = at(statistics), call.x = at(x);
    call.style_scale = at(style_scale), call.style_bias = at(style_bias);
    FASTGAN_RUN(instance_norm_forward, device, stream);
}

void instance_norm_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                            Address workspace, double slope, double gain, double eps, Address dx, Address dstrength,
                            Address dbias, Address dstyle_scale, Address dstyle_bias, Address dy, Address x,
                            Address statistics, Address noise, bool noise_per_sample, Address strength,
                            bool strength_per_channel, Address bias, Address style_scale) {
    NormCall call = described(n, c, p, channels_last, dtype);
    before_the_norm(call, slope, gain, eps, noise, noise_per_sample, strength, strength_per_channel, bias);
    call.workspace = FASTGAN_SPACE(instance_norm_workspace, device, workspace);
    call.dx = at(dx), call.dstrength = at(dstrength), call.dbias = at(dbias);
    call.dstyle_scale = at(dstyle_scale), call.dstyle_bias = at(dstyle_bias);
    call.dy = at(dy), call.x = at(x), call.statistics = at(statistics), call.style_scale = at(style_scale);
    FASTGAN_RUN(instance_norm_backward, device, stream);
}

// x, y and their gradients are [N, C, P]; in NHWC, positions of all samples are those of a single one.
NormCall of_batch(int64_t n, int64_t c, int64_t p, bool channels_last, int dtype) {
    NormCall call = described(channels_last ? 1 : n, c, channels_last ? n * p : p, channels_last, dtype);
    call.batch = true;
    return call;
}

int64_t batch_norm_act_workspace(int device, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype) {
    NormCall call = of_batch(n, c, p, channels_last, dtype);
    return device < 0 ? FASTGAN_ON_CPU(instance_norm_workspace) : FASTGAN_ON_GPU(instance_norm_workspace, call);
}

void batch_norm_act_forward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                            Address workspace, double slope, double gain, double eps, Address y, Address statistics,
                            Address x, Address weight, Address bias) {
    NormCall call = of_batch(n, c, p, channels_last, dtype);
    call.slope = slope, call.gain = gain, call.eps = eps;
    call.workspace = FASTGAN_SPACE(instance_norm_workspace, device, workspace);
    call.y = at(y), call.statistics = at(statistics), call.x = at(x);
    call.style_scale = at(weight), call.style_bias = at(bias);
    FASTGAN_RUN(instance_norm_forward, device, stream);
}

void batch_norm_act_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool channels_last, int dtype,
                             Address workspace, double slope, double gain, Address dx, Address dweight, Address dbias,
                             Address dy, Address x, Address statistics, Address weight, Address bias) {
    NormCall call = of_batch(n, c, p, channels_last, dtype);
    call.slope = slope, call.gain = gain;
    call.workspace = FASTGAN_SPACE(instance_norm_workspace, device, workspace);
    call.dx = at(dx), call.dstyle_scale = at(dweight), call.dstyle_bias = at(dbias);
    call.dy = at(dy), call.x = at(x), call.statistics = at(statistics);
    call.style_scale = at(weight), call.style_bias = at(bias);
    FASTGAN_RUN(instance_norm_backward, device, stream);
}

}  // namespace

inline void bind_instance_norm(py::module_& m) {
    m.def("instance_norm_workspace", &instance_norm_workspace);
    m.def("instance_norm_forward", &instance_norm_forward, Released());
    m.def("instance_norm_backward", &instance_norm_backward, Released());
    m.def("batch_norm_act_workspace", &batch_norm_act_workspace);
    m.def("batch_norm_act_forward", &batch_norm_act_forward, Released());
    m.def("batch_norm_act_backward", &batch_norm_act_backward, Released());
}

}  // namespace fastgan
