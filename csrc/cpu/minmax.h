// Minimum and maximum of a run of memory, and the run quantized over them.
#pragma once

#include <limits>

#include "simd.h"

namespace gdfq::cpu {

struct MinMax {
  float low, high;  // both NaN where there is a NaN
};

namespace {  // multiversioned functions must not be shared between translation units

template <typename scalar_t>
GDFQ_MULTIVERSION MinMax minmax(const scalar_t* w, int64_t n) {
  // Missing lanes of the last vector repeat its first element.
  const int64_t whole = n / kLanes * kLanes;
  const f32x16 first = splat(static_cast<float>(w[whole < n ? whole : 0]));
  const f32x16 last =
      whole < n ? select(lane_mask(n - whole), load(w + whole, n - whole), first) : load(w);
  f32x16 low = last, high = last;
  i32x16 nan = is_nan(last);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const f32x16 v = load(w + i);
    low = v < low ? v : low;
    high = v > high ? v : high;
    nan |= is_nan(v);
  }
  MinMax result{low[0], high[0]};
  int any_nan = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    result.low = low[lane] < result.low ? low[lane] : result.low;
    result.high = high[lane] > result.high ? high[lane] : result.high;
    any_nan |= nan[lane];
  }
  if (any_nan) result.low = result.high = std::numeric_limits<float>::quiet_NaN();
  return result;
}

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_over(const scalar_t* w, scalar_t* y, int64_t n, MinMax range,
                                     int bits) {
  const Grid grid = make_grid(range.low, range.high, bits);
  const CodeBounds bounds = code_bounds(bits);
  const f32x16 scale = splat(grid.scale), zero = splat(grid.zero);
  const f32x16 lowest = splat(bounds.lowest), highest = splat(bounds.highest);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    store(y + i, quantize_value(load(w + i, lanes), scale, zero, lowest, highest, magic), lanes);
  }
}

}  // namespace
}  // namespace gdfq::cpu
