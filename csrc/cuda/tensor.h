// The dtype, stream and pointers that the dispatcher's side of every CUDA operator needs.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "../dense.h"
#include "dtype.h"

// The tests' stand-in registers these operators for CPU tensors.
#ifndef GDFQ_CUDA_KEY
#define GDFQ_CUDA_KEY CUDA
#endif

namespace gdfq::cuda {

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Dtype::float32;
    case at::kHalf:
      return Dtype::float16;
    case at::kBFloat16:
      return Dtype::bfloat16;
    default:
      TORCH_CHECK(false, "dtype must be float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

inline const float* pointer(const Optional& t) { return t ? t->const_data_ptr<float>() : nullptr; }

}  // namespace gdfq::cuda
