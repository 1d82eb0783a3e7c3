// The dispatcher's side of observe_bn_act_fake_quantize on CUDA.

#include "observe_bn_act_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "bn_act_tensors.h"
#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

at::Tensor observe_bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                        const at::Tensor& running_var, const Optional& weight,
                                        const Optional& bias, double eps, at::Tensor average_lo,
                                        at::Tensor average_hi, at::Tensor lo, at::Tensor hi,
                                        at::Tensor num_batches_tracked, int64_t bits,
                                        double momentum, c10::string_view act,
                                        const Optional& residual, c10::string_view ste,
                                        bool zero_in_range) {
  if (x.scalar_type() == at::kDouble)
    return observe_bn_act_fake_quantize(x.to(at::kFloat), running_mean, running_var, weight, bias,
                                        eps, average_lo, average_hi, lo, hi, num_batches_tracked,
                                        bits, momentum, act, narrowed(residual), ste, zero_in_range)
        .to(at::kDouble);
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_bits(bits);
  check_ste(ste);
  const MovingRange range =
      moving_range(average_lo, average_hi, lo, hi, num_batches_tracked, zero_in_range);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = walkable(x);
  const Optional added = residual_of(residual, input);
  if (input.numel() > 0) {
    const NormVectors norm(running_mean, running_var, weight, bias, eps);
    at::Tensor workspace = at::empty({kRangeWorkspace}, lo.options());
    C10_CUDA_CHECK(launch_observe_bn_act(dtype_of(input), input.const_data_ptr(), data_of(added),
                                         norm.pointers(), activation(act), channel_layout(input),
                                         range, momentum, workspace.mutable_data_ptr<float>(),
                                         c10::cuda::getCurrentCUDAStream()));
  }
  return bn_act_fake_quantize(input, running_mean, running_var, weight, bias, eps, lo, hi, bits,
                              act, added, ste);
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("observe_bn_act_fake_quantize", observe_bn_act_fake_quantize);
}

}  // namespace gdfq::cuda
