#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace gdfq::cpu {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_minmax(const at::Tensor& w,
                                                                    int64_t bits,
                                                                    std::optional<int64_t> axis,
                                                                    c10::string_view ste,
                                                                    bool zero_in_range);

}  // namespace gdfq::cpu
