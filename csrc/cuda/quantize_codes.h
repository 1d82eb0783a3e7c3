// Launchers of quantize_codes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../layout.h"
#include "dtype.h"

namespace gdfq::cuda {

// lo, hi, inv_scale, zero: [ranges], at least one.
cudaError_t launch_grids(const float* lo, const float* hi, float* inv_scale, float* zero, int bits,
                         int64_t ranges, cudaStream_t stream);

// Dense memory in `layout`, at least one element; codes are 16-byte aligned.
cudaError_t launch_quantize_codes(Dtype dtype, const void* x, int8_t* codes, const float* inv_scale,
                                  const float* zero, int bits, Layout layout, cudaStream_t stream);

}  // namespace gdfq::cuda
