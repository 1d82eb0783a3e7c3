// A loss as a tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace gdfq::cpu {

// 0-d, of the options' dtype: float32 or float64. A value out of float32's range becomes
// infinite; at::scalar_tensor would raise.
inline at::Tensor scalar_result(double value, const at::TensorOptions& options) {
  at::Tensor result = at::empty({}, options);
  if (result.scalar_type() == at::kDouble)
    *result.mutable_data_ptr<double>() = value;
  else
    *result.mutable_data_ptr<float>() = static_cast<float>(value);
  return result;
}

}  // namespace gdfq::cpu
