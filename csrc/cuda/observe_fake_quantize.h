// Launchers of observe_fake_quantize's update of the range; dense memory, at least one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../moving_range.h"
#include "dtype.h"

namespace gdfq::cuda {

// float32 values that launch_observe needs as workspace.
constexpr int64_t kRangeWorkspace = 2048;

cudaError_t launch_observe(Dtype dtype, const void* x, int64_t numel, MovingRange range,
                           double momentum, float* workspace, cudaStream_t stream);

// Merges `ranges`, [2][blocks], minima and maxima of parts of the batch.
cudaError_t launch_move_range(const float* ranges, int64_t blocks, MovingRange range,
                              double momentum, cudaStream_t stream);

}  // namespace gdfq::cuda
