// observe_fake_quantize on the GPU: the batch's minimum and maximum move an average of them,
//   average <- momentum * average + (1 - momentum) * batch,   t <- t + 1
//   lo, hi   = average / (1 - momentum^t),
// and fake_quantize.cuh quantizes the batch over the moved range, in a launch of its own: no
// element can be quantized before the last one is seen.
//
// A block takes every gridDim-th stretch of kThreads slots of 16 bytes and writes its minimum and
// maximum; then one block reduces those and moves the range, on the device. Bytes per element: s
// here, 2s more to quantize. Deterministic: minimum and maximum don't depend on order. A NaN makes
// the range NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "../quantizer.h"
#include "elementwise.cuh"
#include "launch.cuh"
#include "observe_fake_quantize.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

constexpr int64_t kMostBlocks = 1024;
constexpr int kWarpsPerBlock = kThreads / 32;

namespace {

// ranges: [2][gridDim.x], minima and maxima.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    minmax_blocks(const T* __restrict__ x, int64_t numel, float* __restrict__ ranges) {
  __shared__ float low_of_warp[kWarpsPerBlock], high_of_warp[kWarpsPerBlock];
  const int skew = misalignment(x);
  const int64_t slots = (skew + numel + kVector<T> - 1) / kVector<T>;
  const Minimum minimum;
  const Maximum maximum;
  // Neutral to both, and NaN where x starts with one.
  const float some = to_float(x[0]);
  float low = some, high = some;
#pragma unroll 4
  for (int64_t s = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; s < slots;
       s += static_cast<int64_t>(gridDim.x) * kThreads) {
    float v[kVector<T>];
    Slot<T>(s, skew, numel).load(x, some, v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      low = minimum(low, v[i]);
      high = maximum(high, v[i]);
    }
  }
  low = reduce_block(low, low_of_warp, minimum);
  high = reduce_block(high, high_of_warp, maximum);
  if (threadIdx.x == 0) {
    ranges[blockIdx.x] = low;
    ranges[gridDim.x + blockIdx.x] = high;
  }
}

__device__ __forceinline__ void move_end(float batch, float past, float present, double correction,
                                         float* average, float* end) {
  const float moved = add_rn(mul_rn(*average, past), mul_rn(present, batch));
  *average = moved;
  *end = static_cast<float>(moved / correction);
}

__global__ void __launch_bounds__(kThreads)
    move_range(const float* __restrict__ ranges, int64_t blocks, MovingRange range,
               double momentum) {
  __shared__ float low_of_warp[kWarpsPerBlock], high_of_warp[kWarpsPerBlock];
  float low = ranges[0], high = ranges[blocks];
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    low = Minimum{}(low, ranges[b]);
    high = Maximum{}(high, ranges[blocks + b]);
  }
  low = reduce_block(low, low_of_warp, Minimum{});
  high = reduce_block(high, high_of_warp, Maximum{});
  if (threadIdx.x != 0) return;
  const int64_t t = ++*range.num_batches_tracked;
  const double correction = 1 - pow(momentum, static_cast<double>(t));
  const float past = static_cast<float>(momentum), present = static_cast<float>(1 - momentum);
  move_end(low, past, present, correction, range.average_lo, range.lo);
  move_end(high, past, present, correction, range.average_hi, range.hi);
}

}  // namespace
}  // namespace gdfq::cuda
