// bns_loss: mean over layers of [MSE(mean, running_mean) + MSE(var, running_var)], each MSE over
// the layer's channels, and its gradients 2 / (L * C) * (mean - running_mean), the same for var.
//
// A network has a few thousand channels, so one thread walks them all, in float64 and in order;
// each statistic is read once and each gradient written once.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "scalar_result.h"

namespace gdfq::cpu {
namespace {

// Calls visit(index, value, stored) for each entry; `stored` is first rounded to the statistic's
// dtype.
template <typename scalar_t, typename Visit>
void for_each_pair(const at::Tensor& statistic, const at::Tensor& stored, const Visit& visit) {
  const auto a = statistic.expect_contiguous();
  const at::Tensor same =
      stored.scalar_type() == statistic.scalar_type() ? stored : stored.to(statistic.scalar_type());
  const auto b = same.expect_contiguous();
  const scalar_t* pa = a->const_data_ptr<scalar_t>();
  const scalar_t* pb = b->const_data_ptr<scalar_t>();
  for (int64_t i = 0; i < a->numel(); ++i)
    visit(i, static_cast<double>(pa[i]), static_cast<double>(pb[i]));
}

double squared_distance(const at::Tensor& statistic, const at::Tensor& stored) {
  double sum = 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, statistic.scalar_type(), "bns_loss", [&] {
        for_each_pair<scalar_t>(statistic, stored,
                                [&](int64_t, double a, double b) { sum += (a - b) * (a - b); });
      });
  return sum;
}

at::Tensor bns_loss(at::TensorList means, at::TensorList vars, at::TensorList running_means,
                    at::TensorList running_vars) {
  check_layers(means, vars, running_means, running_vars);
  double total = 0;
  for (size_t l = 0; l < means.size(); ++l)
    total += (squared_distance(means[l], running_means[l]) +
              squared_distance(vars[l], running_vars[l])) /
             static_cast<double>(means[l].numel());
  const bool wide = means[0].scalar_type() == at::kDouble;
  return scalar_result(total / static_cast<double>(means.size()),
                       means[0].options().dtype(wide ? at::kDouble : at::kFloat));
}

at::Tensor gradient(const at::Tensor& statistic, const at::Tensor& stored, double factor) {
  at::Tensor result = at::empty(statistic.sizes(), statistic.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, statistic.scalar_type(), "bns_loss_backward", [&] {
        scalar_t* out = result.mutable_data_ptr<scalar_t>();
        for_each_pair<scalar_t>(statistic, stored, [&](int64_t i, double a, double b) {
          out[i] = static_cast<scalar_t>(factor * (a - b));
        });
      });
  return result;
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>> bns_loss_backward(
    const at::Tensor& grad, at::TensorList means, at::TensorList vars, at::TensorList running_means,
    at::TensorList running_vars) {
  check_layers(means, vars, running_means, running_vars);
  const double upstream = grad.item<double>();
  std::vector<at::Tensor> grad_means, grad_vars;
  for (size_t l = 0; l < means.size(); ++l) {
    const double factor =
        2 * upstream / (static_cast<double>(means.size()) * static_cast<double>(means[l].numel()));
    grad_means.push_back(gradient(means[l], running_means[l], factor));
    grad_vars.push_back(gradient(vars[l], running_vars[l], factor));
  }
  return {grad_means, grad_vars};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("bns_loss", bns_loss);
  m.impl("bns_loss_backward", bns_loss_backward);
}

}  // namespace gdfq::cpu
