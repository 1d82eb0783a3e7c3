#include "observe_bn_act_fake_quantize.h"

#include "observe_bn_act_fake_quantize.cuh"

namespace gdfq::cuda {

cudaError_t launch_observe_bn_act(Dtype dtype, const void* x, const void* residual, FrozenNorm norm,
                                  Activation act, Layout layout, MovingRange range, double momentum,
                                  float* workspace, cudaStream_t stream) {
  int64_t blocks = 0;
  const cudaError_t error = with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T* in = static_cast<const T*>(x);
    if (residual) {
      const Inputs<T, 2> inputs{{in, static_cast<const T*>(residual)}};
      return range_of(inputs, BnAct<true>{norm, act}, layout, workspace, blocks, stream);
    }
    const BnAct<false> op{norm, act};
    return range_of(Inputs<T, 1>{{in}}, op, layout, workspace, blocks, stream);
  });
  if (error != cudaSuccess) return error;
  return launch_move_range(workspace, blocks, range, momentum, stream);
}

}  // namespace gdfq::cuda
