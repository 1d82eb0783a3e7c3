// Launcher of observe_fake_quantize's update of the range; dense memory, at least one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

// One number each.
struct MovingRange {
  float* average_lo;
  float* average_hi;
  float* lo;
  float* hi;
  int64_t* num_batches_tracked;
};

// float32 values that launch_observe needs as workspace.
int64_t observe_workspace(Dtype dtype, int64_t numel);

cudaError_t launch_observe(Dtype dtype, const void* x, int64_t numel, MovingRange range,
                           double momentum, float* workspace, cudaStream_t stream);

}  // namespace gdfq::cuda
