// fake_quantize_minmax_list on the GPU: each row of each tensor is quantized over its own minimum
// and maximum; and the clip estimator's gradient, dw = dy where the code needs no clamp.
//
// Descriptions of up to kMaxTensors tensors are an argument of the kernel, so that a network's
// weights are one launch; more tensors take another. A block takes a row, which it finds among
// the tensors by bisection, cut at the 16-byte boundaries of memory. Bytes per element: forward 3s,
// of which the second read of a row comes from the first-level cache where it fits (a network's
// rows differ too much in length to share one size of shared memory); backward 3s. Deterministic:
// minimum and maximum don't depend on order. A NaN makes its row NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "../quantizer.h"
#include "fake_quantize_minmax.cuh"
#include "fake_quantize_minmax_list.h"
#include "row_list.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kListThreads) quantize_minmax_list(RowList<QuantizedRows> list) {
  const int t = list.find(blockIdx.x);
  const QuantizedRows& tensor = list.tensor[t];
  const int64_t row = blockIdx.x - list.start[t], offset = row * tensor.length;
  quantize_minmax_row<T, false>(
      static_cast<const T*>(tensor.w) + offset, static_cast<T*>(tensor.y) + offset, tensor.lo + row,
      tensor.hi + row, tensor.bits, tensor.zero_in_range, tensor.length, nullptr);
}

template <typename T>
__global__ void __launch_bounds__(kListThreads) clip_gradient_list(RowList<ClippedRows> list) {
  const int t = list.find(blockIdx.x);
  const ClippedRows& tensor = list.tensor[t];
  const int64_t row = blockIdx.x - list.start[t], offset = row * tensor.length;
  const T* dy = static_cast<const T*>(tensor.dy) + offset;
  const T* w = static_cast<const T*>(tensor.w) + offset;
  T* dw = static_cast<T*>(tensor.dw) + offset;
  const Grid grid = make_grid(__ldg(tensor.lo + row), __ldg(tensor.hi + row), tensor.bits);
  const CodeBounds bounds = code_bounds(tensor.bits);
  const int skew = misalignment(w);
  const int64_t slots = (skew + tensor.length + kVector<T> - 1) / kVector<T>;
  for (int64_t s = threadIdx.x; s < slots; s += kListThreads) {
    const Slot<T> slot(s, skew, tensor.length);
    float g[kVector<T>], v[kVector<T>];
    slot.load(dy, 0.0f, g, misalignment(dy) == skew);
    slot.load(w, 0.0f, v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i)
      g[i] = clip_gradient(g[i], v[i], grid.inv_scale, grid.zero, bounds);
    slot.store(dw, misalignment(dw) == skew, g);
  }
}

}  // namespace
}  // namespace gdfq::cuda
