// quantize_codes on the GPU: the integer code = clamp(round(inv_scale * x - zero)) behind
// fake_quantize, with the inv_scale and zero point that turn it back into (code + zero) /
// inv_scale.
//
// One launch computes inv_scale and zero of each range, a thread each; then a thread takes 16
// elements and writes 16 bytes, all memory in order. Bytes per element: s + 1. Deterministic,
// because every element is computed alone. NaN has no code and gets the lower bound.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "../quantizer.h"
#include "elementwise.cuh"
#include "launch.cuh"
#include "quantize_codes.h"
#include "vector.cuh"

namespace gdfq::cuda {

constexpr int kCodes = 16;

namespace {

__global__ void __launch_bounds__(kThreads)
    quantizer_grids(const float* __restrict__ lo, const float* __restrict__ hi,
                    float* __restrict__ inv_scale, float* __restrict__ zero, int bits,
                    int64_t ranges) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= ranges) return;
  const Grid grid = make_grid(lo[c], hi[c], bits);
  inv_scale[c] = grid.inv_scale;
  zero[c] = grid.zero;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_codes_flat(const T* __restrict__ x, int8_t* __restrict__ codes,
                        const float* __restrict__ inv_scale, const float* __restrict__ zero,
                        int bits, Layout layout, int64_t numel) {
  constexpr int n = kVector<T>;
  const CodeBounds bounds = code_bounds(bits);
  const bool aligned = misalignment(x) == 0;
  const auto channel_of = [&](int64_t run) { return remainder_of(run, layout.channels); };
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCodes;
  if (first >= numel) return;
  const int64_t run = quotient(first, layout.inner);
  if (first + kCodes > numel || first + kCodes > (run + 1) * layout.inner) {
    const int64_t end = first + kCodes < numel ? first + kCodes : numel;
#pragma unroll 1
    for (int64_t i = first; i < end; ++i) {
      const int64_t c = channel_of(quotient(i, layout.inner));
      codes[i] = static_cast<int8_t>(
          code_of(to_float(x[i]), __ldg(inv_scale + c), __ldg(zero + c), bounds));
    }
    return;
  }
  const int64_t c = channel_of(run);
  const float s = __ldg(inv_scale + c), z = __ldg(zero + c);
  unsigned words[kCodes / 4];
  float v[kCodes / n][n];
#pragma unroll
  for (int k = 0; k < kCodes / n; ++k) load<n>(x + first + k * n, aligned, v[k]);
#pragma unroll
  for (int w = 0; w < kCodes / 4; ++w) {
    words[w] = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int i = 4 * w + b;
      words[w] |= (static_cast<unsigned>(code_of(v[i / n][i % n], s, z, bounds)) & 0xffu) << 8 * b;
    }
  }
  __stwb(reinterpret_cast<uint4*>(codes + first),
         make_uint4(words[0], words[1], words[2], words[3]));
}

}  // namespace
}  // namespace gdfq::cuda
