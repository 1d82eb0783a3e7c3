#include "../../../csrc/cuda/batch_norm_stats.h"

#include <vector>

using namespace gdfq;

extern "C" int batch_norm_stats(int64_t dtype, const void* x, void* y, float* mean, float* var,
                                const float* running_mean, const float* running_var,
                                const float* weight, const float* bias, double eps, int64_t outer,
                                int64_t channels, int64_t inner) {
  const auto type = static_cast<cuda::Dtype>(dtype);
  const Layout layout{outer, channels, inner};
  const double unwritten = __builtin_nan("");
  std::vector<double> workspace(cuda::batch_norm_stats_workspace(type, layout), unwritten);
  return cuda::launch_batch_norm_stats(type, x, y, mean, var, running_mean, running_var, weight,
                                       bias, static_cast<float>(eps), layout, workspace.data(), nullptr);
}

extern "C" int batch_norm_stats_backward(int64_t dtype, const void* dy, const void* x, void* dx,
                                         const float* grad_mean, const float* grad_var,
                                         const float* mean, const float* running_var,
                                         const float* weight, double eps, int64_t outer,
                                         int64_t channels, int64_t inner) {
  return cuda::launch_batch_norm_stats_backward(
      static_cast<cuda::Dtype>(dtype), dy, x, dx, grad_mean, grad_var, mean, running_var, weight,
      static_cast<float>(eps), {outer, channels, inner}, nullptr);
}
