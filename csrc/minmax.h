// The range of each entry of an axis by PyTorch's operators, for every native backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>
#include <vector>

namespace gdfq {

// Minimum and maximum, float32, 0-d without an axis; 0 for an empty tensor.
inline std::tuple<at::Tensor, at::Tensor> minmax_along(const at::Tensor& input,
                                                       std::optional<int64_t> axis,
                                                       bool zero_in_range) {
  if (input.numel() == 0) {
    const auto float32 = input.options().dtype(at::kFloat);
    const at::Tensor lo = axis ? at::zeros({input.size(*axis)}, float32) : at::zeros({}, float32);
    return {lo, lo.clone()};
  }
  std::vector<int64_t> others;
  for (int64_t d = 0; d < input.dim(); ++d)
    if (!axis || d != *axis) others.push_back(d);
  const bool alone = axis && others.empty();  // amin of no dimension reduces all
  at::Tensor lo = (alone ? input : input.amin(others)).to(at::kFloat, false, true);
  at::Tensor hi = (alone ? input : input.amax(others)).to(at::kFloat, false, true);
  if (zero_in_range) {
    lo.clamp_max_(0);
    hi.clamp_min_(0);
  }
  return {lo, hi};
}

}  // namespace gdfq
