#include "fake_quantize_minmax_list.h"

#include "fake_quantize_minmax_list.cuh"

namespace gdfq::cuda {
namespace {

template <typename Rows>
cudaError_t launch_list(void (*kernel)(RowList<Rows>), const Rows* tensors, int64_t count,
                        cudaStream_t stream) {
  static_assert(sizeof(RowList<Rows>) <= 4096);
  for (int64_t begin = 0; begin < count; begin += kMaxTensors) {
    RowList<Rows> list;
    list.count = static_cast<int>(count - begin < kMaxTensors ? count - begin : kMaxTensors);
    int64_t rows = 0;
    for (int t = 0; t < list.count; ++t) {
      list.tensor[t] = tensors[begin + t];
      list.start[t] = rows;
      rows += list.tensor[t].rows;
    }
    const cudaError_t error =
        launch(kernel, dim3(static_cast<unsigned>(rows)), dim3(kListThreads), 0, stream, list);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

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
