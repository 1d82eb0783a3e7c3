// observe_fake_quantize on the GPU: the batch's minimum and maximum move an average of them,
//   average <- momentum * average + (1 - momentum) * batch,   t <- t + 1
//   lo, hi   = average / (1 - momentum^t),
// and fake_quantize.cuh quantizes the batch over the moved range, in a launch of its own: no
// element can be quantized before the last one is seen.
//
// elementwise_range.cuh reads the batch; then one block reduces what its blocks found and moves the
// range, on the device. Bytes per element: s here, 2s more to quantize. Deterministic: minimum and
// maximum don't depend on order. A NaN makes the range NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "../quantizer.h"
#include "elementwise_range.cuh"
#include "observe_fake_quantize.h"

namespace gdfq::cuda {

static_assert(kRangeWorkspace == 2 * kMostRangeBlocks);

// An operator of elementwise.cuh: the input itself.
struct Itself {
  struct Constants {};

  __device__ __forceinline__ Constants constants(int64_t) const { return {}; }

  __device__ __forceinline__ float operator()(const Constants&, const float (&in)[1]) const {
    return in[0];
  }
};

namespace {

__device__ __forceinline__ void move_end(float batch, float past, float present, double correction,
                                         float* average, float* end) {
  const float moved = add_rn(mul_rn(*average, past), mul_rn(present, batch));
  *average = moved;
  *end = static_cast<float>(moved / correction);
}

__global__ void __launch_bounds__(kThreads)
    move_range(const float* __restrict__ ranges, int64_t blocks, MovingRange range,
               double momentum) {
  __shared__ float low_of_warp[kThreads / 32], high_of_warp[kThreads / 32];
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
  if (range.zero_in_range) contain_zero(*range.lo, *range.hi);
}

}  // namespace
}  // namespace gdfq::cuda
