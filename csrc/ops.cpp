// The operators' schemas, the table of contents of the native side, and the Python module.

#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

TORCH_LIBRARY(gdfq, m) {
  // ste: "identity" or "clip"; it only decides the gradient.
  m.def("fake_quantize(Tensor x, Tensor lo, Tensor hi, int bits, int? axis, str ste) -> Tensor");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor lo, Tensor hi, int bits, int? axis)"
      " -> Tensor");

  m.def(
      "fake_quantize_minmax(Tensor w, int bits, int? axis, str ste)"
      " -> (Tensor y, Tensor lo, Tensor hi)");

  m.def(
      "batch_norm_stats(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight,"
      " Tensor? bias, float eps) -> (Tensor y, Tensor mean, Tensor var)");
  m.def(
      "batch_norm_stats_backward(Tensor grad_y, Tensor grad_mean, Tensor grad_var, Tensor x,"
      " Tensor mean, Tensor running_var, Tensor? weight, float eps) -> Tensor");

  // act: "relu", "relu6" or "none". The residual's gradient is empty where there is no residual.
  m.def(
      "bn_act_fake_quantize(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight,"
      " Tensor? bias, float eps, Tensor lo, Tensor hi, int bits, str act, Tensor? residual,"
      " str ste) -> Tensor");
  m.def(
      "bn_act_fake_quantize_backward(Tensor grad, Tensor x, Tensor running_mean,"
      " Tensor running_var, Tensor? weight, Tensor? bias, float eps, Tensor lo, Tensor hi,"
      " int bits, str act, Tensor? residual, str ste)"
      " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of gdfq; importing it registers torch.ops.gdfq.";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
#ifdef GDFQ_WITH_CUDA
  m.attr("cuda_version") = GDFQ_WITH_CUDA;
  m.attr("cuda_architectures") = GDFQ_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = pybind11::none();
  m.attr("cuda_architectures") = pybind11::none();
#endif
}
