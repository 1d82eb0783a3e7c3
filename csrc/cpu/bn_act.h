// Frozen batch norm, residual and activation, in front of a quantizer.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "channels.h"
#include "simd.h"

namespace gdfq::cpu {

// NaN, which clamps nothing, where there is no bound.
struct ActBounds {
  float low, high;
};

inline ActBounds act_bounds(c10::string_view act) {
  TORCH_CHECK(act == "relu" || act == "relu6" || act == "none",
              "act must be relu, relu6 or none, got ", act);
  const float none = std::numeric_limits<float>::quiet_NaN();
  return {act == "none" ? none : 0.0f, act == "relu6" ? 6.0f : none};
}

// Of each channel: (x - mean) * factor + bias.
struct Affine {
  std::vector<float> mean, factor, bias;

  Affine() = default;
  Affine(const at::Tensor& running_mean, const at::Tensor& running_var,
         const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& offset,
         double eps)
      : mean(values(running_mean)),
        factor(factors(running_var, weight, eps)),
        bias(offset ? values(*offset) : std::vector<float>(mean.size(), 0)) {}

  Affine spread_over(int64_t inner) const {
    Affine tables;
    tables.mean = spread(mean, inner);
    tables.factor = spread(factor, inner);
    tables.bias = spread(bias, inner);
    return tables;
  }
};

template <bool kResidual, typename scalar_t>
GDFQ_INLINE f32x16 normalized(const scalar_t* x, const scalar_t* residual, int64_t lanes,
                              f32x16 mean, f32x16 factor, f32x16 bias) {
  f32x16 v = (load(x, lanes) - mean) * factor + bias;
  if constexpr (kResidual) v += load(residual, lanes);
  return v;
}

// Calls f with std::true_type or std::false_type.
template <typename F>
void with_flag(bool flag, const F& f) {
  flag ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace gdfq::cpu
