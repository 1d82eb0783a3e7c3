// The dispatcher's side of kernels that take the rows of several tensors in one launch.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "tensor.h"

namespace gdfq::cuda {

// Descriptions of tensors, a list for each dtype.
template <typename Rows>
struct Lists {
  std::vector<Rows> of_dtype[3];

  void add(Dtype dtype, const Rows& rows) { of_dtype[static_cast<int>(dtype)].push_back(rows); }

  template <typename Launch>
  void launch(const Launch& launch) const {
    for (const Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16}) {
      const std::vector<Rows>& list = of_dtype[static_cast<int>(dtype)];
      C10_CUDA_CHECK(launch(dtype, list.data(), static_cast<int64_t>(list.size()),
                            c10::cuda::getCurrentCUDAStream()));
    }
  }
};

}  // namespace gdfq::cuda
