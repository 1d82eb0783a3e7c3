// Frozen batch norm, from tensors to what the launchers take.
#pragma once

#include "frozen_norm.h"
#include "tensor.h"

namespace gdfq::cuda {

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

  FrozenNorm pointers() const {
    return {mean.const_data_ptr<float>(), var.const_data_ptr<float>(), pointer(weight),
            pointer(bias), eps};
  }
};

inline const void* data_of(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace gdfq::cuda
