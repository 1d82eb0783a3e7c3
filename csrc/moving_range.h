// A quantizer's range that follows the minima and maxima of batches.
#pragma once

#include <cmath>
#include <cstdint>

#include "quantizer.h"

namespace gdfq {

// One number each. zero_in_range: lo and hi, not their averages, are moved to contain 0.
struct MovingRange {
  float* average_lo;
  float* average_hi;
  float* lo;
  float* hi;
  int64_t* num_batches_tracked;
  bool zero_in_range;
};

// average <- momentum * average + (1 - momentum) * batch,  bound = average / correction
GDFQ_INLINE void move_bound(float batch, float past, float present, double correction,
                            float* average, float* bound) {
  const float moved = add_rn(mul_rn(*average, past), mul_rn(present, batch));
  *average = moved;
  *bound = static_cast<float>(moved / correction);
}

// lo, hi: the batch's minimum and maximum.
GDFQ_INLINE void move_range(const MovingRange& range, float lo, float hi, double momentum) {
  const int64_t t = ++*range.num_batches_tracked;
  const double correction = 1 - pow(momentum, static_cast<double>(t));
  const float past = static_cast<float>(momentum), present = static_cast<float>(1 - momentum);
  move_bound(lo, past, present, correction, range.average_lo, range.lo);
  move_bound(hi, past, present, correction, range.average_hi, range.hi);
  if (range.zero_in_range) contain_zero(*range.lo, *range.hi);
}

}  // namespace gdfq
