// The stand-in's scheduler: one operating-system thread; blocks one after another; a fiber a CUDA
// thread, which runs until it waits at a barrier or a warp operation.
//
// A launch fails, naming places of the source, where
//   * a barrier is not reached by every thread of the block, or threads wait at different ones;
//   * a warp operation's caller is not in its mask, the mask names a lane that is gone or does not
//     exist, its lanes stand at different operations, or a shuffle reads a lane outside the mask.
//
// A seed shuffles blocks, warps, and lanes within a warp, at every scheduling round; seed 0 keeps
// the natural order. Static and dynamic shared memory are filled with a chosen byte before each
// block, and dynamic shared memory is a heap block of exactly the launch's size, so that
// AddressSanitizer sees where it ends. A thread that spins instead of waiting never lets another
// run: a launch that takes longer than a time limit ends the process.

#include "runtime.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#if !defined(__x86_64__) || defined(STANDIN_UCONTEXT)
#if !defined(STANDIN_UCONTEXT)
#define STANDIN_UCONTEXT
#endif
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

#if !defined(STANDIN_RACES)
namespace standin::races {
void begin_launch() {}
void begin_block(int64_t, int) {}
void end_block() {}
void forget(const void*, size_t) {}
void barrier() {}
void warp_sync(int, unsigned) {}
void fence() {}
void atomic(const void*) {}
}  // namespace standin::races
#endif

namespace standin {
namespace {

// ---- fibers ----

#if !defined(STANDIN_UCONTEXT)
extern "C" void standin_switch(void** save, void* load);
asm(R"(
  .text
  .globl standin_switch
  .type standin_switch,@function
standin_switch:
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
  .size standin_switch,.-standin_switch
  .section .note.GNU-stack,"",@progbits
  .text
)");
using Context = void*;
void switch_context(Context& save, Context& load) { standin_switch(&save, load); }
void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // the entry's return address: it never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }
void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr int kMaxThreads = 1024;

enum class State { ready, at_barrier, at_warp_operation, gone };

struct Thread {
  Context context;
  State state;
  Site site;
  WarpOperation operation;
  unsigned mask;
  int argument, width;
  uint64_t value;
};

char* stacks = nullptr;
Context scheduler;
Thread threads[kMaxThreads];
int thread_count = 0, running = 0;
int64_t block_number = 0;
void (*body)(void*);
void* body_argument;
void* dynamic_memory = nullptr;
std::string error;
unsigned long seed = 0;
int poison = 0xff;
unsigned time_limit = 120;  // seconds

void out_of_time(int) {
  const char message[] = "stand-in: a launch exceeded its time limit; does a thread spin?\n";
  [[maybe_unused]] const auto written = write(2, message, sizeof(message) - 1);
  _exit(5);
}

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
#endif

void back_to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_size);
#endif
  switch_context(threads[running].context, scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  body(body_argument);
  threads[running].state = State::gone;
  back_to_scheduler();
  std::abort();
}

void resume(int thread) {
  running = thread;
  const unsigned t = static_cast<unsigned>(thread);
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stacks + thread * kStack, kStack);
#endif
  switch_context(scheduler, threads[thread].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// ---- messages ----

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(Site site) {
  std::string file = site.file;
  const size_t slash = file.rfind('/');
  if (slash != std::string::npos) file = file.substr(slash + 1);
  return file + ":" + std::to_string(site.line);
}

std::string whereabouts(int thread) {
  const Thread& t = threads[thread];
  const std::string who = "thread " + std::to_string(thread);
  switch (t.state) {
    case State::at_barrier:
      return who + " waits at the barrier of " + text(t.site);
    case State::at_warp_operation:
      return who + " waits at the warp operation of " + text(t.site);
    case State::gone:
      return who + " has returned";
    default:
      return who + " runs";
  }
}

void keep_error(const std::string& message) {
  if (error.empty()) error = "block " + std::to_string(block_number) + ": " + message;
}

// ---- warp operations ----

void resolve(int first, unsigned mask) {
  uint64_t values[32] = {};
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) values[lane] = threads[first + lane].value;
  uint64_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= (values[lane] & 1) << lane;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& t = threads[first + lane];
    t.state = State::ready;
    const int begin = lane / t.width * t.width, end = begin + t.width;
    int source = lane;
    switch (t.operation) {
      case WarpOperation::sync:
        continue;
      case WarpOperation::ballot:
        t.value = ballot;
        continue;
      case WarpOperation::index:
        source = begin + (t.argument & (t.width - 1));
        break;
      case WarpOperation::exclusive_or:
        source = lane ^ t.argument;
        if (source >= end) source = lane;
        break;
      case WarpOperation::up:
        source = lane - t.argument < begin ? lane : lane - t.argument;
        break;
      case WarpOperation::down:
        source = lane + t.argument >= end ? lane : lane + t.argument;
        break;
    }
    if (!(mask >> source & 1)) {
      keep_error("the shuffle of " + text(t.site) + " reads lane " + std::to_string(source) +
                 ", which is not in its mask");
      return;
    }
    t.value = values[source];
  }
  if (threads[first + __builtin_ctz(mask)].operation == WarpOperation::sync)
    races::warp_sync(first / 32, mask);
}

