// See traffic.h. Python reaches the functions of `extern "C"` by ctypes (tests/support/traffic.py).
#include "traffic.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emulation::traffic {
namespace {

constexpr std::uintptr_t sector = 32;  // bytes: the unit of transfer between L2 and L1
constexpr int warp = 32, banks = 32;

std::uint64_t bytes_kept = 0;  // bytes that blocks touched, each sector once a block, but for last accesses

// Sectors of a tensor that a launch reads, or writes.
struct Sectors {
    std::vector<std::uint32_t> last_block;  // of each sector: number of the last block with an access to it, from 1
    std::vector<std::uint64_t> last_time;   // of each sector: `bytes_kept` then
    std::uint64_t unique = 0, by_block = 0;
    std::uint64_t reuse = 0;  // most bytes kept between accesses of two blocks to a sector

    void add(std::uint64_t index, std::uint32_t block) {
        std::uint32_t& last = last_block[index];
        if (last == block) return;
        unique += last == 0;
        ++by_block;
        if (last != 0) reuse = std::max(reuse, bytes_kept - last_time[index]);
        last = block;
        last_time[index] = bytes_kept;
        if (!last_access) bytes_kept += sector;
    }
};

struct Tensor {
    std::string name;
    std::uintptr_t start, end;
    Sectors read, written;

    std::uint64_t sectors() const { return (end - 1) / sector - start / sector + 1; }
};

struct Access {
    std::uintptr_t address = 0;
    std::uint32_t bytes = 0;  // 0: the thread makes no such access
};

// An instruction that reads or writes one tensor, or shared memory.
struct Instruction {
    std::uint32_t offset;  // of its return address in the module
    int tensor;            // index, -1 for shared memory
    bool write;
    std::uint64_t requests = 0, lanes = 0, bytes = 0;  // bytes: of all lanes
    std::uint64_t units = 0, ideal = 0;                // sectors; of shared memory: passes
    std::vector<std::uint32_t> counts;                 // accesses of each thread of the block
    std::vector<Access> accesses;                      // [count, thread], of the block
};

std::vector<Tensor> tensors;
std::vector<Instruction> instructions;
std::unordered_map<std::uint64_t, std::size_t> instruction_at;  // offset, tensor, write -> index
std::string report;
Configuration configuration;
const void* launched_kernel;
std::uint64_t blocks_of_grid;
std::uint64_t barriers;  // that the executed blocks met
std::uintptr_t shared_start, shared_end;
std::uint32_t block;  // number of the block, from 1; 0 before the first
bool recording = false, in_block = false;

std::size_t threads_of(dim3 block_extent) { return std::size_t(block_extent.x) * block_extent.y * block_extent.z; }

std::size_t threads_of_block() { return threads_of(current.block_extent); }

int tensor_of(std::uintptr_t address) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (address >= tensors[i].start && address < tensors[i].end) return static_cast<int>(i);
    }
    return -1;
}

std::uint32_t offset_in_module(const void* address) {
    static const auto base = [] {
        Dl_info info;
        dladdr(reinterpret_cast<const void*>(&begin_launch), &info);
        return reinterpret_cast<std::uintptr_t>(info.dli_fbase);
    }();
    return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(address) - base);
}

