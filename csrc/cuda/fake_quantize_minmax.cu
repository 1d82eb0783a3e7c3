#include "fake_quantize_minmax.h"

#include "fake_quantize_minmax.cuh"

namespace gdfq::cuda {

cudaError_t launch_fake_quantize_minmax(Dtype dtype, const void* w, void* y, float* lo, float* hi,
                                        int bits, bool zero_in_range, int64_t rows, int64_t length,
                                        cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const bool always_aligned =
        misalignment(static_cast<const T*>(w)) == 0 && length % kVector<T> == 0;
    const int64_t slots = slots_of<T>(length, always_aligned);
    const int64_t bytes = slots * 16;
    unsigned threads = 32;
    while (threads < kRowThreads && threads < slots) threads *= 2;
    const dim3 grid(static_cast<unsigned>(rows)), block(threads);
    const T* in = static_cast<const T*>(w);
    T* out = static_cast<T*>(y);
    if (bytes <= kRowBytesOnChip)
      return launch(quantize_minmax_rows<T, true>, grid, block, static_cast<size_t>(bytes), stream,
                    in, out, lo, hi, bits, zero_in_range, length);
    return launch(quantize_minmax_rows<T, false>, grid, block, 0, stream, in, out, lo, hi, bits,
                  zero_in_range, length);
  });
}

}  // namespace gdfq::cuda
