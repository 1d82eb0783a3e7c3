// Frozen batch norm, residual and activation, in front of a quantizer.
#pragma once

#include <limits>
#include <type_traits>

#include "../activation.h"
#include "frozen_norm.h"
#include "simd.h"

namespace gdfq::cpu {

// A missing bound is NaN, which clamps nothing.
struct ActBounds {
  float lo, hi;
};

inline ActBounds act_bounds(Activation act) {
  const float none = std::numeric_limits<float>::quiet_NaN();
  return {act == Activation::none ? none : 0.0f, act == Activation::relu6 ? 6.0f : none};
}

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
