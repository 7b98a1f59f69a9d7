// Python binding of seeded_bugs.cu. A file of its own, so that it need not be compiled again for each sanitizer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "seeded_bugs.h"

PYBIND11_MODULE(FASTGAN_MODULE, m) {
    m.def("names", [] {
        std::vector<std::string> names;
        for (const auto& item : seeded_bugs) names.push_back(item.first);
        return names;
    });
    m.def("run", [](const std::string& name) {
        std::vector<double> out;
        seeded_bugs.at(name)(out);
        return out;
    });
    m.def("convert", &convert);
}
