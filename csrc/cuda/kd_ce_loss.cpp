// The dispatcher's side of kd_ce_loss on CUDA.

#include "kd_ce_loss.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> kd_ce_loss(const at::Tensor& student_logits,
                                              const at::Tensor& teacher_logits,
                                              const at::Tensor& labels, double temperature,
                                              double alpha) {
  check_logits(student_logits, teacher_logits, labels);
  const int64_t batch = student_logits.size(0), classes = student_logits.size(1);
  const bool hard = labels.dim() == 1;
  const c10::cuda::CUDAGuard guard(student_logits.device());
  const at::Tensor student = student_logits.contiguous();
  const at::Tensor teacher = teacher_logits.to(student.scalar_type()).contiguous();
  const bool wide = student.scalar_type() == at::kDouble;
  const auto type = wide ? at::kDouble : at::kFloat;
  const at::Tensor targets = labels.to(hard ? at::kLong : type).contiguous();
  Labels pointers{};
  if (hard) {
    pointers.classes = targets.const_data_ptr<int64_t>();
  } else if (wide) {
    pointers.wide_probabilities = targets.const_data_ptr<double>();
  } else {
    pointers.probabilities = targets.const_data_ptr<float>();
  }
  const auto options = student.options().dtype(type);
  at::Tensor loss = at::empty({}, options), gradient = at::empty({batch, classes}, options);
  at::Tensor workspace = at::empty({2 * batch}, options.dtype(at::kDouble));
  C10_CUDA_CHECK(launch_kd_ce_loss(
      wide ? Dtype::float64 : dtype_of(student), student.const_data_ptr(), teacher.const_data_ptr(),
      pointers, temperature, alpha, loss.mutable_data_ptr(), gradient.mutable_data_ptr(), batch,
      classes, workspace.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()));
  return {loss, gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) { m.impl("kd_ce_loss", kd_ce_loss); }

}  // namespace gdfq::cuda
