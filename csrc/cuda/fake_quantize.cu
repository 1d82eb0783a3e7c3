#include "fake_quantize.h"

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

}  // namespace gdfq::cuda
