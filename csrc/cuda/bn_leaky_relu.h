// Launchers of bn_leaky_relu; dense memory in `layout`, at least one element. The batch's
// statistics are launch_channel_statistics' of batch_norm_stats.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../layout.h"
#include "dtype.h"

namespace gdfq::cuda {

// weight and bias: [channels] or, where a flag says so, [samples][channels]; both may be null.
// Samples is 1 where neither is per sample.
struct BatchAffine {
  const float* mean;  // [channels], of the batch
  const float* var;   // [channels], of the batch
  const float* weight;
  const float* bias;
  bool weight_per_sample, bias_per_sample;
  int64_t channels, samples;
  double eps;
};

cudaError_t launch_bn_leaky_relu(Dtype dtype, const void* x, void* y, BatchAffine affine,
                                 float slope, Layout layout, cudaStream_t stream);

// float64 values that launch_bn_leaky_relu_backward needs as workspace.
int64_t bn_leaky_relu_workspace(Dtype dtype, Layout layout, int64_t samples);

// dweight, dbias: [samples][channels]; affine_gradient: [2][channels] of workspace.
cudaError_t launch_bn_leaky_relu_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                          float* dweight, float* dbias, BatchAffine affine,
                                          float slope, Layout layout, double* workspace,
                                          float* affine_gradient, cudaStream_t stream);

}  // namespace gdfq::cuda
