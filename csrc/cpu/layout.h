// The CPU's loops over a dense tensor around one axis.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../dense.h"

namespace gdfq::cpu {

// The types that kernels are compiled for; float64 is narrowed() first.
#define GDFQ_DISPATCH(TYPE, NAME, ...)                                           \
  AT_DISPATCH_SWITCH(TYPE, NAME,                                                 \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE( \
                         at::kHalf, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

// The minimum of elements per thread: below it, starting a thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Short runs of one channel (channels_last, small kernels) are walked across channels, with
// constants that repeat every channels * inner elements.
constexpr int64_t kShortRun = 64;

inline bool has_short_runs(const Layout& layout) {
  return layout.inner < kShortRun && layout.channels > 1;
}

// From element begin to end, calls span(begin, end, channel) for each run of one channel, or
// periodic(begin, end) for stretches across channels.
template <typename Span, typename Periodic>
void for_each_run_of(const Layout& layout, int64_t begin, int64_t end, const Span& span,
                     const Periodic& periodic) {
  if (has_short_runs(layout)) {
    periodic(begin, end);
    return;
  }
  while (begin < end) {
    const int64_t run = begin / layout.inner;
    const int64_t stop = std::min(end, (run + 1) * layout.inner);
    span(begin, stop, run % layout.channels);
    begin = stop;
  }
}

// The same over all elements, by many threads.
template <typename Span, typename Periodic>
void for_each_run(const Layout& layout, const Span& span, const Periodic& periodic) {
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    for_each_run_of(layout, begin, end, span, periodic);
  });
}

// Per-channel constants spread over one period, with 16 more entries so that a vector may start
// at any position of the period.
inline std::vector<float> spread(const std::vector<float>& per_channel, int64_t inner) {
  const int64_t period = static_cast<int64_t>(per_channel.size()) * inner;
  std::vector<float> table(period + 16);
  for (size_t c = 0; c < per_channel.size(); ++c)
    std::fill_n(table.begin() + static_cast<int64_t>(c) * inner, inner, per_channel[c]);
  for (int64_t i = period; i < period + 16; ++i) table[i] = table[i - period];
  return table;
}

}  // namespace gdfq::cpu
