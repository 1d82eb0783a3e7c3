// Launcher of observe_bn_act_fake_quantize's update of the range; dense memory in `layout`, at
// least one element.
#pragma once

#include <cuda_runtime_api.h>

#include "../activation.h"
#include "../layout.h"
#include "dtype.h"
#include "frozen_norm.h"
#include "observe_fake_quantize.h"

namespace gdfq::cuda {

// residual may be null; workspace: kRangeWorkspace values.
cudaError_t launch_observe_bn_act(Dtype dtype, const void* x, const void* residual, FrozenNorm norm,
                                  Activation act, Layout layout, MovingRange range, double momentum,
                                  float* workspace, cudaStream_t stream);

}  // namespace gdfq::cuda
