// Small kernels with one bug each, and their correct twins: what the emulation must refuse, and what it must accept.
// test_emulation.py lists the expected outcomes. A case returns its result in `out`.
#include "seeded_bugs.h"

#include <array>
#include <limits>
#include <memory>

#include "common/gpu.h"

namespace {

using gpu::Launch;
using Out = std::vector<double>;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// An allocation of exactly n values on the heap, where AddressSanitizer sees a step past either end.
struct Buffer {
    explicit Buffer(int n, float value = nan) : data(new float[n]), size(n) {
        for (int i = 0; i < n; ++i) data[i] = value;
    }
    Buffer& count_up() {
        for (int i = 0; i < size; ++i) data[i] = static_cast<float>(i);
        return *this;
    }
    void append_to(Out& out) const { out.insert(out.end(), data.get(), data.get() + size); }
    float* get() { return data.get(); }
    std::unique_ptr<float[]> data;
    int size;
};

// ----------------------------------------------------------------------------------------------------------- barriers

__global__ void barrier_in_branch(float* y) {
    if (threadIdx.x < 64) __syncthreads();
    y[threadIdx.x] = 1;
}

__global__ void barrier_after_return(float* y, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    y[threadIdx.x] = 1;
    __syncthreads();
}

__global__ void barrier_with_flag(float* y, int n) {
    const bool live = static_cast<int>(threadIdx.x) < n;
    if (live) y[threadIdx.x] = 1;
    __syncthreads();
}

__global__ void barriers_at_different_lines(float* y) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}

__global__ void barrier_meets_shuffle(float* y) {
    if (threadIdx.x < 16) __syncthreads();
    y[threadIdx.x] = __shfl_xor_sync(gpu::full_mask, 1.0f, 1);
}

__global__ void block_sums_in_branches(float* y) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = gpu::block_sum(1.0f);
    } else {
        y[threadIdx.x] = gpu::block_sum(2.0f);
    }
}

// ----------------------------------------------------------------------------------------------------- warp operations

__global__ void shuffle_in_branch(float* y) {
    const int lane = threadIdx.x % 32;
    float v = 1;
    if (lane < 16) v += __shfl_xor_sync(gpu::full_mask, v, 8);
    y[threadIdx.x] = v;
}

__global__ void shuffle_in_branch_exact_mask(float* y) {
    const int lane = threadIdx.x % 32;
    float v = static_cast<float>(lane);
    if (lane < 16) v += __shfl_xor_sync(0xffffu, v, 8);
    y[threadIdx.x] = v;
}

__global__ void shuffles_at_different_lines(float* y) {
    float v = 1;
    if (threadIdx.x % 2 == 0) {
        v = __shfl_sync(gpu::full_mask, v, 0);
    } else {
        v = __shfl_sync(gpu::full_mask, v, 1);
    }
    y[threadIdx.x] = v;
}

__global__ void lane_not_in_own_mask(float* y) { y[threadIdx.x] = __shfl_xor_sync(0x7fffffffu, 1.0f, 1); }

__global__ void mask_of_absent_lanes(float* y) { y[threadIdx.x] = gpu::warp_sum(1.0f); }

__global__ void masks_differ(float* y) {
    const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffffffffu;
    y[threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 1);
}

__global__ void result_of_inactive_lane(float* y) {
    float v = 1;
    if (threadIdx.x < 16) v = __shfl_down_sync(0xffffu, v, 8);
    y[threadIdx.x] = v;
}

__global__ void vote_in_branch(float* y) {
    if (threadIdx.x != 7) y[threadIdx.x] = static_cast<float>(__ballot_sync(gpu::full_mask, 1));
}

__global__ void syncwarp_in_branch(float* y) {
    if (threadIdx.x != 7) __syncwarp();
    y[threadIdx.x] = 1;
}

__global__ void shuffle_of_odd_width(float* y) { y[threadIdx.x] = __shfl_xor_sync(gpu::full_mask, 1.0f, 1, 12); }

// Results of every shuffle and vote, which the test compares with their definition.
__global__ void all_warp_operations(float* y, int width) {
    const int lane = threadIdx.x;
    float* row = y + lane * 8;
    row[0] = static_cast<float>(__shfl_sync(gpu::full_mask, lane, lane * 5 + 3, width));
    row[1] = static_cast<float>(__shfl_up_sync(gpu::full_mask, lane, 3, width));
    row[2] = static_cast<float>(__shfl_down_sync(gpu::full_mask, lane, 3, width));
    row[3] = static_cast<float>(__shfl_xor_sync(gpu::full_mask, lane, 5, width));
    row[4] = static_cast<float>(__ballot_sync(gpu::full_mask, lane % 3 == 0) & 0xffffu);
    row[5] = static_cast<float>(__any_sync(gpu::full_mask, lane == 9) * 2 + __all_sync(gpu::full_mask, lane != 9));
    row[6] = static_cast<float>(__shfl_sync(gpu::full_mask, static_cast<double>(lane), 4));
    row[7] = static_cast<float>(__syncthreads_count(lane % 4 == 0));
}

