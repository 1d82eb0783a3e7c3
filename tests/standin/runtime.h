// What the parts of the stand-in share: the running thread, errors, and the race checker's hooks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "include/cuda_runtime.h"

namespace standin {

struct Place {
  int64_t block;  // in the order of gridDim, not of the schedule
  int thread;     // in the block
};

Place here();
std::string name(Place place);

// Ends the launch; the first error is kept.
[[noreturn]] void fail(const std::string& message);

// Whether an address lies on the stack of a thread.
bool on_a_stack(const void* address);

// The race checker (races.cpp) where it is built in, else nothing.
namespace races {
void begin_launch();
void begin_block(int64_t block, int threads);
void end_block();
void forget(const void* begin, size_t size);
void barrier();
void warp_sync(int warp, unsigned mask);
void fence();
void atomic(const void* address);
}  // namespace races

}  // namespace standin
