// The dispatcher's side of bn_leaky_relu on CUDA.

#include "bn_leaky_relu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "batch_norm_stats.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

bool has_samples(const Optional& t) { return t && t->dim() == 2; }

// float32 tensors, kept as long as their pointers are.
struct Parameters {
  at::Tensor mean, var;
  Optional weight, bias;
  double eps;

  BatchAffine affine(const at::Tensor& x) const {
    const bool per_sample = has_samples(weight) || has_samples(bias);
    return {mean.const_data_ptr<float>(),
            var.const_data_ptr<float>(),
            pointer(weight),
            pointer(bias),
            has_samples(weight),
            has_samples(bias),
            x.size(1),
            per_sample ? x.size(0) : 1,
            eps};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_leaky_relu(const at::Tensor& x,
                                                             const Optional& weight,
                                                             const Optional& bias, double eps,
                                                             double negative_slope) {
  check_batch_affine(x, weight, bias, negative_slope);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  at::Tensor mean = at::empty({x.size(1)}, float32), var = at::empty({x.size(1)}, float32);
  const Dtype dtype = dtype_of(input);
  const Layout layout = channel_layout(input);
  at::Tensor workspace =
      at::empty({batch_norm_stats_workspace(dtype, layout)}, float32.dtype(at::kDouble));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_channel_statistics(
      dtype, input.const_data_ptr(), mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>(),
      layout, workspace.mutable_data_ptr<double>(), stream));
  const Parameters parameters{mean, var, floats(weight), floats(bias), eps};
  C10_CUDA_CHECK(launch_bn_leaky_relu(dtype, input.const_data_ptr(), output.mutable_data_ptr(),
                                      parameters.affine(input), static_cast<float>(negative_slope),
                                      layout, stream));
  return {output, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_leaky_relu_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
    const Optional& weight, const Optional& bias, double eps, double negative_slope) {
  check_batch_affine_gradient(grad, x, mean, var, weight, bias, negative_slope);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const at::Tensor dy = in_layout_of(grad.to(input.scalar_type()), input);
  const Parameters parameters{floats(mean), floats(var), floats(weight), floats(bias), eps};
  const BatchAffine affine = parameters.affine(input);
  at::Tensor dx = at::empty_like(input, input.suggest_memory_format());
  at::Tensor dweight = has_samples(weight) || has_samples(bias)
                           ? at::empty({x.size(0), x.size(1)}, float32)
                           : at::empty({x.size(1)}, float32);
  at::Tensor dbias = at::empty_like(dweight);
  at::Tensor slopes = at::empty({2, x.size(1)}, float32);
  const Dtype dtype = dtype_of(input);
  const Layout layout = channel_layout(input);
  at::Tensor workspace = at::empty({bn_leaky_relu_workspace(dtype, layout, affine.samples)},
                                   float32.dtype(at::kDouble));
  C10_CUDA_CHECK(launch_bn_leaky_relu_backward(
      dtype, dy.const_data_ptr(), input.const_data_ptr(), dx.mutable_data_ptr(),
      dweight.mutable_data_ptr<float>(), dbias.mutable_data_ptr<float>(), affine,
      static_cast<float>(negative_slope), layout, workspace.mutable_data_ptr<double>(),
      slopes.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return {dx, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("bn_leaky_relu", bn_leaky_relu);
  m.impl("bn_leaky_relu_backward", bn_leaky_relu_backward);
}

}  // namespace gdfq::cuda
