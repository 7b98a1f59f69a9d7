// The Python module: what it holds of each operation is in NAME_module.cpp.
#include "abi.h"
#include "bindings.h"

#ifndef FASTGAN_MODULE
#define FASTGAN_MODULE _C
#endif

#define FASTGAN_OPERATIONS(DO)                                                              \
    DO(noise_bias_act) DO(instance_norm) DO(upfirdn2d) DO(filtered_noise_bias_act) DO(pixel_norm) \
    DO(samples) DO(minibatch_stddev) DO(image_batch)

namespace fastgan {
#define FASTGAN_DECLARE(NAME) void bind_##NAME(py::module_&);
FASTGAN_OPERATIONS(FASTGAN_DECLARE)
}  // namespace fastgan

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
#define FASTGAN_BIND(NAME) fastgan::bind_##NAME(m);
    FASTGAN_OPERATIONS(FASTGAN_BIND)
}
