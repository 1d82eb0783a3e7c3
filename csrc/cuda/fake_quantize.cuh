// fake_quantize on the GPU: y = (clamp(round(inv_scale * x - zero)) + zero) / inv_scale with one
// range per tensor or per channel; the clip estimator's gradient, dx = dy where the code needs no
// clamp; and the learned range's, dx the same and, with v = inv_scale * x - zero, e = (round(v) -
// v) / levels,
//   dlo = f * sum(dy below, -dy * e inside),   dhi = f * sum(dy above, dy * e inside),
// f = 1 / sqrt(elements of the range * levels).
//
// Threads map to memory as elementwise.cuh says, for the learned range as elementwise_sums.cuh
// does, which adds partial sums in a fixed order. Bytes per element: 2s forward, 3s backward, s the
// size of the dtype. Deterministic: otherwise every element is computed alone. Scale and zero are
// computed by each thread from lo and hi on the device, so nothing waits for the host.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../quantizer.h"
#include "elementwise.cuh"
#include "elementwise_sums.cuh"

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
    return quantize_value(x[0], grid.inv_scale, grid.zero, bounds.lo, bounds.hi, kRoundMagic);
  }
};

struct ClipGradient {
  using Constants = Grid;
  ChannelRange range;

  __device__ __forceinline__ Grid constants(int64_t channel) const { return range.grid(channel); }

  // The inputs are dy and x.
  __device__ __forceinline__ float operator()(const Grid& grid, const float (&v)[2]) const {
    return clip_gradient(v[0], v[1], grid.inv_scale, grid.zero, code_bounds(range.bits));
  }
};

struct LearnedGradient {
  static constexpr int kInputs = 2, kOutputs = 1, kSums = 3;
  using Constants = Grid;
  ChannelRange range;

  __device__ __forceinline__ Grid constants(int64_t channel) const { return range.grid(channel); }

  // The inputs are dy and x, the terms dy * (round(v) - v) inside, dy below and dy above. A NaN is
  // nowhere.
  __device__ __forceinline__ void operator()(const Grid& grid, const float (&in)[kInputs],
                                             float (&out)[kOutputs], float (&terms)[kSums]) const {
    const CodeBounds bounds = code_bounds(range.bits);
    const float v = position(in[1], grid.inv_scale, grid.zero);
    const float code = round_half_even(clamp_keep_nan(v, bounds.lo, bounds.hi), kRoundMagic);
    const bool below = v < bounds.lo - 0.5f;
    const bool inside = !below && v < bounds.hi + 0.5f;
    out[0] = inside ? in[0] : 0.0f;
    terms[0] = inside ? mul_rn(in[0], sub_rn(code, v)) : 0.0f;
    terms[1] = below ? in[0] : 0.0f;
    terms[2] = !below && v >= bounds.hi + 0.5f ? in[0] : 0.0f;
  }
};

struct LearnedRangeGradient {
  static constexpr int kSums = LearnedGradient::kSums;
  float* dlo;  // [channels]
  float* dhi;  // [channels]
  double levels;
  double factor;

  __device__ __forceinline__ void operator()(int64_t c, const double (&sums)[kSums]) const {
    const double error = sums[0] / levels;
    dlo[c] = static_cast<float>(factor * (sums[1] - error));
    dhi[c] = static_cast<float>(factor * (sums[2] + error));
  }
};

}  // namespace gdfq::cuda
