#include "../../../csrc/cuda/kd_ce_loss.h"

#include <vector>

using namespace gdfq;

extern "C" int kd_ce_loss(int64_t dtype, const void* student, const void* teacher,
                          const int64_t* classes_of, const float* probabilities,
                          double temperature, double alpha, void* loss, void* gradient,
                          int64_t rows, int64_t classes) {
  std::vector<double> workspace(2 * rows, __builtin_nan(""));
  return cuda::launch_kd_ce_loss(static_cast<cuda::Dtype>(dtype), student, teacher,
                                 {classes_of, probabilities, nullptr}, temperature, alpha, loss,
                                 gradient, rows, classes, workspace.data(), nullptr);
}
