// fake_quantize_minmax on the GPU: each row w[c, :] is quantized over its own minimum and maximum,
// lo[c] = min(w[c, :]), hi[c] = max(w[c, :]), in one launch.
//
// A block takes a row, cut at the 16-byte boundaries of memory; a thread takes every blockDim-th
// slot, keeps it in dynamic shared memory where the row fits, and quantizes the slots it read
// itself. Bytes per element: 2s where the row fits, else 3s. Deterministic: minimum and maximum
// don't depend on order. A NaN makes its row NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../quantizer.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

constexpr int kRowThreads = 512;
// Static and dynamic shared memory together stay within the 48 KiB that need no opt-in.
constexpr int64_t kRowBytesOnChip = 47 * 1024;

namespace {

// chip: a place for each slot of the row where kOnChip, else unused.
template <typename T, bool kOnChip>
__device__ __forceinline__ void quantize_minmax_row(const T* __restrict__ row, T* __restrict__ out,
                                                    float* __restrict__ lo_out,
                                                    float* __restrict__ hi_out, int bits,
                                                    bool zero_in_range, int64_t length,
                                                    uint4* chip) {
  __shared__ float lo_of_warp[kRowThreads / 32];
  __shared__ float hi_of_warp[kRowThreads / 32];
  const int skew = misalignment(row);
  const bool aligned = misalignment(out) == skew;
  const int64_t slots = (skew + length + kVector<T> - 1) / kVector<T>;
  const Minimum minimum;
  const Maximum maximum;

  float v[kVector<T>];
  // The row's first element is neutral to both, and NaN where the row starts with one.
  const float some = to_float(row[0]);
  float lo = some, hi = some;
  for (int64_t s = threadIdx.x; s < slots; s += blockDim.x) {
    Slot<T>(s, skew, length).load(row, some, v);
    if constexpr (kOnChip) chip[s] = pack<T>(v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      lo = minimum(lo, v[i]);
      hi = maximum(hi, v[i]);
    }
  }
  lo = reduce_block(lo, lo_of_warp, minimum);
  hi = reduce_block(hi, hi_of_warp, maximum);
  if (zero_in_range) contain_zero(lo, hi);
  if (threadIdx.x == 0) {
    *lo_out = lo;
    *hi_out = hi;
  }

  const Grid grid = make_grid(lo, hi, bits);
  const CodeBounds bounds = code_bounds(bits);
  for (int64_t s = threadIdx.x; s < slots; s += blockDim.x) {
    const Slot<T> slot(s, skew, length);
    if constexpr (kOnChip) {
      unpack<T>(chip[s], v);
    } else {
      slot.load(row, some, v);
    }
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i)
      v[i] = quantize_value(v[i], grid.inv_scale, grid.zero, bounds.lo, bounds.hi, kRoundMagic);
    slot.store(out, aligned, v);
  }
}

template <typename T, bool kOnChip>
__global__ void __launch_bounds__(kRowThreads)
    quantize_minmax_rows(const T* __restrict__ w, T* __restrict__ y, float* __restrict__ lo,
                         float* __restrict__ hi, int bits, bool zero_in_range, int64_t length) {
  GDFQ_DYNAMIC_SHARED(uint4, chip);
  quantize_minmax_row<T, kOnChip>(w + blockIdx.x * length, y + blockIdx.x * length, lo + blockIdx.x,
                                  hi + blockIdx.x, bits, zero_in_range, length, chip);
}

}  // namespace
}  // namespace gdfq::cuda