// ------------------------------------------------------------------------------------------------------- shared memory

template <bool barrier>
__global__ void rotate(const float* x, float* y) {
    SHARED(float, row, [64]);
    row[threadIdx.x] = x[threadIdx.x];
    if constexpr (barrier) __syncthreads();
    y[threadIdx.x] = row[(threadIdx.x + 1) % 64];
}

__global__ void unwritten_shared(float* y) {
    SHARED(float, row, [64]);
    DYN_SHARED(float, more);
    if (threadIdx.x != 5) row[threadIdx.x] = more[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x] + more[threadIdx.x];
}

__global__ void shared_of_previous_block(float* y) {
    SHARED(float, total, );
    if (blockIdx.x == 0 && threadIdx.x == 0) total = 1;
    __syncthreads();
    y[blockIdx.x] = total;
}

__global__ void too_much_static_shared(float* y) {
    SHARED(float, half_of_it, [6 << 10]);
    SHARED(float, too_much, [(6 << 10) + 1]);
    half_of_it[threadIdx.x] = too_much[threadIdx.x] = 1;
    y[threadIdx.x] = 1;
}

__global__ void static_beside_dynamic_shared(float* y) {
    SHARED(float, row, [32]);
    DYN_SHARED(float, more);
    row[threadIdx.x] = more[threadIdx.x] = 1;
    y[threadIdx.x] = 1;
}

__global__ void dynamic_shared(float* y, int read, int write) {
    DYN_SHARED(float, row);
    if (threadIdx.x == 0) row[write] = 1;
    __syncthreads();
    y[threadIdx.x] = row[read] == 1 ? 1 : 2;
}

__global__ void static_shared(float* y, int read, int write) {
    SHARED(float, before, [8]);
    SHARED(float, row, [8]);
    if (threadIdx.x == 0) before[0] = row[write] = 1;
    __syncthreads();
    y[threadIdx.x] = row[read] == 1 ? 1 : 2;
}

// ------------------------------------------------------------------------------------------- order, and repeatability

__global__ void last_thread_wins(float* y) { y[0] = static_cast<float>(threadIdx.x); }

__global__ void last_block_wins(float* y) { y[0] = static_cast<float>(blockIdx.x); }

__global__ void waits_for_later_block(const float*, float* y) {
    unsigned* counter = reinterpret_cast<unsigned*>(y);
    if (gpu::take_ticket(counter) == 0) gpu::wait_for(counter, 2);
}

// Each block writes its ticket, behind the counters.
__global__ void tickets(const float*, float* y) {
    unsigned* counters = reinterpret_cast<unsigned*>(y);
    const unsigned ticket = gpu::take_ticket(counters);
    gpu::wait_for(counters + 1, ticket);
    if (threadIdx.x == 0) y[2 + ticket] = static_cast<float>(ticket);
    gpu::arrive(counters + 1);
    if (ticket == 3 && threadIdx.x == 0) y[0] = y[1] = 0;
}

__global__ void float_atomics(const float* x, float* y) { atomicAdd(y, 1 / (x[threadIdx.x] + 1)); }

__global__ void block_reduction(const float* x, float* y) {
    const int t = gpu::thread_in_block();
    float values[2] = {1 / (x[t] + 1), 1};
    gpu::block_sum(values);
    y[t] = values[0] + values[1] + static_cast<float>(gpu::block_sum(static_cast<double>(x[t])));
}

__global__ void warp_reduction(const float* x, float* y) { y[threadIdx.x] = gpu::warp_sum(x[threadIdx.x]); }

// ------------------------------------------------------------------------------------------------------- global memory

template <int V>
__global__ void vector_copy(const float* __restrict__ x, float* y, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i + V <= n) gpu::store(y + i, gpu::load<V>(x + i));
}

template <bool shared>
__global__ void vector_to_shared(float* y) {
    DYN_SHARED(float, row);
    const gpu::Vec<float, 4> four = {1, 1, 1, 1};
    if constexpr (shared) {
        gpu::store_shared(row, four);
    } else {
        gpu::store(row, four);
    }
    y[threadIdx.x] = row[threadIdx.x];
}

__global__ void misaligned_vector(const float* x, float* y) { gpu::store(y, gpu::load<4>(x + 1)); }