// ---- shared memory ----

// The thread_local region of this library holds the kernels' static shared memory and nothing else.
[[maybe_unused]] thread_local char in_this_region;

struct Region {
  char* begin = nullptr;
  size_t size = 0;
};

Region static_shared() {
#if defined(__SANITIZE_ADDRESS__)
  return {};
#else
  in_this_region = 0;
  Region region;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* argument) {
        if (!info->dlpi_tls_data) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          char* begin = static_cast<char*>(info->dlpi_tls_data);
          if (header.p_type == PT_TLS && &in_this_region >= begin &&
              &in_this_region < begin + header.p_memsz)
            *static_cast<Region*>(argument) = {begin, header.p_memsz};
        }
        return 0;
      },
      &region);
  return region;
#endif
}

// ---- a block ----

// Runs the block to its end, or to the first error.
void run_block(std::mt19937& random) {
  const int warps = (thread_count + 31) / 32;
  std::vector<int> warp_order(warps);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  std::vector<int> lane_order(32);
  std::iota(lane_order.begin(), lane_order.end(), 0);
  int gone = 0;
  while (error.empty()) {
    bool any = false;
    if (seed) std::shuffle(warp_order.begin(), warp_order.end(), random);
    for (int warp : warp_order) {
      if (seed) std::shuffle(lane_order.begin(), lane_order.end(), random);
      for (int lane : lane_order) {
        const int t = warp * 32 + lane;
        if (t >= thread_count || threads[t].state != State::ready) continue;
        any = true;
        resume(t);
        if (threads[t].state == State::gone) ++gone;
        if (!error.empty()) return;
      }
    }
    if (any) continue;
    if (gone == thread_count) return;

    // Nobody can run: either all are at one barrier, or somebody waits in vain.
    int waiting = -1, other = -1;
    for (int t = 0; t < thread_count; ++t)
      if (threads[t].state == State::at_warp_operation) waiting = t;
    if (waiting >= 0) {
      const Thread& w = threads[waiting];
      for (int lane = 0; lane < 32; ++lane) {
        const int t = waiting / 32 * 32 + lane;
        if ((w.mask >> lane & 1) && t < thread_count &&
            (threads[t].state != State::at_warp_operation || !same(threads[t].site, w.site)))
          other = t;
      }
      keep_error("warp operation without all lanes of its mask: " + whereabouts(waiting) +
                 (other >= 0 ? ", " + whereabouts(other) : ""));
      return;
    }
    for (int t = 0; t < thread_count; ++t) {
      if (threads[t].state == State::at_barrier && waiting < 0) waiting = t;
    }
    for (int t = 0; t < thread_count; ++t)
      if (threads[t].state != State::at_barrier ||
          !same(threads[t].site, threads[waiting].site))
        other = t;
    if (other >= 0) {
      keep_error("divergent barrier: " + whereabouts(waiting) + ", " + whereabouts(other));
      return;
    }
    for (int t = 0; t < thread_count; ++t) threads[t].state = State::ready;
    races::barrier();
  }
}

}  // namespace

// ---- what device code calls ----

Place here() { return {block_number, running}; }

std::string name(Place place) {
  return "block " + std::to_string(place.block) + " thread " + std::to_string(place.thread);
}

void fail(const std::string& message) {
  keep_error(message);
  for (;;) back_to_scheduler();
}

bool on_a_stack(const void* address) {
  const char* p = static_cast<const char*>(address);
  return p >= stacks && p < stacks + kStack * kMaxThreads;
}

void barrier(Site site) {
  threads[running].state = State::at_barrier;
  threads[running].site = site;
  back_to_scheduler();
}

