// Operators on CUDA tensors that other operators call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace gdfq::cuda {

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view ste);

}  // namespace gdfq::cuda
