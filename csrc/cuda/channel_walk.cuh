// The cut of a reduction per channel into blocks.
#pragma once

#include <cstdint>

#include "elementwise.cuh"

namespace gdfq::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kSlotsPerThread = 8;

template <typename T>
bool is_aligned(const T* p) {
  return misalignment(p) == 0;
}

// By shape and dtype alone. Whether tensors are aligned changes how rows are read, not how many
// pieces there are. With several samples, no piece of rows crosses from one to the next, and
// `pieces` are those of one sample.
template <typename T>
struct Plan {
  bool rows, vectors;
  dim3 block;
  int rows_per_thread;
  int64_t slots_per_run, pieces, groups;

  Plan(Layout layout, bool aligned, int64_t samples = 1) {
    rows = layout.inner == 1;
    vectors = layout.channels % kVector<T> == 0 && aligned;
    if (!rows) {
      slots_per_run = slots_of<T>(layout.inner, false);
      pieces = divide_up(layout.outer * slots_per_run, kThreads * kSlotsPerThread);
      return;
    }
    const int64_t across = vectors ? layout.channels / kVector<T> : layout.channels;
    block = rows_block(across);
    groups = divide_up(across, block.x);
    // Some 512 blocks if there are rows for it; 32 rows bound the error of float32 sums.
    const int64_t wanted = divide_up(layout.outer * groups, 512 * static_cast<int64_t>(block.y));
    rows_per_thread = static_cast<int>(wanted < 8 ? 8 : wanted > 32 ? 32 : wanted);
    pieces = divide_up(layout.outer / samples, static_cast<int64_t>(block.y) * rows_per_thread);
  }
};

}  // namespace gdfq::cuda
