// Reductions over a warp and a block, in an order fixed by the block's shape.
#pragma once

#include <cuda_runtime.h>

namespace gdfq::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// Every lane gets the result; all 32 take part.
template <typename T, typename Combine>
__device__ __forceinline__ T reduce_warp(T value, const Combine& combine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kFullWarp, value, step));
  return value;
}

// Every thread gets the result; whole warps, one dimension. `scratch` has a place for each warp
// and must not be in use.
template <typename T, typename Combine>
__device__ __forceinline__ T reduce_block(T value, T* scratch, const Combine& combine) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  value = reduce_warp(value, combine);
  if (warps == 1) return value;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
  for (int warp = 1; warp < warps; ++warp) value = combine(value, scratch[warp]);
  return value;
}

// NaN wins; fminf and fmaxf would drop it.
struct Minimum {
  __device__ __forceinline__ float operator()(float a, float b) const {
    return b < a || b != b ? b : a;
  }
};

struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const {
    return b > a || b != b ? b : a;
  }
};

struct Sum {
  __device__ __forceinline__ double operator()(double a, double b) const { return a + b; }
};

}  // namespace gdfq::cuda
