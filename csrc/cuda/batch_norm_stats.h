// Launchers of batch_norm_stats; dense memory in `layout`, at least one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../layout.h"
#include "dtype.h"

namespace gdfq::cuda {

// float64 values that launch_batch_norm_stats needs as workspace.
int64_t batch_norm_stats_workspace(Dtype dtype, Layout layout);

// running_mean, running_var, weight, bias: [channels], the last two may be null.
cudaError_t launch_batch_norm_stats(Dtype dtype, const void* x, void* y, float* mean, float* var,
                                    const float* running_mean, const float* running_var,
                                    const float* weight, const float* bias, float eps,
                                    Layout layout, double* workspace, cudaStream_t stream);

// The statistics alone, with the same workspace: x is only read.
cudaError_t launch_channel_statistics(Dtype dtype, const void* x, float* mean, float* var,
                                      Layout layout, double* workspace, cudaStream_t stream);

cudaError_t launch_batch_norm_stats_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                             const float* grad_mean, const float* grad_var,
                                             const float* mean, const float* running_var,
                                             const float* weight, float eps, Layout layout,
                                             cudaStream_t stream);

}  // namespace gdfq::cuda
