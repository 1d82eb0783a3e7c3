// The dispatcher's side of bns_loss on CUDA.

#include "bns_loss.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

using Tensors = std::vector<at::Tensor>;

bool any_double(at::TensorList a, at::TensorList b) {
  for (const at::TensorList& list : {a, b})
    for (const at::Tensor& t : list)
      if (t.scalar_type() == at::kDouble) return true;
  return false;
}

// float64 statistics, which exist for checking gradients, are composed of PyTorch's operators.
// Stored statistics are rounded to the batch's dtype first.
at::Tensor difference_double(const at::Tensor& statistic, const at::Tensor& stored) {
  return statistic.to(at::kDouble) - stored.to(statistic.scalar_type()).to(at::kDouble);
}

// Float32 copies, where they are needed, and pointers to them.
struct Statistics {
  Tensors kept, grad_means, grad_vars;
  std::vector<LayerStatistics> layers;

  Statistics(at::TensorList means, at::TensorList vars, at::TensorList running_means,
             at::TensorList running_vars, bool backward) {
    const auto keep = [&](const at::Tensor& t) {
      kept.push_back(floats(t));
      return kept.back().const_data_ptr<float>();
    };
    for (size_t l = 0; l < means.size(); ++l) {
      LayerStatistics layer{keep(means[l]),
                            keep(vars[l]),
                            keep(running_means[l].to(means[l].scalar_type())),
                            keep(running_vars[l].to(vars[l].scalar_type())),
                            nullptr,
                            nullptr,
                            means[l].numel()};
      if (backward) {
        const auto float32 = means[l].options().dtype(at::kFloat);
        grad_means.push_back(at::empty(means[l].sizes(), float32));
        grad_vars.push_back(at::empty(means[l].sizes(), float32));
        layer.grad_mean = grad_means.back().mutable_data_ptr<float>();
        layer.grad_var = grad_vars.back().mutable_data_ptr<float>();
      }
      layers.push_back(layer);
    }
  }
};

at::Tensor bns_loss(at::TensorList means, at::TensorList vars, at::TensorList running_means,
                    at::TensorList running_vars) {
  check_layers(means, vars, running_means, running_vars);
  const c10::cuda::CUDAGuard guard(means[0].device());
  const bool wide = means[0].scalar_type() == at::kDouble;
  const auto options = means[0].options().dtype(wide ? at::kDouble : at::kFloat);
  if (any_double(means, vars)) {
    at::Tensor total = at::zeros({}, means[0].options().dtype(at::kDouble));
    for (size_t l = 0; l < means.size(); ++l)
      total = total + difference_double(means[l], running_means[l]).square().mean() +
              difference_double(vars[l], running_vars[l]).square().mean();
    return (total / static_cast<double>(means.size())).to(options.dtype());
  }
  const Statistics statistics(means, vars, running_means, running_vars, false);
  at::Tensor loss = at::empty({}, options);
  at::Tensor workspace = at::empty({1}, options.dtype(at::kDouble));
  C10_CUDA_CHECK(
      launch_bns_loss(statistics.layers.data(), static_cast<int64_t>(statistics.layers.size()),
                      loss.mutable_data_ptr<float>(), workspace.mutable_data_ptr<double>(),
                      c10::cuda::getCurrentCUDAStream()));
  return loss;
}

std::tuple<Tensors, Tensors> bns_loss_backward(const at::Tensor& grad, at::TensorList means,
                                               at::TensorList vars, at::TensorList running_means,
                                               at::TensorList running_vars) {
  check_layers(means, vars, running_means, running_vars);
  TORCH_CHECK(grad.numel() == 1, "grad must be one number, got shape ", grad.sizes());
  const c10::cuda::CUDAGuard guard(means[0].device());
  Tensors grad_means, grad_vars;
  if (any_double(means, vars)) {
    for (size_t l = 0; l < means.size(); ++l) {
      const double factor =
          2 / (static_cast<double>(means.size()) * static_cast<double>(means[l].numel()));
      const at::Tensor upstream = grad.to(at::kDouble) * factor;
      grad_means.push_back(
          (difference_double(means[l], running_means[l]) * upstream).to(means[l].scalar_type()));
      grad_vars.push_back(
          (difference_double(vars[l], running_vars[l]) * upstream).to(vars[l].scalar_type()));
    }
    return {grad_means, grad_vars};
  }
  const at::Tensor upstream = floats(grad);
  const Statistics statistics(means, vars, running_means, running_vars, true);
  C10_CUDA_CHECK(launch_bns_loss_backward(
      upstream.const_data_ptr<float>(), statistics.layers.data(),
      static_cast<int64_t>(statistics.layers.size()), c10::cuda::getCurrentCUDAStream()));
  for (size_t l = 0; l < means.size(); ++l) {
    grad_means.push_back(statistics.grad_means[l].to(means[l].scalar_type()));
    grad_vars.push_back(statistics.grad_vars[l].to(vars[l].scalar_type()));
  }
  return {grad_means, grad_vars};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("bns_loss", bns_loss);
  m.impl("bns_loss_backward", bns_loss_backward);
}

}  // namespace gdfq::cuda
