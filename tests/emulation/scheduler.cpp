// Executes kernels for cuda_emulation.h: the fibers that stand for CUDA threads, their barriers and warp operations,
// shared memory, and the checks of all of these. This file is never compiled with a sanitizer. It tells
// AddressSanitizer about stacks and shared memory (-DEMULATION_ADDRESS), and answers the calls of UBSan instrumentation
// itself.
//
// A complaint ends the launch: the fibers of the block are abandoned where they stand, without unwinding (compilers may
// assume that the complaining code cannot throw), and launch() throws.
#include "cuda_emulation.h"
#include "traffic.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__) || !defined(__linux__)
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

#ifdef EMULATION_ADDRESS
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
void __asan_poison_memory_region(const volatile void* p, std::size_t size);
void __asan_unpoison_memory_region(const volatile void* p, std::size_t size);
void __asan_set_error_report_callback(void (*callback)(const char*));
}
#endif

namespace emulation {

Current current;
bool last_access = false;

namespace {

constexpr int warp = 32;
constexpr std::size_t static_shared_limit = 48 << 10, shared_limit = 227 << 10;  // of sm_90 and sm_100
constexpr std::size_t redzone = 64;
#ifdef EMULATION_ADDRESS
constexpr std::size_t stack_size = 256 << 10;  // instrumented frames are large
#else
constexpr std::size_t stack_size = 72 << 10;  // not a power of two: equal frames should not fall into equal cache sets
#endif

// ------------------------------------------------------------------------------------------------------------- fibers

struct Fiber {
    char* stack = nullptr;  // lowest address
    std::size_t size = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
#ifdef EMULATION_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
};

void fiber_main();

#ifndef EMULATION_UCONTEXT
// Saves the callee-saved registers and the stack pointer, and loads those of another fiber. At file scope, since the
// compiler looks into naked functions when it allocates registers in their callers.
extern "C" void fastgan_emulation_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl fastgan_emulation_switch
.hidden fastgan_emulation_switch
.type fastgan_emulation_switch, @function
fastgan_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastgan_emulation_switch, . - fastgan_emulation_switch
)");
#endif

// Makes the fiber start in fiber_main at the next switch to it, whatever it did before.
void rewind(Fiber& fiber) {
#ifdef EMULATION_ADDRESS
    __asan_unpoison_memory_region(fiber.stack, fiber.size);
    fiber.fake_stack = nullptr;
#endif
#ifdef EMULATION_UCONTEXT
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = fiber.size;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#else
    void** top = reinterpret_cast<void**>(fiber.stack + fiber.size);
    *--top = nullptr;  // return address of fiber_main, which does not return: debuggers stop here
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
#endif
}

// ---------------------------------------------------------------------------------------------------------- the state

enum class State { ready, at_barrier, in_warp_operation, done };

struct Thread {
    State state = State::ready;
    Fiber* fiber = nullptr;  // null before it starts and after it ends
    uint3 index{};
    Place place{};  // of the barrier or warp operation that it waits in, or was last in
    bool predicate = false;
    WarpOperation operation{};
    unsigned mask = 0;
    std::uint64_t value = 0, result = 0;
    int argument = 0, width = 0;

    // Lanes that have arrived at the warp operation of which this is the lowest lane.
    unsigned arrived = 0;
};

struct SharedArray {
    const void* declaration;
    char* start;
    std::size_t bytes;
    const char* name;
    Place place;
};

enum class Order { forward, reverse, shuffled };

struct Scheduler {
    std::mutex mutex;

    // The launch.
    Configuration configuration{};
    const void* kernel = nullptr;
    void (*call)(void*) = nullptr;
    void* body = nullptr;
    Order order = Order::forward;
    bool skips_blocks = false;  // not all blocks are executed
    std::uint64_t skipped = 0;  // blocks left out just before the current one
    std::uint32_t random = 0;
    std::vector<Thread> threads;
    int running = -1;  // index of the executing thread, -1 outside of kernels
    std::exception_ptr failure;

    // The block. `ready` is a stack: the next thread is at its end.
    std::vector<int> ready, scratch;
    int done = 0, arrived = 0, predicates = 0;

    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle;
    Fiber host;  // the caller of launch()
    Fiber* active = &host;

