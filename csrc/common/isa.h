// Run-time dispatch of the CPU kernels, which are compiled once per instruction set.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fastgan {

enum class Isa { none, baseline, avx2, avx512 };

std::vector<std::string> isas_compiled();
// Null if this CPU cannot execute any that was compiled: then no kernel may be called.
const char* isa_in_use();
// Throws std::invalid_argument for a name that is unknown, was not compiled, or that this CPU cannot execute.
void use_isa(const std::string& name);
// The features that the CPU and the operating system report, for display.
std::vector<std::pair<std::string, bool>> cpu_features();

Isa current_isa();
[[noreturn]] void throw_no_isa();

}  // namespace fastgan

// FASTGAN_CPU_ENTRY(result, name, argument type) declares `name` in the namespace of each instruction set, and defines
// fastgan::cpu::name, which calls the one in use.
#ifdef FASTGAN_WITH_BASELINE
#define FASTGAN_DECLARE_BASELINE(R, NAME, A) \
    namespace baseline {                     \
    R NAME(A);                               \
    }
#define FASTGAN_CALL_BASELINE(NAME) \
    case ::fastgan::Isa::baseline: return ::baseline::NAME(argument);
#else
#define FASTGAN_DECLARE_BASELINE(R, NAME, A)
#define FASTGAN_CALL_BASELINE(NAME)
#endif
#ifdef FASTGAN_WITH_AVX2
#define FASTGAN_DECLARE_AVX2(R, NAME, A) \
    namespace avx2 {                     \
    R NAME(A);                           \
    }
#define FASTGAN_CALL_AVX2(NAME) \
    case ::fastgan::Isa::avx2: return ::avx2::NAME(argument);
#else
#define FASTGAN_DECLARE_AVX2(R, NAME, A)
#define FASTGAN_CALL_AVX2(NAME)
#endif
#ifdef FASTGAN_WITH_AVX512
#define FASTGAN_DECLARE_AVX512(R, NAME, A) \
    namespace avx512 {                     \
    R NAME(A);                             \
    }
#define FASTGAN_CALL_AVX512(NAME) \
    case ::fastgan::Isa::avx512: return ::avx512::NAME(argument);
#else
#define FASTGAN_DECLARE_AVX512(R, NAME, A)
#define FASTGAN_CALL_AVX512(NAME)
#endif
#define FASTGAN_CPU_ENTRY(R, NAME, A)    \
    FASTGAN_DECLARE_BASELINE(R, NAME, A) \
    FASTGAN_DECLARE_AVX2(R, NAME, A)     \
    FASTGAN_DECLARE_AVX512(R, NAME, A)   \
    namespace fastgan::cpu {             \
    inline R NAME(A argument) {          \
        switch (current_isa()) {         \
            FASTGAN_CALL_AVX512(NAME)    \
            FASTGAN_CALL_AVX2(NAME)      \
            FASTGAN_CALL_BASELINE(NAME)  \
            default: throw_no_isa();     \
        }                                \
    }                                    \
    }
