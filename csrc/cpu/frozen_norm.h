// Batch norm by given statistics: (x - mean) * factor + bias, factor = weight / sqrt(var + eps).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "channels.h"

namespace gdfq::cpu {

// One entry per channel; without `offset`, bias is 0.
struct FrozenNorm {
  std::vector<float> mean, factor, bias;

  FrozenNorm() = default;
  FrozenNorm(const at::Tensor& running_mean, const at::Tensor& running_var, const Optional& weight,
             const Optional& offset, double eps)
      : mean(values(running_mean)),
        factor(factors(running_var, weight, eps)),
        bias(offset ? values(*offset) : std::vector<float>(mean.size(), 0)) {}

  FrozenNorm spread_over(int64_t inner) const {
    FrozenNorm tables;
    tables.mean = spread(mean, inner);
    tables.factor = spread(factor, inner);
    tables.bias = spread(bias, inner);
    return tables;
  }
};

}  // namespace gdfq::cpu
