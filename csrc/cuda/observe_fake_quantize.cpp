// The dispatcher's side of observe_fake_quantize on CUDA.

#include "observe_fake_quantize.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

float* scalar(const at::Tensor& t, const char* name) {
  TORCH_CHECK(t.numel() == 1 && t.scalar_type() == at::kFloat, name,
              " must be one float32 number, got ", t.scalar_type(), " of shape ", t.sizes());
  return t.mutable_data_ptr<float>();
}

at::Tensor observe_fake_quantize(const at::Tensor& x, at::Tensor average_lo, at::Tensor average_hi,
                                 at::Tensor lo, at::Tensor hi, at::Tensor num_batches_tracked,
                                 int64_t bits, double momentum, c10::string_view ste) {
  TORCH_CHECK(num_batches_tracked.numel() == 1 && num_batches_tracked.scalar_type() == at::kLong,
              "num_batches_tracked must be one int64 number, got ",
              num_batches_tracked.scalar_type(), " of shape ", num_batches_tracked.sizes());
  if (x.scalar_type() == at::kDouble)
    return observe_fake_quantize(x.to(at::kFloat), average_lo, average_hi, lo, hi,
                                 num_batches_tracked, bits, momentum, ste)
        .to(at::kDouble);
  const c10::cuda::CUDAGuard guard(x.device());
  const MovingRange range{scalar(average_lo, "average_lo"), scalar(average_hi, "average_hi"),
                          scalar(lo, "lo"), scalar(hi, "hi"),
                          num_batches_tracked.mutable_data_ptr<int64_t>()};
  const at::Tensor input = dense(x);
  if (input.numel() > 0) {
    const Dtype dtype = dtype_of(input);
    at::Tensor workspace = at::empty({observe_workspace(dtype, input.numel())}, lo.options());
    C10_CUDA_CHECK(launch_observe(dtype, input.const_data_ptr(), input.numel(), range, momentum,
                                  workspace.mutable_data_ptr<float>(),
                                  c10::cuda::getCurrentCUDAStream()));
  }
  return fake_quantize(input, lo, hi, bits, std::nullopt, ste);
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("observe_fake_quantize", observe_fake_quantize);
}

}  // namespace gdfq::cuda
