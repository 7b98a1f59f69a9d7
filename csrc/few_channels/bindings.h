// Bindings of few_channels, which is for CPUs only.
#pragma once

#include "common/bindings.h"
#include "few_channels/call.h"

FASTGAN_CPU_ENTRY(void, few_channels, const fastgan::FewChannelsCall&)
FASTGAN_CPU_ENTRY(int64_t, few_channels_workspace, const fastgan::FewChannelsCall&)

namespace fastgan {
namespace {

// The map's number in `FewChannelsMap`; dtype; [n, c, height, width] of many; [o, height, width] of few;
// [kh, kw, stride, top, left]; whether the taps are flipped; the steps in the weight.
FewChannelsCall few_channels_call(int map, int dtype, const std::array<int64_t, 4>& many,
                                  const std::array<int64_t, 3>& few, const std::array<int64_t, 5>& kernel, bool flipped,
                                  const std::array<int64_t, 3>& steps) {
    FewChannelsCall call{};
    call.map = static_cast<FewChannelsMap>(map), call.dtype = static_cast<Dtype>(dtype);
    call.n = many[0], call.c = many[1], call.height = many[2], call.width = many[3];
    call.o = few[0], call.few_height = few[1], call.few_width = few[2];
    call.kh = kernel[0], call.kw = kernel[1], call.stride = kernel[2], call.top = kernel[3], call.left = kernel[4];
    call.flipped = flipped;
    call.step_o = steps[0], call.step_tap = steps[1], call.step_c = steps[2];
    return call;
}

int64_t few_channels_workspace(int map, int dtype, const std::array<int64_t, 4>& many,
                               const std::array<int64_t, 3>& few, const std::array<int64_t, 5>& kernel, bool flipped,
                               const std::array<int64_t, 3>& steps) {
    const FewChannelsCall call = few_channels_call(map, dtype, many, few, kernel, flipped, steps);
    return FASTGAN_ON_CPU(few_channels_workspace);
}

void few_channels(int map, int dtype, const std::array<int64_t, 4>& many, const std::array<int64_t, 3>& few,
                  const std::array<int64_t, 5>& kernel, bool flipped, const std::array<int64_t, 3>& steps,
                  Address workspace, Address of_many, Address of_few, Address of_weight) {
    FewChannelsCall call = few_channels_call(map, dtype, many, few, kernel, flipped, steps);
    call.workspace = at(workspace), call.many = at(of_many), call.few = at(of_few), call.weight = at(of_weight);
    FASTGAN_ON_CPU(few_channels);
}

}  // namespace

inline void bind_few_channels(py::module_& m) {
    m.def("few_channels_workspace", &few_channels_workspace);
    m.def("few_channels", &few_channels, Released());
}

}  // namespace fastgan
