// Launching from the host: one call for nvcc and for the CPU stand-in of the tests, which brings
// its own cuda_runtime.h with the same `launch`.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "dtype.h"

namespace gdfq::cuda {

#if defined(__CUDACC__)
// Declares `name`, the launch's dynamic shared memory as an array of `type`, 16-byte aligned.
#define GDFQ_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char gdfq_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(gdfq_dynamic_shared)

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared,
                   cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, block, dynamic_shared, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}
#else
using standin::launch;
#endif

// Calls body with a value of the dtype's type.
template <typename Body>
cudaError_t with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32:
      return body(float{});
    case Dtype::float16:
      return body(__half{});
    default:
      return body(__nv_bfloat16{});
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace gdfq::cuda