    char* arena = nullptr;
    char *arena_used = nullptr, *arena_end = nullptr;
    std::vector<SharedArray> shared;  // the first is the dynamic one
    std::size_t static_bytes = 0;
} S;

// The first report of AddressSanitizer, which continues after it. It is raised at the thread's next stop, since reports
// are made under locks. Fixed buffers, since nothing can be allocated safely there.
struct AddressReport {
    bool pending = false;
    char what[128], file[512];
    int line;
} address_report;

// ----------------------------------------------------------------------------------------------------------- messages

std::string at(Place place) { return std::string(place.file) + ":" + std::to_string(place.line); }

std::string triple(uint3 v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string triple(dim3 v) { return triple(uint3{v.x, v.y, v.z}); }

// Empty if the kernel has internal linkage, as in an unnamed namespace.
std::string kernel_name() {
    Dl_info info;
    if (dladdr(S.kernel, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != S.kernel) return "";
    int status = 0;
    char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    const std::string name = plain ? plain : info.dli_sname;
    std::free(plain);
    return name + "; ";
}

void switch_to(Fiber& next);

[[noreturn]] void fail(const std::string& what, Place place, bool name_thread = true) {
    std::string message = at(place) + ": " + what;
    if (S.call != nullptr) {
        message += " [" + kernel_name();
        if (S.active != &S.host || !name_thread) message += "block " + triple(current.block) + "; ";
        if (S.active != &S.host && name_thread) message += "thread " + triple(current.thread) + "; ";
        message += "launched at " + at(S.configuration.place) + "]";
    }
    auto error = std::make_exception_ptr(std::runtime_error(message));
    if (S.active == &S.host) std::rethrow_exception(error);
    S.failure = error;
    switch_to(S.host);
    std::abort();  // not reached: nothing resumes this fiber
}

void raise_address_report() {
    if (!address_report.pending) return;
    address_report.pending = false;
    fail(std::string("AddressSanitizer: ") + address_report.what, {address_report.file, address_report.line});
}

const char* name_of(WarpOperation operation) {
    static const char* const names[] = {"shuffle", "shuffle up", "shuffle down", "shuffle xor",
                                        "ballot",  "vote any",   "vote all",     "__syncwarp"};
    return names[static_cast<int>(operation)];
}

std::string hexadecimal(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

std::string whereabouts(const Thread& thread) {
    const std::string who = "thread " + triple(thread.index);
    switch (thread.state) {
        case State::done: return who + " has ended";
        case State::at_barrier: return who + " waits at the barrier at " + at(thread.place);
        case State::in_warp_operation:
            return who + " waits in " + name_of(thread.operation) + " with mask " + hexadecimal(thread.mask) + " at " +
                   at(thread.place);
        default: return who + " is ready";
    }
}

bool same(Place a, Place b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

// --------------------------------------------------------------------------------------------------- what runs when

std::uint32_t random_below(std::uint32_t n) {  // xorshift: the same sequence at each launch
    S.random ^= S.random << 13;
    S.random ^= S.random >> 17;
    S.random ^= S.random << 5;
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(S.random) * n >> 32);
}

// Makes the threads in `scratch`, ascending, ready in the requested order, before all others.
void release_scratch() {
    std::vector<int>& list = S.scratch;
    if (S.order == Order::forward) std::reverse(list.begin(), list.end());  // threads are taken from the end of `ready`
    if (S.order == Order::shuffled) {
        for (std::size_t i = list.size(); i > 1; --i)
            std::swap(list[i - 1], list[random_below(static_cast<unsigned>(i))]);
    }
    for (int t : list) S.threads[t].state = State::ready;
    S.ready.insert(S.ready.end(), list.begin(), list.end());
    list.clear();
}

void after_switch([[maybe_unused]] Fiber& self) {
#ifdef EMULATION_ADDRESS
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &size);
    if (S.active == &S.host) {  // the switch came from the host, whose stack only AddressSanitizer knows
        S.host.stack = static_cast<char*>(const_cast<void*>(bottom));
        S.host.size = size;
    }
#endif
    S.active = &self;
}

void switch_to(Fiber& next) {
    Fiber& self = *S.active;
#ifdef EMULATION_ADDRESS
    __sanitizer_start_switch_fiber(&self.fake_stack, next.stack, next.size);
#endif
#ifdef EMULATION_UCONTEXT
    swapcontext(&self.context, &next.context);
#else
    fastgan_emulation_switch(&self.stack_pointer, next.stack_pointer);
#endif
    after_switch(self);
}

Fiber& idle_fiber() {
    if (S.idle.empty()) {
        static const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        void* memory = mmap(nullptr, stack_size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for the stack of a thread");
        mprotect(memory, page, PROT_NONE);  // a stack overflow ends the process instead of corrupting the next stack
        auto fiber = std::make_unique<Fiber>();
        fiber->stack = static_cast<char*>(memory) + page;
        fiber->size = stack_size - S.fibers.size() % 32 * 256;  // equal frames should not fall into equal cache sets
        rewind(*fiber);
        S.idle.push_back(fiber.get());
        S.fibers.push_back(std::move(fiber));
    }
    Fiber* fiber = S.idle.back();
    S.idle.pop_back();
    return *fiber;
}

// Selects the thread that runs next. It has no fiber yet if it has not started.
Thread& next_thread() {
    S.running = S.ready.back();
    S.ready.pop_back();
    Thread& thread = S.threads[S.running];
    current.thread = thread.index;
    return thread;
}

// No thread can continue, and not all have ended: reports which thread waits for which.
[[noreturn]] void stuck() {
    for (const Thread& thread : S.threads) {
        if (thread.state != State::in_warp_operation) continue;
        const int first = static_cast<int>(&thread - S.threads.data()) / warp * warp;
        for (int lane = 0; lane < warp; ++lane) {
            const int other = first + lane;
            if (!(thread.mask >> lane & 1u) || S.threads[other].state == State::in_warp_operation) continue;
            current.thread = thread.index;
            fail(std::string("divergent warp operation: ") + whereabouts(thread) + ", lane " + std::to_string(lane) +
                     " never arrives: " + whereabouts(S.threads[other]),
                 thread.place);
        }
    }
    const Thread *waiting = nullptr, *missing = nullptr;
    for (const Thread& thread : S.threads) (thread.state == State::at_barrier ? waiting : missing) = &thread;
    if (waiting == nullptr || missing == nullptr) std::abort();  // a bug in this file
    current.thread = waiting->index;
    fail("divergent barrier: reached by " + std::to_string(S.arrived) + " of " + std::to_string(S.threads.size()) +
             " threads; " + whereabouts(*missing),
         waiting->place);
}

// The running thread waits: another runs until this one is made ready again.
void wait() {
    if (S.ready.empty()) stuck();
    Thread& next = next_thread();
    if (next.fiber == S.active) return;
    if (next.fiber == nullptr) next.fiber = &idle_fiber();
    switch_to(*next.fiber);
}

// A fiber executes one thread after another, so that a block without barriers needs a single fiber.
void fiber_main() {
    // A fiber begins with the second half of a switch. Its thread knows which fiber this is.
    Fiber& self = *S.threads[S.running].fiber;
    after_switch(self);
    for (;;) {
        try {
            S.call(S.body);
        } catch (...) {
            S.failure = std::current_exception();
        }
        if (S.failure) switch_to(S.host);
        raise_address_report();
        Thread& ended = S.threads[S.running];
        ended.state = State::done;
        ended.fiber = nullptr;
        ++S.done;
        if (!S.ready.empty()) {
            Thread& next = next_thread();
            if (next.fiber == nullptr) {
                next.fiber = &self;
            } else {
                S.idle.push_back(&self);
                switch_to(*next.fiber);
            }
        } else if (S.done == static_cast<int>(S.threads.size())) {
            S.idle.push_back(&self);
            switch_to(S.host);
        } else {
            stuck();
        }
    }
}

// ------------------------------------------------------------------------------------------------------ shared memory

// Arrays lie in the arena one after another, with a redzone on either side: poisoned under AddressSanitizer, else
// filled with a pattern that is checked after each block.
constexpr unsigned char pattern = 0xa5;
constexpr std::size_t arena_size = shared_limit + static_shared_limit + (64 << 10);

void set_up_shared() {
    if (S.arena == nullptr) {
        void* memory = mmap(nullptr, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for shared memory");
        S.arena = S.arena_used = static_cast<char*>(memory);
        S.arena_end = S.arena + arena_size;
#ifndef EMULATION_ADDRESS
        std::memset(S.arena, pattern, arena_size);
#endif
    }
#ifdef EMULATION_ADDRESS
    __asan_poison_memory_region(S.arena, arena_size);
#else
    std::memset(S.arena, pattern, static_cast<std::size_t>(S.arena_used - S.arena) + redzone);
#endif
    S.arena_used = S.arena;
    S.shared.clear();
    S.static_bytes = 0;
}

void* place_shared(const void* declaration, std::size_t bytes, std::size_t alignment, const char* name, Place place) {
    // Aligned to what was declared and to no more, so that a wider access through a cast is found misaligned.
#ifdef EMULATION_ADDRESS
    alignment = std::max<std::size_t>(alignment, 8);  // below that, the bytes before the array cannot be poisoned
#endif
    char* start = S.arena_used + redzone;
    start += 2 * alignment - reinterpret_cast<std::uintptr_t>(start) % (2 * alignment) + alignment;
    if (start + bytes + redzone > S.arena_end) fail("too many declarations of shared memory", place);
#ifdef EMULATION_ADDRESS
    __asan_unpoison_memory_region(start, bytes);
#endif
    std::memset(start, 0xff, bytes);
    S.arena_used = start + bytes;
    S.shared.push_back({declaration, start, bytes, name, place});
    return start;
}

void check_redzones() {
#ifndef EMULATION_ADDRESS
    const auto intact = [](const char* p) {
        return std::all_of(p, p + redzone, [](char c) { return static_cast<unsigned char>(c) == pattern; });
    };
    for (const SharedArray& array : S.shared) {
        const bool before = intact(array.start - redzone);
        if (before && intact(array.start + array.bytes)) continue;
        fail(std::string("shared memory written ") + (before ? "past the end of " : "before the start of ") +
                 array.name + ", " + std::to_string(array.bytes) + " bytes",
             array.place, false);
    }
#endif
}

// ----------------------------------------------------------------------------------------------------------- launches

Order order_asked_for() {
    const char* text = std::getenv("FASTGAN_EMULATED_ORDER");
    const std::string name = text == nullptr ? "forward" : text;
    if (name == "forward") return Order::forward;
    if (name == "reverse") return Order::reverse;
    if (name == "shuffled") return Order::shuffled;
    throw std::runtime_error("FASTGAN_EMULATED_ORDER is '" + name + "'; it can be forward, reverse or shuffled");
}

// FASTGAN_EMULATED_ENDS=k executes only the first and the last k blocks of every launch, where a whole grid would take
// hours. All blocks if it is not set.
std::uint64_t blocks_at_each_end(std::uint64_t blocks) {
    const char* text = std::getenv("FASTGAN_EMULATED_ENDS");
    if (text == nullptr) return blocks;
    const long long ends = std::atoll(text);
    if (ends < 1)
        throw std::runtime_error(std::string("FASTGAN_EMULATED_ENDS is '") + text + "'; it must be 1 at least");
    return static_cast<std::uint64_t>(ends);
}

void check_limits(const Configuration& c) {
    const auto refuse = [&](const std::string& what) { fail(what, c.place); };
    const dim3 g = c.grid, b = c.block;
    if (g.x == 0 || g.y == 0 || g.z == 0) refuse("empty grid " + triple(g));
    if (b.x == 0 || b.y == 0 || b.z == 0) refuse("empty block " + triple(b));
    if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
        refuse("grid " + triple(g) + " exceeds (2147483647, 65535, 65535)");
    }
    if (b.x > 1024 || b.y > 1024 || b.z > 64) refuse("block " + triple(b) + " exceeds (1024, 1024, 64)");
    if (b.x * b.y * b.z > 1024) refuse("block " + triple(b) + " has more than 1024 threads");
    if (c.shared_bytes > shared_limit) {
        refuse(std::to_string(c.shared_bytes) + " bytes of dynamic shared memory exceed " +
               std::to_string(shared_limit));
    }
}

void run_block() {
    S.done = S.arrived = S.predicates = 0;
    for (const SharedArray& array : S.shared) std::memset(array.start, 0xff, array.bytes);
    S.scratch.resize(S.threads.size());
    std::iota(S.scratch.begin(), S.scratch.end(), 0);
    release_scratch();
    Thread& first = next_thread();
    first.fiber = &idle_fiber();
    traffic::begin_block();
    switch_to(*first.fiber);
    traffic::end_block();
    if (S.failure) std::rethrow_exception(S.failure);
    check_redzones();
}

// After a failure the fibers stand in the middle of the kernel: all are sent back to their start.
void clean_up() {
    if (S.failure) {
        S.idle.clear();
        for (auto& fiber : S.fibers) {
            rewind(*fiber);
            S.idle.push_back(fiber.get());
        }
    }
    S.failure = nullptr;
    S.ready.clear();
    S.scratch.clear();
    S.call = nullptr;
    S.running = -1;
    address_report.pending = false;
}

#ifdef EMULATION_ADDRESS
// The report as text: "... AddressSanitizer: KIND on ...", "READ of size 4 at ...", "#0 0x... in KERNEL FILE:LINE".
void take_address_report(const char* report) {
    if (S.active == &S.host) std::abort();  // not in a kernel; the report has been printed
    if (address_report.pending) return;
    address_report.pending = true;
    const auto find = [&](const char* key, std::size_t skip) {
        const char* start = std::strstr(report, key);
        return start == nullptr ? "" : start + skip;
    };
    const char* kind = find("AddressSanitizer: ", 18);
    const char* access = *find("READ of size", 0) ? find("READ of size", 0) : find("WRITE of size", 0);
    const auto until = [](const char* text, const char* stop) { return static_cast<int>(std::strcspn(text, stop)); };
    std::snprintf(address_report.what, sizeof address_report.what, "%.*s, %.*s", until(kind, " \n"), kind,
                  until(access, "a\n"), access);  // up to "at"
    // The place is the end of the first line of the stack trace; without debug information, that of the launch.
    char frame[512];
    const char* first = find("#0 ", 3);
    std::snprintf(frame, sizeof frame, "%.*s", until(first, "\n"), first);
    char *colon = std::strrchr(frame, ':'), *space = std::strrchr(frame, ' ');
    if (colon != nullptr && space != nullptr && space < colon && std::atoi(colon + 1) > 0) {
        *colon = 0;
        std::snprintf(address_report.file, sizeof address_report.file, "%s", space + 1);
        address_report.line = std::atoi(colon + 1);
    } else {
        std::snprintf(address_report.file, sizeof address_report.file, "%s", S.configuration.place.file);
        address_report.line = S.configuration.place.line;
    }
}

[[maybe_unused]] const bool callback_set = (__asan_set_error_report_callback(take_address_report), true);
#endif

}  // namespace

void complain(const char* what, Place place) { fail(what, place); }

void launch(const Configuration& configuration, const void* kernel, void (*call)(void*), void* body) {
    if (S.active != &S.host) fail("a kernel launches a kernel", configuration.place);
    const std::lock_guard<std::mutex> lock(S.mutex);
    S.order = order_asked_for();
    S.random = 2463534242u;
    S.configuration = configuration;
    S.kernel = kernel;
    S.call = call;
    S.body = body;
    struct CleanUp {
        ~CleanUp() { clean_up(); }
    } at_the_end;
    check_limits(configuration);
    set_up_shared();
    place_shared(nullptr, configuration.shared_bytes, 16, "dynamic shared memory", configuration.place);

    const dim3 grid = configuration.grid, block = configuration.block;
    current.grid_extent = grid;
    current.block_extent = block;
    S.threads.assign(block.x * block.y * block.z, Thread());
    for (unsigned t = 0; t < S.threads.size(); ++t) {
        S.threads[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    // Blocks follow the same order as threads. Shuffled blocks are taken with a stride coprime to their number.
    const std::uint64_t all = static_cast<std::uint64_t>(grid.x) * grid.y * grid.z, ends = blocks_at_each_end(all);
    const std::uint64_t blocks = std::min(all, 2 * ends);
    S.skips_blocks = blocks < all;
    traffic::begin_launch(configuration, kernel, all, S.arena, S.arena_end);
    std::uint64_t stride = blocks * 5 / 8 + 1;
    while (std::gcd(stride, blocks) != 1) ++stride;
    for (std::uint64_t i = 0; i < blocks; ++i) {
        std::uint64_t b = S.order == Order::forward   ? i
                          : S.order == Order::reverse ? blocks - 1 - i
                                                      : static_cast<std::uint64_t>(i * stride % blocks);
        S.skipped = b == ends ? all - blocks : 0;
        if (b >= ends) b += all - blocks;
        current.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                         static_cast<unsigned>(b / grid.x / grid.y)};
        run_block();
    }
}

// ------------------------------------------------------------------------------------------- called from the kernels

void mark_last_access(bool last) { last_access = last; }

// FASTGAN_EMULATED_L2CacheSize=65536, and the like, replace an attribute.
int attribute(const char* name, int value) {
    const char* text = std::getenv((std::string("FASTGAN_EMULATED_") + name).c_str());
    return text == nullptr ? value : std::atoi(text);
}

unsigned skipped_blocks() { return static_cast<unsigned>(S.skipped); }

void check_wait(bool satisfied, Place place) {
    if (!satisfied && !S.skips_blocks) fail("a block waits for one that has no earlier ticket", place);
}

int barrier(bool predicate, Place place) {
    if (S.active == &S.host) fail("a barrier outside of a kernel", place);
    raise_address_report();
    Thread& self = S.threads[S.running];
    self.state = State::at_barrier;
    self.place = place;
    self.predicate = predicate;
    if (++S.arrived == static_cast<int>(S.threads.size())) {
        S.arrived = S.predicates = 0;
        traffic::count_barrier();
        for (const Thread& thread : S.threads) {
            S.predicates += thread.predicate;
            if (!same(thread.place, place)) fail("divergent barrier: " + whereabouts(thread), place);
            S.scratch.push_back(static_cast<int>(&thread - S.threads.data()));
        }
        for (Thread& thread : S.threads) thread.result = static_cast<std::uint64_t>(S.predicates);
        release_scratch();
    }
    wait();
    return static_cast<int>(self.result);
}

namespace {

// The lane that a shuffle reads: its own if the source would lie outside of the segment of `width` lanes.
int source_lane(const Thread& thread, int lane) {
    const int first = lane & ~(thread.width - 1), last = first + thread.width - 1;
    switch (thread.operation) {
        case WarpOperation::shuffle: return first + (thread.argument & (thread.width - 1));
        case WarpOperation::shuffle_up: return thread.argument > lane - first ? lane : lane - thread.argument;
        case WarpOperation::shuffle_down: return thread.argument > last - lane ? lane : lane + thread.argument;
        default: {
            const int source = lane ^ (thread.argument & (warp - 1));
            return source > last ? lane : source;
        }
    }
}

// All lanes of the mask have arrived. All results are computed now, since a lane that continues may arrive at its next
// operation before others have fetched this one.
void complete(Thread* lanes, unsigned mask, WarpOperation operation) {
    unsigned votes = 0;
    for (int lane = 0; lane < warp; ++lane) votes |= (mask >> lane & 1u) && lanes[lane].value != 0 ? 1u << lane : 0u;
    for (int lane = 0; lane < warp; ++lane) {
        if (!(mask >> lane & 1u)) continue;
        Thread& thread = lanes[lane];
        switch (operation) {
            case WarpOperation::sync: break;
            case WarpOperation::ballot: thread.result = votes; break;
            case WarpOperation::any: thread.result = votes != 0; break;
            case WarpOperation::all: thread.result = votes == mask; break;
            default: {
                // Undefined if the source lane takes no part. The result may be unused, so it is not an error but
                // becomes NaN or -1.
                const int source = source_lane(thread, lane);
                thread.result = mask >> source & 1u ? lanes[source].value : ~std::uint64_t{0};
            }
        }
        S.scratch.push_back(static_cast<int>(&thread - S.threads.data()));
    }
    if (operation == WarpOperation::sync && mask == ~0u) {
        traffic::synchronize(static_cast<std::size_t>(lanes - S.threads.data()), warp);
    }
    release_scratch();
}

}  // namespace

std::uint64_t warp_operation(WarpOperation operation, unsigned mask, std::uint64_t value, int argument, int width,
                             Place place) {
    if (S.active == &S.host) fail("a warp operation outside of a kernel", place);
    raise_address_report();
    const int lane = S.running % warp;
    Thread* lanes = &S.threads[S.running - lane];
    const int count = std::min(warp, static_cast<int>(S.threads.size()) - (S.running - lane));
    Thread& self = lanes[lane];

    if (!(mask >> lane & 1u))
        fail("lane " + std::to_string(lane) + " is not in its own mask " + hexadecimal(mask), place);
    if (count < warp && mask >> count != 0) {
        fail("mask " + hexadecimal(mask) + " names lanes that the block does not have: its last warp has " +
                 std::to_string(count) + " threads",
             place);
    }
    if (width < 1 || width > warp || (width & (width - 1)) != 0) {
        fail("shuffle of width " + std::to_string(width) + ", which is no power of two up to 32", place);
    }
    self.state = State::in_warp_operation;
    self.place = place;
    self.operation = operation;
    self.mask = mask;
    self.value = value;
    self.argument = argument;
    self.width = width;

    // Lanes that wait together are counted at the lowest lane of their mask. The first to arrive looks for lanes that
    // wait for something else: any two groups of a warp must be equal or disjoint.
    Thread& group = lanes[__builtin_ctz(mask)];
    bool joins = false;
    if (group.arrived != 0) {
        const Thread& other = lanes[__builtin_ctz(group.arrived)];
        joins = other.mask == mask && other.operation == operation && same(other.place, place);
    }
    for (int i = 0; !joins && i < count; ++i) {
        const Thread& other = lanes[i];
        if (i == lane || other.state != State::in_warp_operation || (mask & other.mask) == 0) continue;
        fail("divergent warp operation: " + whereabouts(self) + ", but " + whereabouts(other), place);
    }
    group.arrived |= 1u << lane;
    if (group.arrived == mask) {
        group.arrived = 0;
        complete(lanes, mask, operation);
    }
    wait();
    return self.result;
}

void* static_shared(const void* declaration, std::size_t bytes, std::size_t alignment, const char* name, Place place) {
    if (S.active == &S.host) fail("shared memory outside of a kernel", place);
    for (const SharedArray& array : S.shared) {
        if (array.declaration == declaration) return array.start;
    }
    S.static_bytes += bytes;
    if (S.static_bytes > static_shared_limit) {
        fail("with " + std::string(name) + " the kernel has " + std::to_string(S.static_bytes) +
                 " bytes of static shared memory, more than " + std::to_string(static_shared_limit),
             place);
    }
    if (S.static_bytes + S.configuration.shared_bytes > shared_limit) {
        fail("with " + std::string(name) + " the kernel has " +
                 std::to_string(S.static_bytes + S.configuration.shared_bytes) + " bytes of shared memory, more than " +
                 std::to_string(shared_limit),
             place);
    }
    return place_shared(declaration, bytes, alignment, name, place);
}

void* dynamic_shared() { return S.shared.front().start; }

void check_global(const void* p, Place place) {
    if (p >= S.arena && p < S.arena_end) fail("a store to global memory has an address of shared memory", place);
}

}  // namespace emulation

// ------------------------------------------------------------------------------------------------------------- UBSan
// Handlers that the compiler calls where -fsanitize=alignment,bounds,signed-integer-overflow,shift finds something.
// Their data blocks begin with the place. They replace libubsan's, which can only print or end the process.

namespace {

struct FoundAt {
    const char* file;
    std::uint32_t line, column;
};

[[noreturn]] void found(const FoundAt* where, const char* what) {
    emulation::complain(what, {where->file, static_cast<int>(where->line)});
}

}  // namespace

extern "C" {
#define EMULATION_HANDLER(name, what, ...) \
    void __ubsan_handle_##name(FoundAt* where __VA_ARGS__) { found(where, what); }

EMULATION_HANDLER(add_overflow, "signed integer overflow in an addition", , void*, void*)
EMULATION_HANDLER(sub_overflow, "signed integer overflow in a subtraction", , void*, void*)
EMULATION_HANDLER(mul_overflow, "signed integer overflow in a multiplication", , void*, void*)
EMULATION_HANDLER(negate_overflow, "signed integer overflow in a negation", , void*)
EMULATION_HANDLER(divrem_overflow, "signed integer overflow in a division", , void*, void*)
EMULATION_HANDLER(shift_out_of_bounds, "shift out of bounds", , void*, void*)
EMULATION_HANDLER(out_of_bounds, "array index out of bounds", , void*)
EMULATION_HANDLER(type_mismatch_v1, "misaligned access", , void*)
}
