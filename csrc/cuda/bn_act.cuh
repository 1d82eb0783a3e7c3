// Batch norm, residual and activation in front of a quantizer: act(norm(x) + residual).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../activation.h"
#include "../quantizer.h"
#include "frozen_norm.cuh"

namespace gdfq::cuda {

// A NaN stays.
__device__ __forceinline__ float activate(float v, Activation act) {
  if (act != Activation::none) v = v < 0.0f ? 0.0f : v;
  if (act == Activation::relu6) v = v > 6.0f ? 6.0f : v;
  return v;
}

// An operator of elementwise.cuh.
template <bool kResidual>
struct BnAct {
  using Constants = NormConstants;
  FrozenNorm norm;
  Activation act;

  __device__ __forceinline__ Constants constants(int64_t c) const { return {norm, c}; }

  // The inputs are x and the residual.
  __device__ __forceinline__ float operator()(const Constants& k,
                                              const float (&in)[1 + kResidual]) const {
    float v = k(in[0]);
    if constexpr (kResidual) v = add_rn(v, in[1]);
    return activate(v, act);
  }
};

}  // namespace gdfq::cuda
