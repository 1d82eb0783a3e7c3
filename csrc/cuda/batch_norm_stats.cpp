// The dispatcher's side of batch_norm_stats on CUDA.

#include "batch_norm_stats.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../batch_norm_stats_double.h"
#include "../checks.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_stats(const at::Tensor& x,
                                                                const at::Tensor& running_mean,
                                                                const at::Tensor& running_var,
                                                                const Optional& weight,
                                                                const Optional& bias, double eps) {
  check_statistics(x, running_mean, running_var, weight, bias);
  const int64_t channels = x.size(1);
  if (x.scalar_type() == at::kDouble)
    return forward_double(x, running_mean, running_var, weight, bias, eps);

  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  const Layout layout = channel_layout(input);
  const Dtype dtype = dtype_of(input);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  at::Tensor mean = at::empty({channels}, float32), var = at::empty({channels}, float32);
  at::Tensor workspace =
      at::empty({batch_norm_stats_workspace(dtype, layout)}, float32.dtype(at::kDouble));
  const at::Tensor shift = floats(running_mean), spread = floats(running_var);
  const auto gamma = floats(weight), beta = floats(bias);
  C10_CUDA_CHECK(launch_batch_norm_stats(
      dtype, input.const_data_ptr(), output.mutable_data_ptr(), mean.mutable_data_ptr<float>(),
      var.mutable_data_ptr<float>(), shift.const_data_ptr<float>(), spread.const_data_ptr<float>(),
      pointer(gamma), pointer(beta), static_cast<float>(eps), layout,
      workspace.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()));
  return {output, mean, var};
}

at::Tensor batch_norm_stats_backward(const at::Tensor& grad_y, const at::Tensor& grad_mean,
                                     const at::Tensor& grad_var, const at::Tensor& x,
                                     const at::Tensor& mean, const at::Tensor& running_var,
                                     const Optional& weight, double eps) {
  check_statistics_gradient(grad_y, grad_mean, grad_var, x, mean, running_var, weight);
  if (x.scalar_type() == at::kDouble)
    return backward_double(grad_y, grad_mean, grad_var, x, mean, running_var, weight, eps);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  const at::Tensor dy = in_layout_of(grad_y.to(input.scalar_type()), input);
  const at::Tensor dmean = floats(grad_mean), dvar = floats(grad_var), average = floats(mean);
  const at::Tensor spread = floats(running_var);
  const auto gamma = floats(weight);
  C10_CUDA_CHECK(launch_batch_norm_stats_backward(
      dtype_of(input), dy.const_data_ptr(), input.const_data_ptr(), output.mutable_data_ptr(),
      dmean.const_data_ptr<float>(), dvar.const_data_ptr<float>(), average.const_data_ptr<float>(),
      spread.const_data_ptr<float>(), pointer(gamma), static_cast<float>(eps),
      channel_layout(input), c10::cuda::getCurrentCUDAStream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("batch_norm_stats", batch_norm_stats);
  m.impl("batch_norm_stats_backward", batch_norm_stats_backward);
}

}  // namespace gdfq::cuda
