// count_changed_codes on the GPU: of each tensor, how many elements' codes differ between w and
// w - factor * update, over given ranges of its rows.
//
// A block takes a row of one of the tensors of a launch, cut at the 16-byte boundaries of memory,
// and adds its count to the tensor's. Bytes per element: 2s, and nothing is written but the counts.
// Deterministic, because counts are integers: their sum does not depend on order.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "../quantizer.h"
#include "count_changed_codes.h"
#include "reduce.cuh"
#include "row_list.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

struct AddCounts {
  __device__ __forceinline__ unsigned long long operator()(unsigned long long a,
                                                           unsigned long long b) const {
    return a + b;
  }
};

namespace {

template <typename T>
__global__ void __launch_bounds__(kListThreads) count_changed_rows(RowList<ComparedRows> list) {
  __shared__ unsigned long long scratch[kListThreads / 32];
  const int t = list.find(blockIdx.x);
  const ComparedRows& tensor = list.tensor[t];
  const int64_t row = blockIdx.x - list.start[t], offset = row * tensor.length;
  const T* w = static_cast<const T*>(tensor.w) + offset;
  const T* update = static_cast<const T*>(tensor.update) + offset;
  const float factor = __ldg(tensor.factor);
  const Grid grid = make_grid(__ldg(tensor.lo + row), __ldg(tensor.hi + row), tensor.bits);
  const CodeBounds bounds = code_bounds(tensor.bits);
  const int skew = misalignment(w);
  const int64_t slots = (skew + tensor.length + kVector<T> - 1) / kVector<T>;
  unsigned long long changed = 0;
  for (int64_t s = threadIdx.x; s < slots; s += kListThreads) {
    const Slot<T> slot(s, skew, tensor.length);
    float before[kVector<T>], move[kVector<T>];
    slot.load(w, 0.0f, before);
    slot.load(update, 0.0f, move, misalignment(update) == skew);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const float after = sub_rn(before[i], mul_rn(factor, move[i]));
      const bool differs = code_of(before[i], grid.inv_scale, grid.zero, bounds) !=
                           code_of(after, grid.inv_scale, grid.zero, bounds);
      changed += slot.holds(i) && differs ? 1 : 0;
    }
  }
  changed = reduce_block(changed, scratch, AddCounts{});
  if (threadIdx.x == 0 && changed != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(tensor.changed), changed);
}

}  // namespace
}  // namespace gdfq::cuda
