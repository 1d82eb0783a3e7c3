// Minimum and maximum of a run of memory, and the run quantized over them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"

namespace gdfq::cpu {

struct MinMax {
  float lo, hi;  // both NaN if any value is NaN
};

inline MinMax merge(const std::vector<MinMax>& parts) {
  MinMax whole = parts[0];
  for (const MinMax& part : parts) {
    if (std::isnan(part.lo)) return part;
    whole.lo = std::min(whole.lo, part.lo);
    whole.hi = std::max(whole.hi, part.hi);
  }
  return whole;
}

// Minimum and maximum in each lane.
struct MinMaxLanes {
  f32x16 lo = splat(std::numeric_limits<float>::infinity());
  f32x16 hi = splat(-std::numeric_limits<float>::infinity());
  i32x16 nan = {};

  GDFQ_INLINE void extend(f32x16 v) {
    lo = v < lo ? v : lo;
    hi = v > hi ? v : hi;
    nan |= is_nan(v);
  }

  GDFQ_INLINE MinMax merged() const {
    MinMax result{lo[0], hi[0]};
    int any_nan = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      result.lo = lo[lane] < result.lo ? lo[lane] : result.lo;
      result.hi = hi[lane] > result.hi ? hi[lane] : result.hi;
      any_nan |= nan[lane];
    }
    if (any_nan) result.lo = result.hi = std::numeric_limits<float>::quiet_NaN();
    return result;
  }
};

namespace {  // multiversioned functions must not be shared between translation units

template <typename scalar_t>
GDFQ_MULTIVERSION MinMax minmax(const scalar_t* w, int64_t n) {
  // Missing lanes of the last vector repeat its first element.
  const int64_t whole = n / kLanes * kLanes;
  const f32x16 first = splat(static_cast<float>(w[whole < n ? whole : 0]));
  const f32x16 last =
      whole < n ? select(lane_mask(n - whole), load(w + whole, n - whole), first) : load(w);
  MinMaxLanes range{last, last, is_nan(last)};
  for (int64_t i = 0; i < whole; i += kLanes) range.extend(load(w + i));
  return range.merged();
}

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_over(const scalar_t* w, scalar_t* y, int64_t n, MinMax range,
                                     int bits) {
  const Grid grid = make_grid(range.lo, range.hi, bits);
  const CodeBounds bounds = code_bounds(bits);
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    store(y + i, quantize_value(load(w + i, lanes), inv_scale, zero, code_lo, code_hi, magic),
          lanes);
  }
}

}  // namespace
}  // namespace gdfq::cpu
