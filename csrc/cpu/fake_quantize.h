#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gdfq::cpu {

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view ste);

// The clip estimator's gradient.
at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo,
                                  const at::Tensor& hi, int64_t bits, std::optional<int64_t> axis);

}  // namespace gdfq::cpu
