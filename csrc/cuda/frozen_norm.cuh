// Batch norm by given statistics: (x - mean) * factor + bias, factor = weight / sqrt(var + eps).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../batch_norm.h"
#include "frozen_norm.h"

namespace gdfq::cuda {

__device__ __forceinline__ float load_factor(const FrozenNorm& norm, int64_t c) {
  return factor_of(norm.weight ? __ldg(norm.weight + c) : 1.0f, __ldg(norm.var + c), norm.eps);
}

// A channel's constants in registers.
struct NormConstants {
  float mean, factor, bias;

  __device__ __forceinline__ NormConstants() {}
  __device__ __forceinline__ NormConstants(const FrozenNorm& norm, int64_t c)
      : mean(__ldg(norm.mean + c)),
        factor(load_factor(norm, c)),
        bias(norm.bias ? __ldg(norm.bias + c) : 0.0f) {}

  __device__ __forceinline__ float operator()(float x) const {
    return add_rn(mul_rn(sub_rn(x, mean), factor), bias);
  }
};

}  // namespace gdfq::cuda
