// A race checker for the CPU kernels. They are compiled with -fsanitize=thread and linked without
// its runtime: the hooks below get every load and store.
//
// at::parallel_for runs its tasks one after another, each in a thread of its own. Two accesses to a
// byte by different tasks of one loop, one of them a store, are a race, unless both are atomic:
// nothing orders tasks. A task's own stack is left out, and memory that a task frees is not used
// again before the loop ends. So what is found depends on neither cores nor luck.

#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "../standin/source_line.h"
#include "parallel.h"

namespace gdfq::races {
namespace {

constexpr int64_t kTasks = 8;
constexpr uintptr_t kPage = 4096;

enum class Kind { kLoad, kStore, kAtomic };
const char* const kNames[] = {"a load", "a store", "an atomic access"};

// The last task, counted from 1, to access a byte in each way. Two loads, so that a store by one of
// the tasks still meets the other.
struct Byte {
  uint8_t load, other_load, store, atomic;
};

struct Page {
  Byte bytes[kPage] = {};
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::string race;
void* freed = nullptr;  // a list, through its blocks' first bytes

thread_local int task = 0;  // 0: outside of a loop
thread_local uintptr_t stack_begin = 0, stack_end = 0;

void access(const void* pointer, size_t size, Kind kind, const void* place) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(pointer);
  if (task == 0 || (first >= stack_begin && first < stack_end) || !race.empty()) return;
  const int now = std::exchange(task, 0);
  Page* page = nullptr;
  for (uintptr_t a = first; a < first + size; ++a) {
    if (!page || a % kPage == 0) {
      auto& found = pages[a / kPage];
      if (!found) found = std::make_unique<Page>();
      page = found.get();
    }
    Byte& byte = page->bytes[a % kPage];
    const auto meets = [&](int other, Kind what) {
      if (other == 0 || other == now || !race.empty()) return;
      race = "race: " + std::string(kNames[static_cast<int>(kind)]) + " at " + source_line(place) +
             ", by another task " + kNames[static_cast<int>(what)];
    };
    meets(byte.store, Kind::kStore);
    if (kind != Kind::kAtomic) meets(byte.atomic, Kind::kAtomic);
    if (kind != Kind::kLoad) {
      meets(byte.load, Kind::kLoad);
      meets(byte.other_load, Kind::kLoad);
    }
    if (kind == Kind::kStore) byte.store = static_cast<uint8_t>(now);
    if (kind == Kind::kAtomic) byte.atomic = static_cast<uint8_t>(now);
    if (kind == Kind::kLoad && byte.load != now) {
      byte.other_load = byte.load;
      byte.load = static_cast<uint8_t>(now);
    }
  }
  task = now;
}

void find_stack() {
  pthread_attr_t attributes;
  void* begin = nullptr;
  size_t size = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &begin, &size);
  pthread_attr_destroy(&attributes);
  stack_begin = reinterpret_cast<uintptr_t>(begin);
  stack_end = stack_begin + size;
}

}  // namespace

void run(void (*call)(const void*, int64_t, int64_t), const void* f, int64_t begin, int64_t end,
         int64_t grain) {
  const int64_t length = std::max<int64_t>({1, grain, (end - begin + kTasks - 1) / kTasks});
  std::exception_ptr failed;
  pages.clear();
  race.clear();
  int number = 0;
  for (int64_t from = begin; from < end && !failed; from += length) {
    ++number;
    std::thread([&] {
      find_stack();
      task = number;
      try {
        call(f, from, std::min(end, from + length));
      } catch (...) {
        failed = std::current_exception();
      }
      task = 0;
    }).join();
  }
  while (freed) std::free(std::exchange(freed, *static_cast<void**>(freed)));
  if (failed) std::rethrow_exception(failed);
  if (!race.empty()) throw std::runtime_error(race);
}

}  // namespace gdfq::races

// ---- memory, for this library alone (-Bsymbolic) ----

void operator delete(void* block) noexcept {
  if (gdfq::races::task == 0 || !block) {
    std::free(block);
  } else {
    *static_cast<void**>(block) = std::exchange(gdfq::races::freed, block);
  }
}
void operator delete(void* block, size_t) noexcept { operator delete(block); }
void operator delete[](void* block) noexcept { operator delete(block); }
void operator delete[](void* block, size_t) noexcept { operator delete(block); }