void add_access(const void* p, std::size_t bytes, bool write, const void* return_address) {
    if (!in_block) return;
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const bool shared = address >= shared_start && address < shared_end;
    const int tensor = shared ? -1 : tensor_of(address);
    if (!shared && tensor < 0) return;  // registers, local memory, parameters
    const std::uint32_t offset = offset_in_module(return_address);
    const std::uint64_t key = std::uint64_t(offset) << 16 | std::uint64_t(tensor + 1) << 1 | std::uint64_t(write);
    const auto [found, is_new] = instruction_at.try_emplace(key, instructions.size());
    if (is_new) instructions.push_back({offset, tensor, write, 0, 0, 0, 0, 0, {}, {}});
    Instruction& instruction = instructions[found->second];

    const std::size_t threads = threads_of_block();
    const std::size_t thread =
        current.thread.x + current.block_extent.x * (current.thread.y + current.block_extent.y * current.thread.z);
    instruction.counts.resize(threads);
    const std::size_t at = instruction.counts[thread]++ * threads + thread;
    if (at >= instruction.accesses.size()) instruction.accesses.resize((at / threads + 1) * threads);
    instruction.accesses[at] = {address, static_cast<std::uint32_t>(bytes)};
    if (shared) return;
    Tensor& t = tensors[tensor];
    Sectors& sectors = write ? t.written : t.read;
    if (sectors.last_block.empty()) sectors.last_block.resize(t.sectors()), sectors.last_time.resize(t.sectors());
    for (std::uintptr_t s = address / sector; s <= (address + bytes - 1) / sector; ++s) {
        sectors.add(s - t.start / sector, block);
    }
}

// Sectors that a request touches, and how many its distinct bytes would fill.
void count_sectors(Instruction& instruction, std::array<Access, warp>& lanes, int count) {
    std::sort(lanes.begin(), lanes.begin() + count, [](Access a, Access b) { return a.address < b.address; });
    std::uint64_t bytes = 0, sectors = 0;
    std::uintptr_t end = 0, next_sector = 0;
    for (int i = 0; i < count; ++i) {
        const std::uintptr_t start = lanes[i].address, stop = start + lanes[i].bytes;
        if (stop > end) bytes += stop - std::max(start, end), end = stop;
        const std::uintptr_t first = std::max(start / sector, next_sector), last = (stop - 1) / sector;
        if (last >= first) sectors += last - first + 1, next_sector = last + 1;
    }
    instruction.units += sectors;
    instruction.ideal += (bytes + sector - 1) / sector;
}

// Passes through shared memory. A pass serves 128 bytes: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16. Two words of a
// bank need two passes, the same word does not. Other sizes count as the next larger.
void count_passes(Instruction& instruction, const std::array<Access, warp>& lanes, int count) {
    const int at_once = lanes[0].bytes > 8 ? 8 : lanes[0].bytes > 4 ? 16 : 32;
    for (int from = 0; from < count; from += at_once) {
        std::array<std::vector<std::uintptr_t>, banks> words;
        std::size_t passes = 1;
        for (int i = from; i < std::min(count, from + at_once); ++i) {
            for (std::uintptr_t w = lanes[i].address / 4; w <= (lanes[i].address + lanes[i].bytes - 1) / 4; ++w) {
                std::vector<std::uintptr_t>& bank = words[w % banks];
                if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
                passes = std::max(passes, bank.size());
            }
        }
        instruction.units += passes;
        ++instruction.ideal;
    }
}

void report_launch() {
    if (block == 0) return;
    const auto line = [](auto... words) {
        ((report += words + std::string("\t")), ...);
        report.back() = '\n';
    };
    const auto text = [](auto number) { return std::to_string(number); };
    line(std::string("launch"), std::string(configuration.place.file), text(configuration.place.line),
         text(offset_in_module(launched_kernel)), text(configuration.shared_bytes), text(blocks_of_grid), text(block),
         text(threads_of(configuration.block)), text(barriers));  // `current` may be of the next launch already
    for (const Tensor& t : tensors) {
        line(std::string("tensor"), t.name, text(t.sectors() * sector), text(t.read.unique * sector),
             text(t.read.by_block * sector), text(t.written.unique * sector), text(t.written.by_block * sector),
             text(t.read.reuse));
    }
    for (const Instruction& i : instructions) {
        line(std::string("instruction"), text(i.offset), i.tensor < 0 ? std::string("shared") : tensors[i.tensor].name,
             text(int(i.write)), text(i.requests), text(i.lanes), text(i.bytes), text(i.units), text(i.ideal));
    }
    for (Tensor& t : tensors) t.read = t.written = Sectors();
    instructions.clear();
    instruction_at.clear();
    block = 0;
    barriers = 0;
}

}  // namespace

