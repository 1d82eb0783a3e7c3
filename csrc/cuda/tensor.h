// What the dispatcher glue of every CUDA operator needs: dtype, stream and device of tensors.
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

// float32, contiguous: a copy only where it isn't already.
inline at::Tensor floats(const at::Tensor& t) { return t.to(at::kFloat).contiguous(); }

inline std::optional<at::Tensor> floats(const std::optional<at::Tensor>& t) {
  return t ? std::optional<at::Tensor>(floats(*t)) : std::nullopt;
}

inline const float* pointer(const std::optional<at::Tensor>& t) {
  return t ? t->const_data_ptr<float>() : nullptr;
}

}  // namespace gdfq::cuda
