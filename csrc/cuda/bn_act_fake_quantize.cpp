// The dispatcher's side of bn_act_fake_quantize on CUDA.

#include "bn_act_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "bn_act_tensors.h"
#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

void check(const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
           const Optional& weight, const Optional& bias, const at::Tensor& lo, const at::Tensor& hi,
           int64_t bits, const Optional& residual, c10::string_view ste) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_range(lo, hi, bits, x, std::nullopt);
  check_ste(ste);
}

// The range, kept as long as its pointers are.
struct Range {
  at::Tensor lo, hi;

  Range(const at::Tensor& lo, const at::Tensor& hi) : lo(floats(lo)), hi(floats(hi)) {}

  ActQuantizer quantizer(int64_t bits, c10::string_view act) const {
    return {lo.const_data_ptr<float>(), hi.const_data_ptr<float>(), static_cast<int>(bits),
            activation(act)};
  }
};

}  // namespace

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var, const Optional& weight,
                                const Optional& bias, double eps, const at::Tensor& lo,
                                const at::Tensor& hi, int64_t bits, c10::string_view act,
                                const Optional& residual, c10::string_view ste) {
  if (x.scalar_type() == at::kDouble)
    return bn_act_fake_quantize(x.to(at::kFloat), running_mean, running_var, weight, bias, eps, lo,
                                hi, bits, act, narrowed(residual), ste)
        .to(at::kDouble);
  check(x, running_mean, running_var, weight, bias, lo, hi, bits, residual, ste);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  if (input.numel() == 0) return output;
  const Optional added = residual_of(residual, input);
  const NormVectors norm(running_mean, running_var, weight, bias, eps);
  const Range range(lo, hi);
  C10_CUDA_CHECK(launch_bn_act_fake_quantize(
      dtype_of(input), input.const_data_ptr(), data_of(added), output.mutable_data_ptr(),
      norm.pointers(), range.quantizer(bits, act), channel_layout(input),
      c10::cuda::getCurrentCUDAStream()));
  return output;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_act_fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& running_mean,
    const at::Tensor& running_var, const Optional& weight, const Optional& bias, double eps,
    const at::Tensor& lo, const at::Tensor& hi, int64_t bits, c10::string_view act,
    const Optional& residual, c10::string_view ste) {
  if (x.scalar_type() == at::kDouble) {
    auto [dx, dresidual, dweight, dbias] = bn_act_fake_quantize_backward(
        grad.to(at::kFloat), x.to(at::kFloat), running_mean, running_var, weight, bias, eps, lo, hi,
        bits, act, narrowed(residual), ste);
    return {dx.to(at::kDouble), dresidual.to(at::kDouble), dweight, dbias};
  }
  check(x, running_mean, running_var, weight, bias, lo, hi, bits, residual, ste);
  check_gradient(grad, "grad", x);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const int64_t channels = x.size(1);
  at::Tensor dx = at::empty_like(input, input.suggest_memory_format());
  at::Tensor dresidual = residual ? at::empty_like(dx) : at::empty({0}, input.options());
  if (input.numel() == 0)
    return {dx, dresidual, at::zeros({channels}, float32), at::zeros({channels}, float32)};
  at::Tensor dweight = at::empty({channels}, float32), dbias = at::empty({channels}, float32);
  const at::Tensor dy = in_layout_of(grad.to(input.scalar_type()), input);
  const Optional added = residual_of(residual, input);
  const NormVectors norm(running_mean, running_var, weight, bias, eps);
  const Range range(lo, hi);
  const Layout layout = channel_layout(input);
  at::Tensor workspace = at::empty({bn_act_fake_quantize_workspace(dtype_of(input), layout)},
                                   float32.dtype(at::kDouble));
  C10_CUDA_CHECK(launch_bn_act_fake_quantize_backward(
      dtype_of(input), dy.const_data_ptr(), input.const_data_ptr(), data_of(added),
      dx.mutable_data_ptr(), residual ? dresidual.mutable_data_ptr() : nullptr,
      dweight.mutable_data_ptr<float>(), dbias.mutable_data_ptr<float>(), norm.pointers(),
      range.quantizer(bits, act), ste == "clip", layout, workspace.mutable_data_ptr<double>(),
      c10::cuda::getCurrentCUDAStream()));
  return {dx, dresidual, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("bn_act_fake_quantize", bn_act_fake_quantize);
  m.impl("bn_act_fake_quantize_backward", bn_act_fake_quantize_backward);
}

}  // namespace gdfq::cuda
