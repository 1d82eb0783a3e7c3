// Launchers of bn_act_fake_quantize; dense memory in `layout`, at least one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../activation.h"
#include "../layout.h"
#include "dtype.h"
#include "frozen_norm.h"

namespace gdfq::cuda {

// Activation and quantizer, the same for the whole tensor; lo and hi are one number each.
struct ActQuantizer {
  const float* lo;
  const float* hi;
  int bits;
  Activation act;
};

// residual may be null.
cudaError_t launch_bn_act_fake_quantize(Dtype dtype, const void* x, const void* residual, void* y,
                                        FrozenNorm norm, ActQuantizer quantizer, Layout layout,
                                        cudaStream_t stream);

// float64 values that launch_bn_act_fake_quantize_backward needs as workspace.
int64_t bn_act_fake_quantize_workspace(Dtype dtype, Layout layout);

// residual and dresidual may be null, both or none; dweight and dbias: [channels].
cudaError_t launch_bn_act_fake_quantize_backward(Dtype dtype, const void* dy, const void* x,
                                                 const void* residual, void* dx, void* dresidual,
                                                 float* dweight, float* dbias, FrozenNorm norm,
                                                 ActQuantizer quantizer, bool clip, Layout layout,
                                                 double* workspace, cudaStream_t stream);

}  // namespace gdfq::cuda
