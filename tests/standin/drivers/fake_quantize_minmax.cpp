#include "../../../csrc/cuda/fake_quantize_minmax.h"

using namespace gdfq;

extern "C" int fake_quantize_minmax(int64_t dtype, const void* w, void* y, float* lo, float* hi,
                                    int64_t bits, int64_t zero_in_range, int64_t rows, int64_t length) {
  return cuda::launch_fake_quantize_minmax(static_cast<cuda::Dtype>(dtype), w, y, lo, hi, static_cast<int>(bits),
                                           zero_in_range != 0, rows, length, nullptr);
}
