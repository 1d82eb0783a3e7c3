// The stand-in's race checker. Device code is compiled with -fsanitize=thread and linked without
// its runtime: the hooks below get every load and store.
//
// Two accesses to a byte by different threads, one of them a store, are a race unless ordered by
//   * __syncthreads, in a block;
//   * __syncwarp, in a warp (shuffles order nothing);
//   * between blocks: a store, then __threadfence by its thread (or by another after a barrier),
//     then an atomic by that thread, which an atomic of the other block's reader follows.
// Blocks run one after another here, so a race between them is seen in one direction: by the
// block that runs later.

#include <algorithm>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "runtime.h"
#include "source_line.h"

namespace standin::races {
namespace {

struct Access {
  int64_t block = -1;
  int thread = 0;
  unsigned epoch = 0;      // barriers the block had passed
  unsigned warp_time = 0;  // __syncwarp the thread had passed
  unsigned fences = 0;     // __threadfence the thread had passed
  const void* place = nullptr;
};

// Two readers, so that a writer that is one of them still meets the other.
struct Byte {
  Access write, read, other_read;
};

constexpr uintptr_t kPage = 1024;
struct Page {
  Byte bytes[kPage];
};

// What a block lets others see.
struct Published {
  std::map<int64_t, unsigned> epochs;                    // block: epochs before this one
  std::map<std::pair<int64_t, int>, unsigned> fences;    // thread: fences before this one

  void merge(const Published& other) {
    for (const auto& [key, value] : other.epochs) epochs[key] = std::max(epochs[key], value);
    for (const auto& [key, value] : other.fences) fences[key] = std::max(fences[key], value);
  }

  bool covers(const Access& access) const {
    const auto epoch = epochs.find(access.block);
    if (epoch != epochs.end() && access.epoch < epoch->second) return true;
    const auto fence = fences.find({access.block, access.thread});
    return fence != fences.end() && access.fences < fence->second;
  }
};

struct Clock {
  unsigned fences = 0, fence_epoch = 0, warp_time = 0;
  unsigned seen[32] = {};  // of the warp's lanes, up to which warp_time
  Published acquired;
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page* last_page = nullptr;
std::unordered_map<const void*, Published> atomics;
std::vector<Clock> clocks;
Published acquired_by_block;
unsigned epoch = 0;
bool active = false;

Byte& byte_at(uintptr_t address) {
  const uintptr_t number = address / kPage;
  if (!last_page || number != last_number) {
    auto& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    last_page = page.get();
    last_number = number;
  }
  return last_page->bytes[address % kPage];
}

bool ordered(const Access& before, const Access& now) {
  if (before.block < 0) return true;
  const Clock& clock = clocks[now.thread];
  if (before.block != now.block)
    return acquired_by_block.covers(before) || clock.acquired.covers(before);
  if (before.thread == now.thread || before.epoch < now.epoch) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_time < clock.seen[before.thread % 32];
}

void check(const Access& before, const char* what, const Access& now, const char* what_now) {
  if (ordered(before, now)) return;
  active = false;
  fail("race: " + std::string(what_now) + " at " + source_line(now.place) + " by " + name(here()) +
       ", " + what + " at " + source_line(before.place) + " by " + name({before.block, before.thread}));
}

void access(const void* pointer, size_t size, bool store, const void* place) {
  if (!active || on_a_stack(pointer)) return;
  const Place thread = here();
  const Clock& clock = clocks[thread.thread];
  const Access now = {thread.block, thread.thread, epoch, clock.warp_time, clock.fences, place};
  for (uintptr_t a = reinterpret_cast<uintptr_t>(pointer), end = a + size; a < end; ++a) {
    Byte& byte = byte_at(a);
    check(byte.write, "a store", now, store ? "a store" : "a load");
    if (store) {
      check(byte.read, "a load", now, "a store");
      check(byte.other_read, "a load", now, "a store");
      byte.write = now;
    } else {
      if (byte.read.thread != now.thread || byte.read.block != now.block)
        byte.other_read = byte.read;
      byte.read = now;
    }
  }
}

}  // namespace

void begin_launch() {
  pages.clear();
  last_page = nullptr;
  atomics.clear();
}

void begin_block(int64_t, int threads) {
  clocks.assign(static_cast<size_t>(threads), Clock());
  acquired_by_block = Published();
  epoch = 0;
  active = true;
}

void end_block() { active = false; }

void forget(const void* begin, size_t size) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
  for (uintptr_t a = first; a < first + size; ++a) {
    const auto page = pages.find(a / kPage);
    if (page == pages.end()) {
      a = (a / kPage + 1) * kPage - 1;
    } else {
      page->second->bytes[a % kPage] = Byte();
    }
  }
}

void barrier() {
  ++epoch;
  for (Clock& clock : clocks) {
    acquired_by_block.merge(clock.acquired);
    clock.acquired = Published();
  }
}

void warp_sync(int warp, unsigned mask) {
  unsigned latest[32] = {};
  const size_t first = static_cast<size_t>(warp) * 32;
  for (size_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Clock& clock = clocks[first + lane];
    clock.seen[lane] = ++clock.warp_time;
    for (int i = 0; i < 32; ++i) latest[i] = std::max(latest[i], clock.seen[i]);
  }
  for (size_t lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) std::copy(latest, latest + 32, clocks[first + lane].seen);
}

void fence() {
  Clock& clock = clocks[here().thread];
  ++clock.fences;
  clock.fence_epoch = epoch;
}

void atomic(const void* address) {
  const Place thread = here();
  Clock& clock = clocks[thread.thread];
  Published& published = atomics[address];
  const Published before = published;
  if (clock.fences) {
    Published own;
    own.epochs[thread.block] = clock.fence_epoch;
    own.fences[{thread.block, thread.thread}] = clock.fences;
    published.merge(own);
    published.merge(acquired_by_block);
    published.merge(clock.acquired);
  }
  clock.acquired.merge(before);
}

}  // namespace standin::races

// ---- the hooks of -fsanitize=thread ----

#define HOOKS(size)                                                                        \
  void __tsan_read##size(void* p) {                                                        \
    standin::races::access(p, size, false, __builtin_return_address(0));                   \
  }                                                                                        \
  void __tsan_write##size(void* p) {                                                       \
    standin::races::access(p, size, true, __builtin_return_address(0));                    \
  }                                                                                        \
  void __tsan_unaligned_read##size(void* p) {                                              \
    standin::races::access(p, size, false, __builtin_return_address(0));                   \
  }                                                                                        \
  void __tsan_unaligned_write##size(void* p) {                                             \
    standin::races::access(p, size, true, __builtin_return_address(0));                    \
  }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, unsigned long size) {
  standin::races::access(p, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long size) {
  standin::races::access(p, size, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
}
