// Instruction sets: those that the CPU has, those compiled, and the one in use.
#include "common/isa.h"

#include <atomic>
#include <stdexcept>

namespace fastgan {
namespace {

#if defined(__x86_64__)
#define FASTGAN_REPORTS(feature) (__builtin_cpu_supports(feature) != 0)  // asks the operating system as well
#else
#define FASTGAN_REPORTS(feature) false
#endif

struct Variant {
    Isa isa;
    const char* name;
    bool runs_here;
};

const std::vector<Variant>& variants() {
    static const std::vector<Variant> all = {
#ifdef FASTGAN_WITH_BASELINE
        {Isa::baseline, "baseline", true},
#endif
#ifdef FASTGAN_WITH_AVX2
        {Isa::avx2, "avx2", FASTGAN_REPORTS("avx2") && FASTGAN_REPORTS("fma") && FASTGAN_REPORTS("f16c")},
#endif
#ifdef FASTGAN_WITH_AVX512
        {Isa::avx512, "avx512",
         FASTGAN_REPORTS("avx512f") && FASTGAN_REPORTS("avx512bw") && FASTGAN_REPORTS("avx512dq") &&
             FASTGAN_REPORTS("avx512vl") && FASTGAN_REPORTS("avx512bf16") && FASTGAN_REPORTS("fma") &&
             FASTGAN_REPORTS("f16c")},
#endif
    };
    return all;
}

std::atomic<Isa>& in_use() {
    static std::atomic<Isa> isa = [] {
        Isa best = Isa::none;
        for (const Variant& v : variants()) {
            if (v.runs_here) best = v.isa;
        }
        return best;
    }();
    return isa;
}

}  // namespace

Isa current_isa() { return in_use().load(std::memory_order_relaxed); }

void throw_no_isa() { throw std::runtime_error("this CPU cannot execute the instruction sets that were compiled"); }

std::vector<std::string> isas_compiled() {
    std::vector<std::string> names;
    for (const Variant& v : variants()) names.push_back(v.name);
    return names;
}

const char* isa_in_use() {
    for (const Variant& v : variants()) {
        if (v.isa == current_isa()) return v.name;
    }
    return nullptr;
}

void use_isa(const std::string& name) {
    std::string known;
    for (const Variant& v : variants()) {
        if (name == v.name) {
            if (!v.runs_here) throw std::invalid_argument("this CPU cannot execute instruction set '" + name + "'");
            in_use().store(v.isa);
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(v.name);
    }
    throw std::invalid_argument("instruction set '" + name + "' was not compiled: choose from " + known);
}

std::vector<std::pair<std::string, bool>> cpu_features() {
    return {
#if defined(__x86_64__)
        {"sse2", true},
        {"avx2", FASTGAN_REPORTS("avx2")},
        {"fma", FASTGAN_REPORTS("fma")},
#ifdef FASTGAN_WITH_AVX2  // a compiler too old for AVX2 does not know this name either
        {"f16c", FASTGAN_REPORTS("f16c")},
#endif
        {"avx512f", FASTGAN_REPORTS("avx512f")},
        {"avx512bw", FASTGAN_REPORTS("avx512bw")},
        {"avx512dq", FASTGAN_REPORTS("avx512dq")},
        {"avx512vl", FASTGAN_REPORTS("avx512vl")},
#ifdef FASTGAN_WITH_AVX512
        {"avx512_bf16", FASTGAN_REPORTS("avx512bf16")},
#endif
#endif
    };
}

}  // namespace fastgan
