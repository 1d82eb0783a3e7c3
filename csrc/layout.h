// How a dense tensor lies in memory around one axis: read as [outer][channels][inner].
#pragma once

#include <cstdint>

namespace gdfq {

// One channel when there is no axis.
struct Layout {
  int64_t outer;
  int64_t channels;
  int64_t inner;
};

}  // namespace gdfq
