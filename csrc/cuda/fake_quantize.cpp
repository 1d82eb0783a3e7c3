// The dispatcher's side of fake_quantize on CUDA.

#include "fake_quantize.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
    int64_t bits, std::optional<int64_t> axis) {
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, axis);
  if (x.scalar_type() == at::kDouble) {
    auto [dx, dlo, dhi] =
        fake_quantize_learned_backward(grad.to(at::kFloat), x.to(at::kFloat), lo, hi, bits, axis);
    return {dx.to(at::kDouble), dlo, dhi};
  }
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = dense(x);
  const auto float32 = lo.options().dtype(at::kFloat);
  at::Tensor dx = at::empty_like(input);
  if (input.numel() == 0)
    return {dx, at::zeros(lo.sizes(), float32), at::zeros(hi.sizes(), float32)};
  at::Tensor dlo = at::empty(lo.sizes(), float32), dhi = at::empty(hi.sizes(), float32);
  const at::Tensor dy = in_layout_of(grad.to(input.scalar_type()), input);
  const Layout layout = layout_of(input, axis);
  const at::Tensor float_lo = floats(lo), float_hi = floats(hi);
  const Dtype dtype = dtype_of(input);
  at::Tensor workspace =
      at::empty({fake_quantize_learned_workspace(dtype, layout)}, float32.dtype(at::kDouble));
  C10_CUDA_CHECK(launch_fake_quantize_learned_backward(
      dtype, dy.const_data_ptr(), input.const_data_ptr(), dx.mutable_data_ptr(),
      dlo.mutable_data_ptr<float>(), dhi.mutable_data_ptr<float>(),
      float_lo.const_data_ptr<float>(), float_hi.const_data_ptr<float>(), static_cast<int>(bits),
      layout, workspace.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()));
  return {dx, dlo, dhi};
}

}  // namespace

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo,
                                  const at::Tensor& hi, int64_t bits, std::optional<int64_t> axis) {
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, axis);
  if (x.scalar_type() == at::kDouble) {
    // Codes come from the float32 value; the gradient itself is only passed or not.
    const at::Tensor narrow = x.to(at::kFloat);
    const at::Tensor passes =
        fake_quantize_backward(at::ones_like(narrow), narrow, lo, hi, bits, axis);
    return at::where(passes.to(at::kBool), grad.to(at::kDouble), at::zeros_like(x));
  }
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = dense(x);
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output;
  const at::Tensor dy = in_layout_of(grad.to(input.scalar_type()), input);
  const Layout layout = layout_of(input, axis);
  const at::Tensor float_lo = floats(lo), float_hi = floats(hi);
  C10_CUDA_CHECK(launch_fake_quantize_backward(
      dtype_of(input), dy.const_data_ptr(), input.const_data_ptr(), output.mutable_data_ptr(),
      float_lo.const_data_ptr<float>(), float_hi.const_data_ptr<float>(), static_cast<int>(bits),
      layout, c10::cuda::getCurrentCUDAStream()));
  return output;
}

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view ste) {
  check_range(lo, hi, bits, x, axis);
  if (ste != "learned") check_ste(ste);
  if (x.scalar_type() == at::kDouble)
    return fake_quantize(x.to(at::kFloat), lo, hi, bits, axis, ste).to(at::kDouble);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = dense(x);
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output;
  const Layout layout = layout_of(input, axis);
  const at::Tensor float_lo = floats(lo), float_hi = floats(hi);
  C10_CUDA_CHECK(launch_fake_quantize(dtype_of(input), input.const_data_ptr(),
                                      output.mutable_data_ptr(), float_lo.const_data_ptr<float>(),
                                      float_hi.const_data_ptr<float>(), static_cast<int>(bits),
                                      layout, c10::cuda::getCurrentCUDAStream()));
  return output;
}

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("fake_quantize", fake_quantize);
  m.impl("fake_quantize_backward", fake_quantize_backward);
  m.impl("fake_quantize_learned_backward", fake_quantize_learned_backward);
}

}  // namespace gdfq::cuda