void begin_launch(const Configuration& launched, const void* kernel, std::uint64_t blocks, const char* shared,
                  const char* end) {
    if (!recording) return;
    report_launch();
    configuration = launched;
    launched_kernel = kernel;
    blocks_of_grid = blocks;
    shared_start = reinterpret_cast<std::uintptr_t>(shared);
    shared_end = reinterpret_cast<std::uintptr_t>(end);
}

void begin_block() {
    if (!recording) return;
    ++block;
    in_block = true;
}

void end_block() {
    if (!in_block) return;
    in_block = false;
    const std::size_t threads = threads_of_block();
    for (Instruction& instruction : instructions) {
        for (std::size_t first = 0; first < instruction.accesses.size(); first += threads) {
            for (std::size_t lane = 0; lane < threads; lane += warp) {
                std::array<Access, warp> lanes;
                int count = 0;
                for (std::size_t i = lane; i < std::min(lane + warp, threads); ++i) {
                    if (instruction.accesses[first + i].bytes) lanes[count++] = instruction.accesses[first + i];
                }
                if (count == 0) continue;
                ++instruction.requests;
                instruction.lanes += count;
                for (int i = 0; i < count; ++i) instruction.bytes += lanes[i].bytes;
                instruction.tensor < 0 ? count_passes(instruction, lanes, count)
                                       : count_sectors(instruction, lanes, count);
            }
        }
        instruction.accesses.clear();
        instruction.counts.clear();
    }
}

void count_barrier() {
    barriers += in_block;
    synchronize(0, threads_of_block());
}

void synchronize(std::size_t first, std::size_t count) {
    if (!in_block) return;
    for (Instruction& instruction : instructions) {
        if (instruction.counts.empty()) continue;
        for (std::size_t lane = first; lane < first + count; lane += warp) {
            const auto begin = instruction.counts.begin() + lane,
                       end = begin + std::min<std::size_t>(warp, first + count - lane);
            std::fill(begin, end, *std::max_element(begin, end));
        }
    }
}

}  // namespace emulation::traffic

extern "C" {
using namespace emulation;

// Starts the record of the launches that follow.
void fastgan_traffic_start() {
    traffic::tensors.clear();
    traffic::report.clear();
    traffic::recording = true;
}

// Forgets all tensors: those of the next launch are named anew.
void fastgan_traffic_forget_tensors() {
    traffic::report_launch();
    traffic::tensors.clear();
}

void fastgan_traffic_tensor(const char* name, const void* start, std::uint64_t bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    if (bytes) traffic::tensors.push_back({name, address, address + bytes, {}, {}});
}

// Ends the record and returns it, a line an item with its fields separated by tabs; valid until the next start.
const char* fastgan_traffic_stop() {
    traffic::report_launch();
    traffic::recording = traffic::in_block = false;
    return traffic::report.c_str();
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define HOOKS_OF_SIZE(bytes)                                                                                          \
    void __tsan_read##bytes(void* p) { traffic::add_access(p, bytes, false, __builtin_return_address(0)); }           \
    void __tsan_write##bytes(void* p) { traffic::add_access(p, bytes, true, __builtin_return_address(0)); }           \
    void __tsan_unaligned_read##bytes(void* p) { traffic::add_access(p, bytes, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##bytes(void* p) { traffic::add_access(p, bytes, true, __builtin_return_address(0)); }
HOOKS_OF_SIZE(1)
HOOKS_OF_SIZE(2)
HOOKS_OF_SIZE(4)
HOOKS_OF_SIZE(8)
HOOKS_OF_SIZE(16)
void __tsan_read_range(void* p, std::size_t bytes) {
    traffic::add_access(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
    traffic::add_access(p, bytes, true, __builtin_return_address(0));
}
}
