// Copies of n floats that waste memory traffic in one way each, and one that wastes none. test_traffic.py lists what the
// counters must show. Called through ctypes.
#include <string>

#include "common/gpu.h"

namespace {

constexpr int threads = 256, side = 32;

__global__ void copy(const float* x, float* y) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4;
    gpu::store(y + i, gpu::load<4>(x + i));
}

// Neighbouring lanes are 8 floats apart.
__global__ void strided_reads(const float* x, float* y) {
    const int first = static_cast<int>(blockIdx.x * blockDim.x), t = static_cast<int>(threadIdx.x);
    y[first + t] = x[first + t % (threads / 8) * 8 + t / (threads / 8)];
}

// A block also reads what the next three blocks copy.
__global__ void reads_of_neighbours(const float* x, float* y) {
    const int step = static_cast<int>(blockDim.x), n = static_cast<int>(gridDim.x) * step;
    const int i = static_cast<int>(blockIdx.x) * step + static_cast<int>(threadIdx.x);
    y[i] = x[i] + 0 * (x[(i + step) % n] + x[(i + 2 * step) % n] + x[(i + 3 * step) % n]);
}

// A block's floats begin in the middle of a sector: the first lanes of a warp have nothing to do in its first round, so
// that every round begins at a sector.
__global__ void late_lanes(const float* x, float* y) {
    const int n = static_cast<int>(gridDim.x) * threads, before = 4;
    const int first = static_cast<int>(blockIdx.x) * threads + n - before, lane = static_cast<int>(threadIdx.x);
    for (int start = -before; start < threads; start += side) {
        const int i = (first + start + lane) % n;
        if (start + lane >= 0 && start + lane < threads) y[i] = x[i];
        __syncwarp();
    }
}

// By way of shared memory, where lanes are WIDTH floats apart: 32 puts them into one bank, 33 into all banks.
template <int WIDTH>
__global__ void columns_of_shared(const float* x, float* y) {
    SHARED(float, tile, [side][WIDTH]);
    const int i = static_cast<int>(blockIdx.x) * side * side, column = static_cast<int>(threadIdx.x);
    for (int row = 0; row < side; ++row) tile[column][row] = x[i + row * side + column];
    __syncwarp();
    for (int row = 0; row < side; ++row) y[i + row * side + column] = tile[column][row];
}

}  // namespace

extern "C" void run(const char* which, const float* x, float* y, int n) {
    const std::string name = which;
    const auto launch = [&](int grid, int block, auto kernel) { gpu::Launch(grid, block, 0, nullptr)(kernel, x, y); };
    if (name == "copy" || name == "copied_twice") launch(n / threads / 4, threads, copy);
    if (name == "copied_twice") launch(n / threads / 4, threads, copy);
    if (name == "late_lanes") launch(n / threads, side, late_lanes);
    if (name == "strided_reads") launch(n / threads, threads, strided_reads);
    if (name == "reads_of_neighbours") launch(n / threads, threads, reads_of_neighbours);
    if (name == "shared_without_conflicts") launch(n / side / side, side, columns_of_shared<side + 1>);
    if (name == "bank_conflicts") launch(n / side / side, side, columns_of_shared<side>);
}
