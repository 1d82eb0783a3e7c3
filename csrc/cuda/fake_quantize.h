// Launchers of fake_quantize; dense memory in `layout`, at least one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../layout.h"
#include "dtype.h"

namespace gdfq::cuda {

cudaError_t launch_fake_quantize(Dtype dtype, const void* x, void* y, const float* lo,
                                 const float* hi, int bits, Layout layout, cudaStream_t stream);

cudaError_t launch_fake_quantize_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                          const float* lo, const float* hi, int bits, Layout layout,
                                          cudaStream_t stream);

// float64 values that launch_fake_quantize_learned_backward needs as workspace.
int64_t fake_quantize_learned_workspace(Dtype dtype, Layout layout);

// dlo, dhi: [channels].
cudaError_t launch_fake_quantize_learned_backward(Dtype dtype, const void* dy, const void* x,
                                                  void* dx, float* dlo, float* dhi, const float* lo,
                                                  const float* hi, int bits, Layout layout,
                                                  double* workspace, cudaStream_t stream);

}  // namespace gdfq::cuda
