#include "fake_quantize_minmax_list.h"

#include "fake_quantize_minmax_list.cuh"

namespace gdfq::cuda {
cudaError_t launch_fake_quantize_minmax_list(Dtype dtype, const QuantizedRows* tensors,
                                             int64_t count, cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    return launch_list(quantize_minmax_list<decltype(value)>, tensors, count, stream);
  });
}

cudaError_t launch_fake_quantize_minmax_list_backward(Dtype dtype, const ClippedRows* tensors,
                                                      int64_t count, cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    return launch_list(clip_gradient_list<decltype(value)>, tensors, count, stream);
  });
}

}  // namespace gdfq::cuda