uint64_t warp(WarpOperation operation, unsigned mask, uint64_t value, int argument, int width,
              Site site) {
  const int lane = running % 32, first = running - lane;
  Thread& own = threads[running];
  own.site = site;
  own.operation = operation;
  own.mask = mask;
  own.value = value;
  own.argument = argument;
  own.width = width;
  if (!(mask >> lane & 1)) fail("the caller at " + text(site) + " is not in its mask");
  own.state = State::at_warp_operation;
  bool complete = true;
  for (int other = 0; other < 32; ++other) {
    if (!(mask >> other & 1)) continue;
    const Thread& t = threads[first + other];
    if (first + other >= thread_count || t.state == State::gone)
      fail("the mask at " + text(site) + " names lane " + std::to_string(other) +
           ", which " + (first + other >= thread_count ? "does not exist" : "has returned"));
    if (t.state != State::at_warp_operation) {
      complete = false;
    } else if (t.operation != operation || t.mask != mask || !same(t.site, site)) {
      fail("lanes of one mask at different operations: " + whereabouts(running) + ", " +
           whereabouts(first + other));
    }
  }
  if (complete) {
    resolve(first, mask);
    if (!error.empty()) fail(error);
  } else {
    back_to_scheduler();
  }
  return threads[running].value;
}

void fence() { races::fence(); }

void* dynamic_shared() { return dynamic_memory; }

cudaError_t run(dim3 grid, dim3 block, size_t dynamic_size, void (*kernel)(void*), void* argument) {
  error.clear();
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  thread_count = static_cast<int>(block.x * block.y * block.z);
  if (blocks <= 0 || thread_count <= 0 || thread_count > kMaxThreads || grid.y > 65535 ||
      grid.z > 65535 || grid.x > 2147483647u) {
    block_number = -1;
    keep_error("the launch's shape is not allowed");
    return cudaErrorUnknown;
  }
  if (!stacks)
    stacks = static_cast<char*>(mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  gridDim = grid;
  blockDim = block;
  body = kernel;
  body_argument = argument;
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  if (seed) std::shuffle(order.begin(), order.end(), random);

  const Region region = static_shared();
  races::begin_launch();
  const auto handler = std::signal(SIGALRM, out_of_time);
  alarm(time_limit);
  for (int64_t number : order) {
    block_number = number;
    blockIdx = {static_cast<unsigned>(number % grid.x),
                static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
    if (region.size) std::memset(region.begin, poison, region.size);
    if (posix_memalign(&dynamic_memory, 16, dynamic_size ? dynamic_size : 1)) std::abort();
    std::memset(dynamic_memory, poison, dynamic_size);
    races::begin_block(number, thread_count);
    races::forget(region.begin, region.size);
    races::forget(dynamic_memory, dynamic_size);
    for (int t = 0; t < thread_count; ++t) {
      threads[t].state = State::ready;
      char* stack = stacks + t * kStack;
#if defined(__SANITIZE_ADDRESS__)
      __asan_unpoison_memory_region(stack, kStack);
#endif
      make_context(threads[t].context, stack, kStack, entry);
    }
    run_block(random);
    std::free(dynamic_memory);
    races::end_block();
    if (!error.empty()) break;
  }
  alarm(0);
  std::signal(SIGALRM, handler);
  return error.empty() ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace standin

// ---- atomics ----

namespace {
template <typename T, typename Update>
T atomic(T* address, const Update& update) {
  standin::races::atomic(address);
  const T old = *address;
  *address = update(old);
  return old;
}
}  // namespace

unsigned atomicAdd(unsigned* p, unsigned v) {
  return atomic(p, [&](unsigned old) { return old + v; });
}
int atomicAdd(int* p, int v) {
  return atomic(p, [&](int old) { return old + v; });
}
unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return atomic(p, [&](unsigned long long old) { return old + v; });
}
unsigned atomicInc(unsigned* p, unsigned limit) {
  return atomic(p, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}
unsigned atomicExch(unsigned* p, unsigned v) {
  return atomic(p, [&](unsigned) { return v; });
}
unsigned atomicMax(unsigned* p, unsigned v) {
  return atomic(p, [&](unsigned old) { return old > v ? old : v; });
}
unsigned atomicMin(unsigned* p, unsigned v) {
  return atomic(p, [&](unsigned old) { return old < v ? old : v; });
}
int atomicMax(int* p, int v) {
  return atomic(p, [&](int old) { return old > v ? old : v; });
}
int atomicMin(int* p, int v) {
  return atomic(p, [&](int old) { return old < v ? old : v; });
}

// ---- what Python calls ----

extern "C" {
void standin_schedule(unsigned long number, int byte) {
  standin::seed = number;
  standin::poison = byte;
}
void standin_time_limit(unsigned seconds) { standin::time_limit = seconds; }
const char* standin_error() { return standin::error.c_str(); }
}
