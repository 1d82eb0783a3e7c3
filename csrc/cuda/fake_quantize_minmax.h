// Launcher of fake_quantize_minmax: rows of `length` elements one after another, at least one row
// and one element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

cudaError_t launch_fake_quantize_minmax(Dtype dtype, const void* w, void* y, float* lo, float* hi,
                                        int bits, bool zero_in_range, int64_t rows, int64_t length,
                                        cudaStream_t stream);

}  // namespace gdfq::cuda
