// Counts the memory traffic of emulated kernels. The kernels are compiled with -fsanitize=thread, which calls a hook at
// every access; traffic.cpp defines the hooks, in place of ThreadSanitizer's library.
//
// Accesses of the lanes of a warp at one instruction, each lane's k-th there since their last barrier or __syncwarp, form
// a request, as on a GPU. Only accesses to tensors named by fastgan_traffic_tensor and to shared memory count.
#pragma once

#include "cuda_emulation.h"

namespace emulation::traffic {

#ifdef EMULATION_TRAFFIC
void begin_launch(const Configuration& configuration, const void* kernel, std::uint64_t blocks, const char* shared,
                  const char* shared_end);
void begin_block();
void end_block();
void count_barrier();
void synchronize(std::size_t first, std::size_t count);  // threads: the next accesses of a warp's lanes form a request
#else
inline void begin_launch(const Configuration&, const void*, std::uint64_t, const char*, const char*) {}
inline void begin_block() {}
inline void end_block() {}
inline void count_barrier() {}
inline void synchronize(std::size_t, std::size_t) {}
#endif

}  // namespace emulation::traffic
