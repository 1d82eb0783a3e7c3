// The layout of a dense tensor around one axis: [outer][channels][inner].
#pragma once

#include <cstdint>

namespace gdfq {

// One channel without an axis.
struct Layout {
  int64_t outer;
  int64_t channels;
  int64_t inner;
};

}  // namespace gdfq
