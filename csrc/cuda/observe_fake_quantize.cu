#include "observe_fake_quantize.h"

#include "observe_fake_quantize.cuh"

namespace gdfq::cuda {

cudaError_t launch_move_range(const float* ranges, int64_t blocks, MovingRange range,
                              double momentum, cudaStream_t stream) {
  return launch(move_range_by_parts, dim3(1), dim3(kThreads), 0, stream, ranges, blocks, range,
                momentum);
}

cudaError_t launch_observe(Dtype dtype, const void* x, int64_t numel, MovingRange range,
                           double momentum, float* workspace, cudaStream_t stream) {
  int64_t blocks = 0;
  const cudaError_t error = with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Inputs<T, 1> inputs{{static_cast<const T*>(x)}};
    return range_of(inputs, Itself{}, {1, 1, numel}, workspace, blocks, stream);
  });
  if (error != cudaSuccess) return error;
  return launch_move_range(workspace, blocks, range, momentum, stream);
}

}  // namespace gdfq::cuda
