// The Python module: raw addresses, sizes and a stream come in; checking is done by the Python that calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "abi.h"
#include "noise_bias_act.h"
#ifdef FASTGAN_WITH_CPU
#include "cpu.h"

FASTGAN_CPU_ENTRY(void, noise_bias_act_forward, const fastgan::NoiseBiasActCall&)
FASTGAN_CPU_ENTRY(void, noise_bias_act_backward, const fastgan::NoiseBiasActCall&)
FASTGAN_CPU_ENTRY(void, noise_bias_act_double_backward, const fastgan::NoiseBiasActCall&)
FASTGAN_CPU_ENTRY(int64_t, noise_bias_act_workspace, const fastgan::NoiseBiasActCall&)
#endif
#ifdef FASTGAN_WITH_CUDA
namespace fastgan::cuda {
void noise_bias_act_forward(const NoiseBiasActCall&, int device, void* stream);
void noise_bias_act_backward(const NoiseBiasActCall&, int device, void* stream);
void noise_bias_act_double_backward(const NoiseBiasActCall&, int device, void* stream);
int64_t noise_bias_act_workspace(const NoiseBiasActCall&);
}  // namespace fastgan::cuda
#endif

#ifndef FASTGAN_MODULE
#define FASTGAN_MODULE _C
#endif

namespace py = pybind11;
using fastgan::NoiseBiasActCall;

namespace {

using Address = uintptr_t;  // 0 stands for an absent tensor

[[noreturn, maybe_unused]] int left_out(const char* part) {
    throw std::runtime_error(std::string("the extension was built without its ") + part + " kernels");
}

void* at(Address address) { return reinterpret_cast<void*>(address); }

// Where a call runs: device -1 is the CPU, others are GPUs, with a stream.
#ifdef FASTGAN_WITH_CPU
#define FASTGAN_ON_CPU(NAME) fastgan::cpu::NAME(call)
#else
#define FASTGAN_ON_CPU(NAME) left_out("CPU")
#endif
#ifdef FASTGAN_WITH_CUDA
#define FASTGAN_ON_GPU(NAME, ...) fastgan::cuda::NAME(__VA_ARGS__)
#else
#define FASTGAN_ON_GPU(NAME, ...) left_out("CUDA")
#endif

NoiseBiasActCall described(int64_t n, int64_t c, int64_t p, bool pixels, int dtype, int act, double slope, double gain,
                           double clamp) {
    NoiseBiasActCall call{};
    call.n = n, call.c = c, call.p = p, call.pixels = pixels;
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

int64_t noise_bias_act_workspace(int device, int64_t n, int64_t c, int64_t p, bool pixels, int dtype) {
    NoiseBiasActCall call = described(n, c, p, pixels, dtype, 0, 0, 0, 0);
    return device < 0 ? FASTGAN_ON_CPU(noise_bias_act_workspace) : FASTGAN_ON_GPU(noise_bias_act_workspace, call);
}

void noise_bias_act_forward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool pixels, int dtype, int act,
                            double slope, double gain, double clamp, Address workspace, Address y, Address x,
                            Address noise, bool noise_per_sample, Address strength, bool strength_per_channel,
                            Address bias, Address scale, Address post) {
    NoiseBiasActCall call = described(n, c, p, pixels, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = at(workspace), call.y = at(y), call.x = at(x);
    if (device < 0) {
        FASTGAN_ON_CPU(noise_bias_act_forward);
    } else {
        FASTGAN_ON_GPU(noise_bias_act_forward, call, device, at(stream));
    }
}

void noise_bias_act_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool pixels, int dtype,
                             int act, double slope, double gain, double clamp, Address workspace, Address dx,
                             Address dstrength, Address dbias, Address dscale, Address dpost, Address dy,
                             Address reference, bool from_output, Address noise, bool noise_per_sample,
                             Address strength, bool strength_per_channel, Address bias, Address scale, Address post) {
    NoiseBiasActCall call = described(n, c, p, pixels, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = at(workspace), call.dx = at(dx), call.dy = at(dy), call.reference = at(reference);
    call.from_output = from_output;
    call.dstrength = at(dstrength), call.dbias = at(dbias), call.dscale = at(dscale), call.dpost = at(dpost);
    if (device < 0) {
        FASTGAN_ON_CPU(noise_bias_act_backward);
    } else {
        FASTGAN_ON_GPU(noise_bias_act_backward, call, device, at(stream));
    }
}

void noise_bias_act_double_backward(int device, Address stream, int64_t n, int64_t c, int64_t p, bool pixels, int dtype,
                                    int act, double slope, double gain, double clamp, Address workspace, Address ddy,
                                    Address dx, Address dstrength, Address dbias, Address dscale, Address dpost,
                                    Address dy, Address reference, bool from_output, Address noise,
                                    bool noise_per_sample, Address strength, bool strength_per_channel, Address bias,
                                    Address scale, Address post, Address gx, Address gstrength, Address gbias,
                                    Address gscale, Address gpost) {
    NoiseBiasActCall call = described(n, c, p, pixels, dtype, act, slope, gain, clamp);
    small_tensors(call, noise, noise_per_sample, strength, strength_per_channel, bias, scale, post);
    call.workspace = at(workspace), call.ddy = at(ddy), call.dx = at(dx), call.dy = at(dy);
    call.reference = at(reference), call.from_output = from_output;
    call.dstrength = at(dstrength), call.dbias = at(dbias), call.dscale = at(dscale), call.dpost = at(dpost);
    call.gx = at(gx), call.gstrength = at(gstrength), call.gbias = at(gbias), call.gscale = at(gscale);
    call.gpost = at(gpost);
    if (device < 0) {
        FASTGAN_ON_CPU(noise_bias_act_double_backward);
    } else {
        FASTGAN_ON_GPU(noise_bias_act_double_backward, call, device, at(stream));
    }
}

}  // namespace

PYBIND11_MODULE(FASTGAN_MODULE, m) {
    m.doc() = "Compiled kernels of fastgan; called through fastgan_kernels only.";
    m.attr("abi") = FASTGAN_ABI;
#ifdef FASTGAN_OPENMP
    m.attr("openmp") = bool(FASTGAN_OPENMP);
#else
    m.attr("openmp") = false;
#endif
#ifdef FASTGAN_WITH_CPU
    m.attr("has_cpu") = true;
    m.attr("isas") = fastgan::isas_compiled();
    m.def("cpu_isa", &fastgan::isa_in_use);
    m.def("set_cpu_isa", &fastgan::use_isa);
    m.def("cpu_features", [] {
        py::dict features;
        for (const auto& [name, there] : fastgan::cpu_features()) features[name.c_str()] = there;
        return features;
    });
#else
    m.attr("has_cpu") = false;
    m.attr("isas") = std::vector<std::string>();
#endif
#ifdef FASTGAN_WITH_CUDA
    m.attr("has_cuda") = true;
#else
    m.attr("has_cuda") = false;
#endif
    const auto released = py::call_guard<py::gil_scoped_release>();
    m.def("noise_bias_act_workspace", &noise_bias_act_workspace);
    m.def("noise_bias_act_forward", &noise_bias_act_forward, released);
    m.def("noise_bias_act_backward", &noise_bias_act_backward, released);
    m.def("noise_bias_act_double_backward", &noise_bias_act_double_backward, released);
}
