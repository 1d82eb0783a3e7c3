// Launcher of kd_ce_loss; contiguous logits, at least one row and one class.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

// Exactly one of classes, [rows], and probabilities, [rows][classes], is not null.
struct Labels {
  const int64_t* classes;
  const float* probabilities;
  const double* wide_probabilities;  // of float64 logits, in place of `probabilities`
};

// student and teacher: [rows][classes]. gradient: the same; it and loss are float64 for float64
// logits, else float32. workspace: 2 * rows float64.
cudaError_t launch_kd_ce_loss(Dtype dtype, const void* student, const void* teacher, Labels labels,
                              double temperature, double alpha, void* loss, void* gradient,
                              int64_t rows, int64_t classes, double* workspace,
                              cudaStream_t stream);

}  // namespace gdfq::cuda
