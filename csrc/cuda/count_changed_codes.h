// Launcher of count_changed_codes: any number of tensors of one dtype, at least one; rows of
// `length` elements one after another, at least one row and one element each.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

struct ComparedRows {
  const void* w;
  const void* update;
  const float* factor;  // one
  const float* lo;      // [rows]
  const float* hi;      // [rows]
  int64_t* changed;     // one, added to
  int64_t rows;
  int64_t length;
  int bits;
};

cudaError_t launch_count_changed_codes(Dtype dtype, const ComparedRows* tensors, int64_t count,
                                       cudaStream_t stream);

}  // namespace gdfq::cuda
