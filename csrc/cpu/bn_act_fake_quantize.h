#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gdfq::cpu {

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                const at::Tensor& lo, const at::Tensor& hi, int64_t bits,
                                c10::string_view act, const std::optional<at::Tensor>& residual,
                                c10::string_view ste);

}  // namespace gdfq::cpu