// ---- the hooks of -fsanitize=thread ----

#define PLACE __builtin_return_address(0)

extern "C" {

void* memmove(void* to, const void* from, size_t size) {
  gdfq::races::access(from, size, gdfq::races::Kind::kLoad, PLACE);
  gdfq::races::access(to, size, gdfq::races::Kind::kStore, PLACE);
  auto* target = static_cast<volatile char*>(to);
  const auto* source = static_cast<const volatile char*>(from);
  if (target <= source)
    for (size_t i = 0; i < size; ++i) target[i] = source[i];
  else
    for (size_t i = size; i-- > 0;) target[i] = source[i];
  return to;
}

void* memcpy(void* to, const void* from, size_t size) {
  gdfq::races::access(from, size, gdfq::races::Kind::kLoad, PLACE);
  gdfq::races::access(to, size, gdfq::races::Kind::kStore, PLACE);
  auto* target = static_cast<volatile char*>(to);
  const auto* source = static_cast<const volatile char*>(from);
  for (size_t i = 0; i < size; ++i) target[i] = source[i];
  return to;
}

void* memset(void* to, int value, size_t size) {
  gdfq::races::access(to, size, gdfq::races::Kind::kStore, PLACE);
  auto* target = static_cast<volatile char*>(to);
  for (size_t i = 0; i < size; ++i) target[i] = static_cast<char>(value);
  return to;
}

#define ACCESSES(size)                                              \
  void __tsan_read##size(void* p) {                                 \
    gdfq::races::access(p, size, gdfq::races::Kind::kLoad, PLACE);  \
  }                                                                 \
  void __tsan_write##size(void* p) {                                \
    gdfq::races::access(p, size, gdfq::races::Kind::kStore, PLACE); \
  }                                                                 \
  void __tsan_unaligned_read##size(void* p) {                       \
    gdfq::races::access(p, size, gdfq::races::Kind::kLoad, PLACE);  \
  }                                                                 \
  void __tsan_unaligned_write##size(void* p) {                      \
    gdfq::races::access(p, size, gdfq::races::Kind::kStore, PLACE); \
  }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long size) {
  gdfq::races::access(p, size, gdfq::races::Kind::kLoad, PLACE);
}
void __tsan_write_range(void* p, unsigned long size) {
  gdfq::races::access(p, size, gdfq::races::Kind::kStore, PLACE);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

// The order is always the strictest.
#define UPDATE(bits, type, name)                                                              \
  type __tsan_atomic##bits##_##name(volatile type* p, type value, int) {                      \
    gdfq::races::access(const_cast<const type*>(p), sizeof(type), gdfq::races::Kind::kAtomic, \
                        PLACE);                                                               \
    return __atomic_##name(p, value, __ATOMIC_SEQ_CST);                                       \
  }
#define ATOMICS(bits, type)                                                                       \
  UPDATE(bits, type, fetch_add)                                                                   \
  UPDATE(bits, type, fetch_sub)                                                                   \
  UPDATE(bits, type, fetch_and)                                                                   \
  UPDATE(bits, type, fetch_or)                                                                    \
  UPDATE(bits, type, fetch_xor)                                                                   \
  type __tsan_atomic##bits##_exchange(volatile type* p, type value, int) {                        \
    gdfq::races::access(const_cast<const type*>(p), sizeof(type), gdfq::races::Kind::kAtomic,     \
                        PLACE);                                                                   \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile type* p, type value, int) {                           \
    gdfq::races::access(const_cast<const type*>(p), sizeof(type), gdfq::races::Kind::kAtomic,     \
                        PLACE);                                                                   \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                               \
  type __tsan_atomic##bits##_load(const volatile type* p, int) {                                  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type value, \
                                                    int, int) {                                   \
    gdfq::races::access(const_cast<const type*>(p), sizeof(type), gdfq::races::Kind::kAtomic,     \
                        PLACE);                                                                   \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type value,   \
                                                  int order, int otherwise) {                     \
    return __tsan_atomic##bits##_compare_exchange_strong(p, expected, value, order, otherwise);   \
  }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) {}

}  // extern "C"
