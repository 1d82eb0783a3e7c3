// The arithmetic of batch norms, written once for every native backend.
#pragma once

#include <cmath>

#include "quantizer.h"

namespace gdfq {

// weight / sqrt(var + eps), one rounding each.
GDFQ_INLINE float factor_of(float weight, float var, double eps) {
  const float variance = add_rn(var, static_cast<float>(eps));
#if defined(__CUDA_ARCH__)
  return div_rn(weight, __fsqrt_rn(variance));
#else
  return div_rn(weight, std::sqrt(variance));
#endif
}

// Mean and biased variance from sum(x) and sum(x^2) of `count` elements.
GDFQ_INLINE void write_statistics(double first, double second, double count, float* mean,
                                  float* var) {
  const double average = first / count;
  const double variance = second / count - average * average;
  *mean = static_cast<float>(average);
  *var = static_cast<float>(variance < 0 ? 0.0 : variance);
}

}  // namespace gdfq
