// The dispatcher's side of quantize_codes on CUDA.

#include "quantize_codes.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_codes(const at::Tensor& x,
                                                              const at::Tensor& lo,
                                                              const at::Tensor& hi, int64_t bits,
                                                              std::optional<int64_t> axis) {
  if (x.scalar_type() == at::kDouble) return quantize_codes(x.to(at::kFloat), lo, hi, bits, axis);
  check_range(lo, hi, bits, x, axis);
  const int64_t ranges = lo.numel();
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = dense(x);
  at::Tensor codes = at::empty_like(input, input.options().dtype(at::kChar));
  at::Tensor inv_scale = at::empty(lo.sizes(), lo.options().dtype(at::kFloat));
  at::Tensor zero = at::empty(lo.sizes(), inv_scale.options());
  if (ranges == 0) return {codes, inv_scale, zero};
  const at::Tensor float_lo = floats(lo), float_hi = floats(hi);
  C10_CUDA_CHECK(launch_grids(float_lo.const_data_ptr<float>(), float_hi.const_data_ptr<float>(),
                              inv_scale.mutable_data_ptr<float>(), zero.mutable_data_ptr<float>(),
                              static_cast<int>(bits), ranges, c10::cuda::getCurrentCUDAStream()));
  if (input.numel() == 0) return {codes, inv_scale, zero};
  C10_CUDA_CHECK(launch_quantize_codes(
      dtype_of(input), input.const_data_ptr(), codes.mutable_data_ptr<int8_t>(),
      inv_scale.const_data_ptr<float>(), zero.const_data_ptr<float>(), static_cast<int>(bits),
      layout_of(input, axis), c10::cuda::getCurrentCUDAStream()));
  return {codes, inv_scale, zero};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) { m.impl("quantize_codes", quantize_codes); }

}  // namespace gdfq::cuda
