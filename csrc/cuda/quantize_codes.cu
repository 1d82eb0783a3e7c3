#include "quantize_codes.h"

#include "quantize_codes.cuh"

namespace gdfq::cuda {

cudaError_t launch_grids(const float* lo, const float* hi, float* inv_scale, float* zero, int bits,
                         int64_t ranges, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divide_up(ranges, kThreads)));
  return launch(quantizer_grids, grid, dim3(kThreads), 0, stream, lo, hi, inv_scale, zero, bits,
                ranges);
}

cudaError_t launch_quantize_codes(Dtype dtype, const void* x, int8_t* codes, const float* inv_scale,
                                  const float* zero, int bits, Layout layout, cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const int64_t numel = layout.outer * layout.channels * layout.inner;
    const dim3 grid(static_cast<unsigned>(divide_up(numel, kThreads * kCodes)));
    return launch(quantize_codes_flat<T>, grid, dim3(kThreads), 0, stream, static_cast<const T*>(x),
                  codes, inv_scale, zero, bits, layout, numel);
  });
}

}  // namespace gdfq::cuda
