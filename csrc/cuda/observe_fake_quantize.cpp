// The dispatcher's side of observe_fake_quantize on CUDA.

#include "observe_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

at::Tensor observe_fake_quantize(const at::Tensor& x, at::Tensor average_lo, at::Tensor average_hi,
                                 at::Tensor lo, at::Tensor hi, at::Tensor num_batches_tracked,
                                 int64_t bits, double momentum, c10::string_view ste,
                                 bool zero_in_range) {
  if (x.scalar_type() == at::kDouble)
    return observe_fake_quantize(x.to(at::kFloat), average_lo, average_hi, lo, hi,
                                 num_batches_tracked, bits, momentum, ste, zero_in_range)
        .to(at::kDouble);
  const c10::cuda::CUDAGuard guard(x.device());
  check_bits(bits);
  check_ste(ste);
  const MovingRange range =
      moving_range(average_lo, average_hi, lo, hi, num_batches_tracked, zero_in_range);
  const at::Tensor input = dense(x);
  if (input.numel() > 0) {
    at::Tensor workspace = at::empty({kRangeWorkspace}, lo.options());
    C10_CUDA_CHECK(launch_observe(dtype_of(input), input.const_data_ptr(), input.numel(), range,
                                  momentum, workspace.mutable_data_ptr<float>(),
                                  c10::cuda::getCurrentCUDAStream()));
  }
  return fake_quantize(input, lo, hi, bits, std::nullopt, ste);
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("observe_fake_quantize", observe_fake_quantize);
}

}  // namespace gdfq::cuda
