// The range of a quantizer that batches move.
#pragma once

#include <cstdint>

namespace gdfq {

// One number each.
struct MovingRange {
  float* average_lo;
  float* average_hi;
  float* lo;
  float* hi;
  int64_t* num_batches_tracked;
};

}  // namespace gdfq