__global__ void cast_to_vector(const float* x, float* y, int offset) {
    y[0] = reinterpret_cast<const gpu::Vec<float, 4>*>(x + offset)->v[0];
}

__global__ void cast_of_shared_to_vector(float* y) {
    SHARED(float, row, [8]);
    row[threadIdx.x % 8] = 1;
    __syncthreads();
    y[threadIdx.x] = reinterpret_cast<gpu::Vec<float, 4>*>(row)->v[0];
}

__global__ void read_at(const float* x, float* y, int offset) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) + offset];
}

__global__ void write_at(float* y, int offset) { y[static_cast<int>(threadIdx.x) + offset] = 1; }

// --------------------------------------------------------------------------------------------------------- arithmetic

__global__ void index_overflow(float* y, int rows, int row_length) { y[0] = rows * row_length > 0 ? 1.0f : 2.0f; }

__global__ void index_overflow_fixed(float* y, int rows, int row_length) {
    y[0] = static_cast<std::int64_t>(rows) * row_length > 0 ? 1.0f : 2.0f;
}

__global__ void shift_too_far(float* y, int by) { y[0] = static_cast<float>(1 << by); }

__global__ void local_array(float* y, int i) {
    float values[4] = {1, 1, 1, 1};
    y[0] = values[i];
}

__global__ void throws(float* y) {
    std::array<float, 4> values{1, 1, 1, 1};
    y[threadIdx.x] = values.at(threadIdx.x);
}

__global__ void conversions(float* y, const float* x) {
    const float v = x[threadIdx.x];
    y[2 * threadIdx.x] = gpu::to<float>(gpu::from<__half>(v));
    y[2 * threadIdx.x + 1] = gpu::to<float>(gpu::from<__nv_bfloat16>(v));
}

// ----------------------------------------------------------------------------------------------------------- the table

// A case of one kernel, whose first argument is its result of n values.
template <class... P, class... A>
std::function<void(Out&)> one(int n, dim3 grid, dim3 block, int shared, void (*kernel)(float*, P...), A... arguments) {
    return [=](Out& out) {
        Buffer y(n);
        Launch(grid, block, shared, nullptr)(kernel, y.get(), arguments...);
        y.append_to(out);
    };
}

// The same, with an input 0, 1, 2, ... of m values before it.
template <class... P, class... A>
std::function<void(Out&)> two(int m, int n, dim3 grid, dim3 block, void (*kernel)(const float*, float*, P...),
                              A... arguments) {
    return [=](Out& out) {
        Buffer x(m), y(n, 0);
        Launch(grid, block, 0, nullptr)(kernel, x.count_up().get(), y.get(), arguments...);
        y.append_to(out);
    };
}

}  // namespace

