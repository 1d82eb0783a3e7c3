// The dispatcher's side of bn_act_fake_quantize on CUDA.

#include "bn_act_fake_quantize.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <tuple>

#include "tensor.h"

namespace gdfq::cuda {
namespace {

using Optional = std::optional<at::Tensor>;

void check(const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
           const Optional& weight, const Optional& bias, const at::Tensor& lo, const at::Tensor& hi,
           int64_t bits, const Optional& residual) {
  TORCH_CHECK(x.dim() >= 2, "x must have at least 2 dimensions (N, C, ...), got ", x.dim());
  for (const Optional& t : {Optional(running_mean), Optional(running_var), weight, bias})
    TORCH_CHECK(!t || t->numel() == x.size(1), "x has ", x.size(1),
                " channels, a vector of the batch norm has ", t ? t->numel() : 0);
  TORCH_CHECK(lo.numel() == 1 && hi.numel() == 1, "lo and hi must be one number each, got ",
              lo.sizes(), " and ", hi.sizes());
  TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be 2 to 8, got ", bits);
  TORCH_CHECK(!residual || residual->sizes() == x.sizes(), "residual must have x's shape ",
              x.sizes(), ", got ", residual ? residual->sizes() : x.sizes());
}

Activation activation(c10::string_view act) {
  if (act == "relu") return Activation::relu;
  if (act == "relu6") return Activation::relu6;
  TORCH_CHECK(act == "none", "act must be relu, relu6 or none, got ", act);
  return Activation::none;
}

// float32 vectors of the batch norm and the range, kept as long as their pointers are.
struct Constants {
  at::Tensor mean, var, lo, hi;
  Optional weight, bias;
  double eps;
  int bits;
  Activation act;

  BatchNorm norm() const {
    return {mean.const_data_ptr<float>(), var.const_data_ptr<float>(), pointer(weight),
            pointer(bias), eps};
  }
  ActQuantizer quantizer() const {
    return {lo.const_data_ptr<float>(), hi.const_data_ptr<float>(), bits, act};
  }
};

Optional wide_to_float(const Optional& t) { return t ? Optional(t->to(at::kFloat)) : std::nullopt; }

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var, const Optional& weight,
                                const Optional& bias, double eps, const at::Tensor& lo,
                                const at::Tensor& hi, int64_t bits, c10::string_view act,
                                const Optional& residual, c10::string_view ste) {
  if (x.scalar_type() == at::kDouble)
    return bn_act_fake_quantize(x.to(at::kFloat), running_mean, running_var, weight, bias, eps, lo,
                                hi, bits, act, wide_to_float(residual), ste)
        .to(at::kDouble);
  check(x, running_mean, running_var, weight, bias, lo, hi, bits, residual);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  if (input.numel() == 0) return output;
  const at::Tensor added =
      residual ? in_layout_of(residual->to(input.scalar_type()), input) : at::Tensor();
  const Constants constants{
      floats(running_mean), floats(running_var), floats(lo), floats(hi),
      floats(weight),       floats(bias),        eps,        static_cast<int>(bits),
      activation(act)};
  C10_CUDA_CHECK(launch_bn_act_fake_quantize(
      dtype_of(input), input.const_data_ptr(), residual ? added.const_data_ptr() : nullptr,
      output.mutable_data_ptr(), constants.norm(), constants.quantizer(), channel_layout(input),
      c10::cuda::getCurrentCUDAStream()));
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_act_fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& running_mean,
    const at::Tensor& running_var, const Optional& weight, const Optional& bias, double eps,
    const at::Tensor& lo, const at::Tensor& hi, int64_t bits, c10::string_view act,
    const Optional& residual, c10::string_view ste) {
  if (x.scalar_type() == at::kDouble) {
    auto [dx, dresidual, dweight, dbias] = bn_act_fake_quantize_backward(
        grad.to(at::kFloat), x.to(at::kFloat), running_mean, running_var, weight, bias, eps, lo, hi,
        bits, act, wide_to_float(residual), ste);
    return {dx.to(at::kDouble), dresidual.to(at::kDouble), dweight, dbias};
  }
  check(x, running_mean, running_var, weight, bias, lo, hi, bits, residual);
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
  const at::Tensor added =
      residual ? in_layout_of(residual->to(input.scalar_type()), input) : at::Tensor();
  const Constants constants{
      floats(running_mean), floats(running_var), floats(lo), floats(hi),
      floats(weight),       floats(bias),        eps,        static_cast<int>(bits),
      activation(act)};
  const Layout layout = channel_layout(input);
  at::Tensor workspace = at::empty({bn_act_fake_quantize_workspace(dtype_of(input), layout)},
                                   float32.dtype(at::kDouble));
  C10_CUDA_CHECK(launch_bn_act_fake_quantize_backward(
      dtype_of(input), dy.const_data_ptr(), input.const_data_ptr(),
      residual ? added.const_data_ptr() : nullptr, dx.mutable_data_ptr(),
      residual ? dresidual.mutable_data_ptr() : nullptr, dweight.mutable_data_ptr<float>(),
      dbias.mutable_data_ptr<float>(), constants.norm(), constants.quantizer(), ste == "clip",
      layout, workspace.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()));
  return {dx, dresidual, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("bn_act_fake_quantize", bn_act_fake_quantize);
  m.impl("bn_act_fake_quantize_backward", bn_act_fake_quantize_backward);
}

}  // namespace gdfq::cuda
