// The range of a quantizer that batches move.
#pragma once

#include <cstdint>

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

}  // namespace gdfq
