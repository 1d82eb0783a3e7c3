// Minimum and maximum of a batch from those of its parts, and the range that it moves.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../moving_range.h"
#include "../quantizer.h"
#include "minmax.h"

namespace gdfq::cpu {

inline MinMax merge(const std::vector<MinMax>& parts) {
  MinMax whole = parts[0];
  for (const MinMax& part : parts) {
    if (std::isnan(part.low)) return part;
    whole.low = std::min(whole.low, part.low);
    whole.high = std::max(whole.high, part.high);
  }
  return whole;
}

inline void move_range(const MovingRange& range, MinMax batch, double momentum) {
  const int64_t t = ++*range.num_batches_tracked;
  const float past = static_cast<float>(momentum), present = static_cast<float>(1 - momentum);
  *range.average_lo = *range.average_lo * past + present * batch.low;
  *range.average_hi = *range.average_hi * past + present * batch.high;
  const double correction = 1 - std::pow(momentum, static_cast<double>(t));
  *range.lo = static_cast<float>(*range.average_lo / correction);
  *range.hi = static_cast<float>(*range.average_hi / correction);
  if (range.zero_in_range) contain_zero(*range.lo, *range.hi);
}

}  // namespace gdfq::cpu
