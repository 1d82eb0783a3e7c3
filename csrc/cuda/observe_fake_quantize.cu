#include "observe_fake_quantize.h"

#include "observe_fake_quantize.cuh"

namespace gdfq::cuda {
namespace {

template <typename T>
int64_t blocks_of(int64_t numel) {
  // A few vectors a thread, until there are blocks enough to fill a GPU.
  const int64_t wanted = divide_up(slots_of<T>(numel, false), 4 * kThreads);
  return wanted < kMostBlocks ? wanted : kMostBlocks;
}

}  // namespace

int64_t observe_workspace(Dtype dtype, int64_t numel) {
  int64_t blocks = 0;
  with_type(dtype, [&](auto value) {
    blocks = blocks_of<decltype(value)>(numel);
    return cudaSuccess;
  });
  return 2 * blocks;
}

cudaError_t launch_observe(Dtype dtype, const void* x, int64_t numel, MovingRange range,
                           double momentum, float* workspace, cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const int64_t blocks = blocks_of<T>(numel);
    const cudaError_t error =
        launch(minmax_blocks<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
               static_cast<const T*>(x), numel, workspace);
    if (error != cudaSuccess) return error;
    return launch(move_range, dim3(1), dim3(kThreads), 0, stream, workspace, blocks, range,
                  momentum);
  });
}

}  // namespace gdfq::cuda
