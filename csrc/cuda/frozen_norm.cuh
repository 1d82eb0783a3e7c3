// Batch norm by given statistics: (x - mean) * a + bias, a = weight / sqrt(var + eps).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../quantizer.h"

namespace gdfq::cuda {

// Running statistics and affine parameters, [channels] each; weight and bias may be null.
struct FrozenNorm {
  const float* mean;
  const float* var;
  const float* weight;
  const float* bias;
  float eps;

  __device__ __forceinline__ float factor(int64_t c) const {
    const float std = __fsqrt_rn(add_rn(__ldg(var + c), eps));
    return div_rn(weight ? __ldg(weight + c) : 1.0f, std);
  }
};

struct NormConstants {
  float shift, factor, bias;

  __device__ __forceinline__ NormConstants() {}
  __device__ __forceinline__ NormConstants(const FrozenNorm& norm, int64_t c)
      : shift(__ldg(norm.mean + c)),
        factor(norm.factor(c)),
        bias(norm.bias ? __ldg(norm.bias + c) : 0.0f) {}

  __device__ __forceinline__ float operator()(float x) const {
    return add_rn(mul_rn(sub_rn(x, shift), factor), bias);
  }
};

}  // namespace gdfq::cuda
