// Operators on CUDA tensors that other operators call.
#pragma once

#include <optional>
#include <tuple>

#include "../dense.h"

namespace gdfq::cuda {

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view ste);

// The clip estimator's gradient.
at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo,
                                  const at::Tensor& hi, int64_t bits, std::optional<int64_t> axis);

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var, const Optional& weight,
                                const Optional& bias, double eps, const at::Tensor& lo,
                                const at::Tensor& hi, int64_t bits, c10::string_view act,
                                const Optional& residual, c10::string_view ste);

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_minmax(const at::Tensor& w,
                                                                    int64_t bits,
                                                                    std::optional<int64_t> axis,
                                                                    c10::string_view ste,
                                                                    bool zero_in_range);

}  // namespace gdfq::cuda
