// Frozen batch norm and activation, from tensors to what the launchers take.
#pragma once

#include <optional>

#include "bn_act.h"
#include "tensor.h"

namespace gdfq::cuda {

using Optional = std::optional<at::Tensor>;

inline Activation activation(c10::string_view act) {
  if (act == "relu") return Activation::relu;
  if (act == "relu6") return Activation::relu6;
  TORCH_CHECK(act == "none", "act must be relu, relu6 or none, got ", act);
  return Activation::none;
}

// float32 vectors, kept as long as their pointers are.
struct NormVectors {
  at::Tensor mean, var;
  Optional weight, bias;
  double eps;

  NormVectors(const at::Tensor& running_mean, const at::Tensor& running_var, const Optional& weight,
              const Optional& bias, double eps)
      : mean(floats(running_mean)),
        var(floats(running_var)),
        weight(floats(weight)),
        bias(floats(bias)),
        eps(eps) {}

  BatchNorm pointers() const {
    return {mean.const_data_ptr<float>(), var.const_data_ptr<float>(), pointer(weight),
            pointer(bias), eps};
  }
};

inline Optional wide_to_float(const Optional& t) {
  return t ? Optional(t->to(at::kFloat)) : std::nullopt;
}

// The residual in the dtype and layout of `input`.
inline Optional residual_of(const Optional& residual, const at::Tensor& input) {
  return residual ? Optional(in_layout_of(residual->to(input.scalar_type()), input)) : std::nullopt;
}

inline const void* data_of(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace gdfq::cuda
