// Operators with per-channel constants and per-channel sums along dimension 1.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "../batch_norm.h"
#include "layout.h"

namespace gdfq::cpu {

inline std::vector<float> values(const at::Tensor& t) {
  const at::Tensor flat = floats(t);
  const float* p = flat.const_data_ptr<float>();
  return {p, p + flat.numel()};
}

inline std::vector<float> factors(const at::Tensor& var, const Optional& weight, double eps) {
  std::vector<float> factor = values(var);
  const std::vector<float> gamma = weight ? values(*weight) : std::vector<float>(factor.size(), 1);
  for (size_t c = 0; c < factor.size(); ++c) factor[c] = factor_of(gamma[c], factor[c], eps);
  return factor;
}

// Position of the next vector in a periodic table of constants.
inline int64_t next_phase(int64_t phase, int64_t period) {
  phase += 16;
  if (phase >= period) phase -= period;  // a division only where a period is shorter than 16
  return phase < period ? phase : phase % period;
}

// ---- sums per channel ----

// Memory in stretches fixed by the shape alone, at most 64 and of at least kGrain elements, so
// that partial sums, merged in order, do not depend on the number of threads.
struct Segments {
  int64_t length;
  int64_t count;
};

inline Segments segments_of(const Layout& layout) {
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  int64_t length = std::max(kGrain, (numel + 63) / 64);
  if (layout.inner == 1)
    length = (length + layout.channels - 1) / layout.channels * layout.channels;
  return {length, (numel + length - 1) / length};
}

// Calls run(segment, begin, end, channel) for each run of one channel, or, where channels are
// last, rows(segment, first_row, rows).
template <typename Run, typename Rows>
void for_each_segment(const Layout& layout, const Run& run, const Rows& rows) {
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  const Segments segments = segments_of(layout);
  at::parallel_for(0, segments.count, 1, [&](int64_t from, int64_t to) {
    for (int64_t segment = from; segment < to; ++segment) {
      int64_t begin = segment * segments.length;
      const int64_t end = std::min(numel, begin + segments.length);
      if (layout.inner == 1) {
        rows(segment, begin / layout.channels, (end - begin) / layout.channels);
        continue;
      }
      while (begin < end) {
        const int64_t index = begin / layout.inner;
        const int64_t stop = std::min(end, (index + 1) * layout.inner);
        run(segment, begin, stop, index % layout.channels);
        begin = stop;
      }
    }
  });
}

// A run of one channel is summed in float32 over this many elements, then in float64.
constexpr int64_t kChunk = 1024;

// Rows of all channels are summed in float32 over this many, then in float64.
inline int64_t rows_per_chunk(int64_t channels) { return std::max<int64_t>(16, 4096 / channels); }

}  // namespace gdfq::cpu
