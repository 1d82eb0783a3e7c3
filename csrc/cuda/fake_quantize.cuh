// fake_quantize on the GPU: y = (clamp(round(scale * x - zero)) + zero) / scale with one range per
// tensor or per channel, and the clip estimator's gradient, dx = dy where the code needs no clamp.
//
// Threads map to memory as elementwise.cuh says. Bytes per element: 2s forward, 3s backward, s the
// size of the dtype. Deterministic, because every element is computed alone. Scale and zero are
// computed by each thread from lo and hi on the device, so nothing waits for the host.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../quantizer.h"
#include "elementwise.cuh"

namespace gdfq::cuda {

struct ChannelRange {
  const float* lo;  // [channels]
  const float* hi;  // [channels]
  int bits;

  __device__ __forceinline__ Grid grid(int64_t channel) const {
    return make_grid(__ldg(lo + channel), __ldg(hi + channel), bits);
  }
};

struct FakeQuantize {
  using Constants = Grid;
  ChannelRange range;

  __device__ __forceinline__ Grid constants(int64_t channel) const { return range.grid(channel); }

  __device__ __forceinline__ float operator()(const Grid& grid, const float (&x)[1]) const {
    const CodeBounds bounds = code_bounds(range.bits);
    return quantize_value(x[0], grid.scale, grid.zero, bounds.lowest, bounds.highest, kRoundMagic);
  }
};

struct ClipGradient {
  using Constants = Grid;
  ChannelRange range;

  __device__ __forceinline__ Grid constants(int64_t channel) const { return range.grid(channel); }

  // The inputs are dy and x.
  __device__ __forceinline__ float operator()(const Grid& grid, const float (&v)[2]) const {
    const CodeBounds bounds = code_bounds(range.bits);
    return clip_value_gradient(v[0], v[1], grid.scale, grid.zero, bounds.lowest, bounds.highest,
                               0.5f, 0.0f);
  }
};

}  // namespace gdfq::cuda
