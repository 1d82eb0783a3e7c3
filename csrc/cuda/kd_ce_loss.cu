#include "kd_ce_loss.h"

#include "kd_ce_loss.cuh"

namespace gdfq::cuda {
namespace {

template <typename T>
cudaError_t launch_rows(const void* student, const void* teacher, Labels labels, double temperature,
                        double alpha, void* loss, void* gradient, int64_t rows, int64_t classes,
                        double* workspace, cudaStream_t stream) {
  using Loss = typename LossOf<T>::type;
  unsigned threads = 32;
  while (threads < kLogitThreads && threads < classes) threads *= 2;
  const dim3 grid(static_cast<unsigned>(rows));
  const int64_t bytes = 2 * classes * static_cast<int64_t>(sizeof(T));
  const bool on_chip = bytes <= kLogitBytesOnChip;
  const auto kernel = on_chip ? kd_ce_loss_rows<T, true> : kd_ce_loss_rows<T, false>;
  const double batch = static_cast<double>(rows), elements = batch * static_cast<double>(classes);
  const Factors factors{1 / temperature, 1 / batch, alpha * temperature / elements};
  const cudaError_t error =
      launch(kernel, grid, dim3(threads), on_chip ? static_cast<size_t>(bytes) : 0, stream,
             static_cast<const T*>(student), static_cast<const T*>(teacher), labels, factors,
             static_cast<Loss*>(gradient), classes, workspace);
  if (error != cudaSuccess) return error;
  return launch(kd_ce_loss_sum<Loss>, dim3(1), dim3(kLogitThreads), 0, stream, workspace, rows,
                alpha * temperature * temperature / elements, static_cast<Loss*>(loss));
}

}  // namespace

cudaError_t launch_kd_ce_loss(Dtype dtype, const void* student, const void* teacher, Labels labels,
                              double temperature, double alpha, void* loss, void* gradient,
                              int64_t rows, int64_t classes, double* workspace,
                              cudaStream_t stream) {
  const auto run = [&](auto value) {
    return launch_rows<decltype(value)>(student, teacher, labels, temperature, alpha, loss,
                                        gradient, rows, classes, workspace, stream);
  };
  return dtype == Dtype::float64 ? run(double{}) : with_type(dtype, run);
}

}  // namespace gdfq::cuda
