// batch_norm_stats of float64 tensors, for checks of gradients: composed of PyTorch's operators,
// for every native backend.
#pragma once

#include <tuple>
#include <vector>

#include "dense.h"

namespace gdfq {

inline at::Tensor per_channel(const at::Tensor& t, const at::Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = -1;
  return t.to(at::kDouble).view(shape);
}

inline at::Tensor factor_double(const at::Tensor& x, const at::Tensor& running_var,
                                const Optional& weight, double eps) {
  const at::Tensor std = per_channel(running_var, x).add(eps).sqrt();
  return weight ? per_channel(*weight, x).div(std) : std.reciprocal();
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_double(
    const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
    const Optional& weight, const Optional& bias, double eps) {
  std::vector<int64_t> reduced = {0};
  for (int64_t d = 2; d < x.dim(); ++d) reduced.push_back(d);
  at::Tensor y =
      x.sub(per_channel(running_mean, x)).mul(factor_double(x, running_var, weight, eps));
  if (bias) y = y.add(per_channel(*bias, x));
  return {y, x.mean(reduced), x.var(reduced, /*unbiased=*/false)};
}

inline at::Tensor backward_double(const at::Tensor& grad_y, const at::Tensor& grad_mean,
                                  const at::Tensor& grad_var, const at::Tensor& x,
                                  const at::Tensor& mean, const at::Tensor& running_var,
                                  const Optional& weight, double eps) {
  const double count = static_cast<double>(x.numel() / x.size(1));
  return grad_y.mul(factor_double(x, running_var, weight, eps))
      .add(x.sub(per_channel(mean, x)).mul(per_channel(grad_var, x)).mul(2 / count))
      .add(per_channel(grad_mean, x).div(count));
}

}  // namespace gdfq
