#include "../../../csrc/cuda/fake_quantize.h"

using namespace gdfq;

extern "C" int fake_quantize(int64_t dtype, const void* x, void* y, const float* lo, const float* hi,
                             int64_t bits, int64_t outer, int64_t channels, int64_t inner) {
  return cuda::launch_fake_quantize(static_cast<cuda::Dtype>(dtype), x, y, lo, hi, static_cast<int>(bits),
                                    {outer, channels, inner}, nullptr);
}

extern "C" int fake_quantize_backward(int64_t dtype, const void* dy, const void* x, void* dx,
                                      const float* lo, const float* hi, int64_t bits, int64_t outer,
                                      int64_t channels, int64_t inner) {
  return cuda::launch_fake_quantize_backward(static_cast<cuda::Dtype>(dtype), dy, x, dx, lo, hi,
                                             static_cast<int>(bits), {outer, channels, inner}, nullptr);
}