const std::map<std::string, std::function<void(Out&)>> seeded_bugs = {
    {"barrier_in_branch", one(128, 1, 128, 0, barrier_in_branch)},
    {"barrier_after_return", one(128, 1, 128, 0, barrier_after_return, 100)},
    {"barrier_with_flag", one(100, 1, 128, 0, barrier_with_flag, 100)},
    {"barriers_at_different_lines", one(64, 1, 64, 0, barriers_at_different_lines)},
    {"barrier_meets_shuffle", one(32, 1, 32, 0, barrier_meets_shuffle)},
    {"block_sums_in_branches", one(64, 1, 64, 0, block_sums_in_branches)},

    {"shuffle_in_branch", one(64, 1, 64, 0, shuffle_in_branch)},
    {"shuffle_in_branch_exact_mask", one(64, 1, 64, 0, shuffle_in_branch_exact_mask)},
    {"shuffles_at_different_lines", one(32, 1, 32, 0, shuffles_at_different_lines)},
    {"lane_not_in_own_mask", one(32, 1, 32, 0, lane_not_in_own_mask)},
    {"mask_of_absent_lanes", one(48, 1, 48, 0, mask_of_absent_lanes)},
    {"masks_differ", one(32, 1, 32, 0, masks_differ)},
    {"result_of_inactive_lane", one(32, 1, 32, 0, result_of_inactive_lane)},
    {"vote_in_branch", one(32, 1, 32, 0, vote_in_branch)},
    {"syncwarp_in_branch", one(32, 1, 32, 0, syncwarp_in_branch)},
    {"shuffle_of_odd_width", one(32, 1, 32, 0, shuffle_of_odd_width)},
    {"all_warp_operations_32", one(256, 1, 32, 0, all_warp_operations, 32)},
    {"all_warp_operations_8", one(256, 1, 32, 0, all_warp_operations, 8)},

    {"missing_barrier", two(64, 64, 1, 64, rotate<false>)},
    {"missing_barrier_fixed", two(64, 64, 1, 64, rotate<true>)},
    {"unwritten_shared", one(64, 1, 64, 256, unwritten_shared)},
    {"shared_of_previous_block", one(2, 2, 32, 0, shared_of_previous_block)},
    {"too_much_static_shared", one(32, 1, 32, 0, too_much_static_shared)},
    {"too_much_dynamic_shared", one(32, 1, 32, (227 << 10) + 4, dynamic_shared, 0, 0)},
    {"most_dynamic_shared", one(32, 1, 32, 227 << 10, dynamic_shared, (227 << 8) - 1, (227 << 8) - 1)},
    {"static_beside_dynamic_shared", one(32, 1, 32, 227 << 10, static_beside_dynamic_shared)},
    {"dynamic_shared_written_past_end", one(32, 1, 32, 40, dynamic_shared, 0, 10)},
    {"dynamic_shared_read_past_end", one(32, 1, 32, 40, dynamic_shared, 10, 0)},
    {"static_shared_written_past_end", one(32, 1, 32, 0, static_shared, 0, 8)},
    {"static_shared_written_before_start", one(32, 1, 32, 0, static_shared, 0, -1)},
    {"static_shared_read_past_end", one(32, 1, 32, 0, static_shared, 8, 0)},
    {"static_shared", one(32, 1, 32, 0, static_shared, 7, 7)},

    {"last_thread_wins", one(1, 1, 64, 0, last_thread_wins)},
    {"last_block_wins", one(1, 7, 1, 0, last_block_wins)},
    {"waits_for_later_block", two(1, 1, 2, 32, waits_for_later_block)},
    {"tickets", two(1, 6, 4, 32, tickets)},
    {"float_atomics", two(1024, 1, 1, 1024, float_atomics)},
    {"block_reduction", two(1024, 1024, 1, dim3(32, 8, 4), block_reduction)},
    {"warp_reduction", two(64, 64, 1, 64, warp_reduction)},

    {"vector_copy", two(4 * 321, 4 * 321, 6, 64, vector_copy<4>, 4 * 321)},
    {"vector_to_shared", one(4, 1, 4, 16, vector_to_shared<true>)},
    {"global_vector_to_shared", one(4, 1, 4, 16, vector_to_shared<false>)},
    {"misaligned_vector", two(8, 4, 1, 1, misaligned_vector)},
    {"misaligned_cast", two(8, 1, 1, 1, cast_to_vector, 1)},
    {"aligned_cast", two(8, 1, 1, 1, cast_to_vector, 4)},
    {"misaligned_cast_of_shared", one(32, 1, 32, 0, cast_of_shared_to_vector)},
    {"read_past_end", two(32, 32, 1, 32, read_at, 1)},
    {"read_before_start", two(32, 32, 1, 32, read_at, -1)},
    {"read", two(32, 32, 1, 32, read_at, 0)},
    {"written_past_end", one(32, 1, 32, 0, write_at, 1)},
    {"written_before_start", one(32, 1, 32, 0, write_at, -1)},
    {"written", one(32, 1, 32, 0, write_at, 0)},

    {"too_many_threads", one(1, 1, 1025, 0, last_thread_wins)},
    {"too_many_threads_in_3d", one(1, 1, dim3(32, 32, 2), 0, last_thread_wins)},
    {"block_too_deep", one(1, 1, dim3(1, 1, 65), 0, last_thread_wins)},
    {"empty_grid", one(1, 0, 32, 0, last_thread_wins)},
    {"empty_block", one(1, 1, 0, 0, last_thread_wins)},
    {"grid_too_tall", one(1, dim3(1, 65536), 32, 0, last_thread_wins)},
    {"grid_too_wide", one(1, dim3(0x80000000u), 32, 0, last_thread_wins)},

    {"index_overflow", one(1, 1, 1, 0, index_overflow, 1 << 16, 1 << 16)},
    {"index_overflow_fixed", one(1, 1, 1, 0, index_overflow_fixed, 1 << 16, 1 << 16)},
    {"shift_too_far", one(1, 1, 1, 0, shift_too_far, 32)},
    {"local_array_past_end", one(1, 1, 1, 0, local_array, 4)},
    {"throws", one(32, 1, 32, 0, throws)},
};

// For the test of conversions: each float as the nearest __half and the nearest __nv_bfloat16.
std::vector<float> convert(const std::vector<float>& values) {
    const int n = static_cast<int>(values.size());
    std::vector<float> result(2 * values.size());
    Launch launch(1, n, 0, nullptr);
    launch(conversions, result.data(), values.data());
    return result;
}
