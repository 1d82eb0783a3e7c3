// Batch norm by given statistics, as the launchers take it.
#pragma once

namespace gdfq::cuda {

// Statistics and affine parameters, [channels] each; weight and bias may be null.
struct FrozenNorm {
  const float* mean;
  const float* var;
  const float* weight;
  const float* bias;
  double eps;
};

}  // namespace gdfq::cuda
