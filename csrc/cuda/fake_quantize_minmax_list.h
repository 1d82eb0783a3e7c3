// Launchers of fake_quantize_minmax_list: any number of tensors of one dtype, at least one; rows of
// `length` elements one after another, at least one row and one element each.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

struct QuantizedRows {
  const void* w;
  void* y;
  float* lo;  // [rows]
  float* hi;  // [rows]
  int64_t rows;
  int64_t length;
  int bits;
  bool zero_in_range;
};

cudaError_t launch_fake_quantize_minmax_list(Dtype dtype, const QuantizedRows* tensors,
                                             int64_t count, cudaStream_t stream);

struct ClippedRows {
  const void* dy;
  const void* w;
  void* dw;
  const float* lo;  // [rows]
  const float* hi;  // [rows]
  int64_t rows;
  int64_t length;
  int bits;
};

cudaError_t launch_fake_quantize_minmax_list_backward(Dtype dtype, const ClippedRows* tensors,
                                                      int64_t count, cudaStream_t stream);

}  // namespace gdfq::cuda
