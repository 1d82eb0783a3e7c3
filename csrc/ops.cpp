// The operators' schemas, the table of contents of the native side, and the Python module.

#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

TORCH_LIBRARY(gdfq, m) {
  // ste: "identity", "clip" or, in fake_quantize only, "learned"; it changes only the gradient.
  m.def("fake_quantize(Tensor x, Tensor lo, Tensor hi, int bits, int? axis, str ste) -> Tensor");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor lo, Tensor hi, int bits, int? axis)"
      " -> Tensor");
  m.def(
      "fake_quantize_learned_backward(Tensor grad, Tensor x, Tensor lo, Tensor hi, int bits,"
      " int? axis) -> (Tensor grad_x, Tensor grad_lo, Tensor grad_hi)");

  // zero_in_range: widen the range to contain 0.
  m.def(
      "fake_quantize_minmax(Tensor w, int bits, int? axis, str ste, bool zero_in_range)"
      " -> (Tensor y, Tensor lo, Tensor hi)");

  // Dimension 0 of each tensor, with its own number of bits.
  m.def(
      "fake_quantize_minmax_list(Tensor[] ws, int[] bits, str ste, bool zero_in_range)"
      " -> (Tensor[] ys, Tensor[] los, Tensor[] his)");
  m.def(
      "fake_quantize_minmax_list_backward(Tensor[] grads, Tensor[] ws, Tensor[] los, Tensor[] his,"
      " int[] bits) -> Tensor[]");

  // The number of codes of each tensor that differ between w and w - factor * update: int64.
  m.def(
      "count_changed_codes(Tensor[] ws, Tensor[] updates, Tensor factors, Tensor[] los,"
      " Tensor[] his, int[] bits) -> Tensor");

  m.def(
      "observe_fake_quantize(Tensor x, Tensor(a!) average_lo, Tensor(b!) average_hi,"
      " Tensor(c!) lo, Tensor(d!) hi, Tensor(e!) num_batches_tracked, int bits, float momentum,"
      " str ste, bool zero_in_range) -> Tensor");

  // Codes are int8, centred: -2^(bits - 1) to 2^(bits - 1) - 1. inv_scale: 1 / step size.
  m.def(
      "quantize_codes(Tensor x, Tensor lo, Tensor hi, int bits, int? axis)"
      " -> (Tensor codes, Tensor inv_scale, Tensor zero)");
  m.def("pack_codes(Tensor codes, int bits) -> Tensor");
  m.def("unpack_codes(Tensor packed, int bits, SymInt[] shape) -> Tensor");

  m.def(
      "batch_norm_stats(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight,"
      " Tensor? bias, float eps) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "batch_norm_stats_backward(Tensor grad_y, Tensor grad_mean, Tensor grad_var, Tensor x,"
      " Tensor mean, Tensor running_var, Tensor? weight, float eps) -> Tensor");

  // act: "relu", "relu6" or "none". Without a residual, its gradient is empty.
  m.def(
      "bn_act_fake_quantize(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight,"
      " Tensor? bias, float eps, Tensor lo, Tensor hi, int bits, str act, Tensor? residual,"
      " str ste) -> Tensor");
  m.def(
      "bn_act_fake_quantize_backward(Tensor grad, Tensor x, Tensor running_mean,"
      " Tensor running_var, Tensor? weight, Tensor? bias, float eps, Tensor lo, Tensor hi,"
      " int bits, str act, Tensor? residual, str ste)"
      " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "observe_bn_act_fake_quantize(Tensor x, Tensor running_mean, Tensor running_var,"
      " Tensor? weight, Tensor? bias, float eps, Tensor(a!) average_lo, Tensor(b!) average_hi,"
      " Tensor(c!) lo, Tensor(d!) hi, Tensor(e!) num_batches_tracked, int bits, float momentum,"
      " str act, Tensor? residual, str ste, bool zero_in_range) -> Tensor");

  // weight and bias: one per channel, or one per sample and channel. mean and var: the batch's.
  m.def(
      "bn_leaky_relu(Tensor x, Tensor? weight, Tensor? bias, float eps, float negative_slope)"
      " -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "bn_leaky_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor? weight,"
      " Tensor? bias, float eps, float negative_slope)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // Lists have one entry per layer.
  m.def(
      "bns_loss(Tensor[] means, Tensor[] vars, Tensor[] running_means, Tensor[] running_vars)"
      " -> Tensor");
  m.def(
      "bns_loss_backward(Tensor grad, Tensor[] means, Tensor[] vars, Tensor[] running_means,"
      " Tensor[] running_vars) -> (Tensor[] grad_means, Tensor[] grad_vars)");

  // The gradient of the loss to the student's logits, in float32 (float64 for float64).
  m.def(
      "kd_ce_loss(Tensor student_logits, Tensor teacher_logits, Tensor labels, float temperature,"
      " float alpha) -> (Tensor loss, Tensor gradient)");
}

// Read off the file by gdfq/ops/_native.py, before this library is loaded beside another torch.
extern "C" __attribute__((visibility("default"), used)) const char gdfq_built_for_torch[] =
    "gdfq is built for torch " TORCH_VERSION;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of gdfq; importing it registers torch.ops.gdfq.";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("parts") = GDFQ_PARTS;
#ifdef GDFQ_WITH_CUDA
  m.attr("cuda_version") = GDFQ_WITH_CUDA;
  m.attr("cuda_architectures") = GDFQ_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = pybind11::none();
  m.attr("cuda_architectures") = pybind11::none();
#endif
}
