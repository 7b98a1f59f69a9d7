// The Python module. The build includes common/bindings.h and every csrc/*/call.h ahead of this file, so that there is no
// list of operations. All are one translation unit: pybind11 costs each of them seconds of a compiler.
#include "common/bindings.h"

#ifndef FASTGAN_MODULE
#define FASTGAN_MODULE _C
#endif

namespace py = pybind11;

PYBIND11_MODULE(FASTGAN_MODULE, m) {
    m.doc() = "Compiled kernels of fastgan; called through fastgan_kernels only.";
#ifdef FASTGAN_SOURCES
    m.attr("sources") = FASTGAN_SOURCES;
#endif
#ifdef FASTGAN_OPENMP
    m.attr("openmp") = bool(FASTGAN_OPENMP);
#else
    m.attr("openmp") = false;
#endif
#ifdef FASTGAN_WITH_CPU
    m.attr("has_cpu") = fastgan::isa_in_use() != nullptr;
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
    fastgan::Module module;
    for (const auto& add_to : fastgan::registrations()) add_to(module);
    m.attr("calls") = module.calls;
    m.attr("cpu") = module.cpu;
    m.attr("cuda") = module.cuda;
    m.attr("cpu_workspace") = module.cpu_workspace;
}
