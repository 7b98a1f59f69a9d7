// The Python module, of which each operation's bindings are a part. All are one translation unit: pybind11 costs each of
// them seconds of a compiler, more than everything else in it.
#include "common/abi.h"
#include "common/bindings.h"
#include "few_channels/bindings.h"
#include "filtered_noise_bias_act/bindings.h"
#include "image_batch/bindings.h"
#include "minibatch_stddev/bindings.h"
#include "noise_bias_act/bindings.h"
#include "norm/bindings.h"
#include "pixel_norm/bindings.h"
#include "samples/bindings.h"
#include "upfirdn2d/bindings.h"
#include "weight_gradient/bindings.h"

#ifndef FASTGAN_MODULE
#define FASTGAN_MODULE _C
#endif

namespace py = pybind11;

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
    fastgan::bind_noise_bias_act(m);
    fastgan::bind_instance_norm(m);
    fastgan::bind_upfirdn2d(m);
    fastgan::bind_filtered_noise_bias_act(m);
    fastgan::bind_pixel_norm(m);
    fastgan::bind_samples(m);
    fastgan::bind_minibatch_stddev(m);
    fastgan::bind_image_batch(m);
    fastgan::bind_few_channels(m);
    fastgan::bind_weight_gradient(m);
}
