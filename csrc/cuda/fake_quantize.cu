#include "fake_quantize.h"

#include <cmath>

#include "fake_quantize.cuh"

namespace gdfq::cuda {

cudaError_t launch_fake_quantize(Dtype dtype, const void* x, void* y, const float* lo,
                                 const float* hi, int bits, Layout layout, cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Inputs<T, 1> inputs{{static_cast<const T*>(x)}};
    return map(inputs, static_cast<T*>(y), FakeQuantize{{lo, hi, bits}}, layout, stream);
  });
}

cudaError_t launch_fake_quantize_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                          const float* lo, const float* hi, int bits, Layout layout,
                                          cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Inputs<T, 2> inputs{{static_cast<const T*>(dy), static_cast<const T*>(x)}};
    return map(inputs, static_cast<T*>(dx), ClipGradient{{lo, hi, bits}}, layout, stream);
  });
}

int64_t fake_quantize_learned_workspace(Dtype dtype, Layout layout) {
  return sums_workspace(dtype, layout, LearnedGradient::kSums);
}

cudaError_t launch_fake_quantize_learned_backward(Dtype dtype, const void* dy, const void* x,
                                                  void* dx, float* dlo, float* dhi, const float* lo,
                                                  const float* hi, int bits, Layout layout,
                                                  double* workspace, cudaStream_t stream) {
  const double levels = static_cast<double>((1 << bits) - 1);
  const double elements = static_cast<double>(layout.outer * layout.inner);
  const LearnedRangeGradient finish{dlo, dhi, levels, 1 / std::sqrt(elements * levels)};
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Tensors<T, LearnedGradient> tensors{{static_cast<const T*>(dy), static_cast<const T*>(x)},
                                              {static_cast<T*>(dx)}};
    return map_and_sum(tensors, LearnedGradient{{lo, hi, bits}}, layout, workspace, finish, stream);
  });
}

}  // namespace gdfq::cuda
