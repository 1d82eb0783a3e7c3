// Frozen batch norm and activation as the launchers take them.
#pragma once

namespace gdfq::cuda {

enum class Activation { none, relu, relu6 };

// Statistics and affine parameters, [channels] each; the last two may be null.
struct BatchNorm {
  const float* mean;
  const float* var;
  const float* weight;
  const float* bias;
  double eps;
};

}  // namespace gdfq::cuda
