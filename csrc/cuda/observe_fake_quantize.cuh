// observe_fake_quantize on the GPU: the batch's minimum and maximum move an average of them,
//   average <- momentum * average + (1 - momentum) * batch,   t <- t + 1
//   lo, hi   = average / (1 - momentum^t),
// and fake_quantize.cuh quantizes the batch over the moved range, in a launch of its own, because
// the range depends on every element.
//
// elementwise_range.cuh reads the batch; then one block merges its blocks' results and moves the
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

__global__ void __launch_bounds__(kThreads)
    move_range_by_parts(const float* __restrict__ ranges, int64_t blocks, MovingRange range,
                        double momentum) {
  __shared__ float lo_of_warp[kThreads / 32], hi_of_warp[kThreads / 32];
  float lo = ranges[0], hi = ranges[blocks];
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    lo = Minimum{}(lo, ranges[b]);
    hi = Maximum{}(hi, ranges[blocks + b]);
  }
  lo = reduce_block(lo, lo_of_warp, Minimum{});
  hi = reduce_block(hi, hi_of_warp, Maximum{});
  if (threadIdx.x == 0) move_range(range, lo, hi, momentum);
}

}  // namespace
}  // namespace gdfq::cuda
