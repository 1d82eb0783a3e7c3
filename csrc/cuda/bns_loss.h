// Launchers of bns_loss; float32 statistics of any number of layers, at least one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gdfq::cuda {

// [channels] each; grad_mean and grad_var are used backward only.
struct LayerStatistics {
  const float* mean;
  const float* var;
  const float* running_mean;
  const float* running_var;
  float* grad_mean;
  float* grad_var;
  int64_t channels;
};

// workspace: one float64.
cudaError_t launch_bns_loss(const LayerStatistics* layers, int64_t count, float* loss,
                            double* workspace, cudaStream_t stream);

// grad: one number.
cudaError_t launch_bns_loss_backward(const float* grad, const LayerStatistics* layers,
                                     int64_t count, cudaStream_t stream);

}  // namespace gdfq::cuda
