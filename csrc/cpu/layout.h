// How a dense tensor lies in memory around one axis, and the loops over it.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace gdfq::cpu {

// Elements a thread should get at least: below it, starting a thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Memory read as [outer][channels][inner]; one channel when there is no axis.
struct Layout {
  int64_t outer;
  int64_t channels;
  int64_t inner;
};

// `like` decides shape and strides; a tensor that already has them is returned as it is.
inline at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides() && tensor.is_non_overlapping_and_dense()) return tensor;
  return at::empty_like(like, like.options().dtype(tensor.scalar_type())).copy_(tensor);
}

inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

inline Layout layout_of(const at::Tensor& tensor, std::optional<int64_t> axis) {
  if (!axis.has_value() || tensor.size(*axis) == 1) return {1, 1, tensor.numel()};
  const int64_t channels = tensor.size(*axis);
  const int64_t inner = tensor.stride(*axis);
  return {tensor.numel() / (channels * inner), channels, inner};
}

// Short runs of one channel (channels_last, small kernels) are walked across channels, with
// constants that repeat every channels * inner elements.
constexpr int64_t kShortRun = 64;

inline bool has_short_runs(const Layout& layout) {
  return layout.inner < kShortRun && layout.channels > 1;
}

// Calls span(begin, end, channel) for each run of one channel, or periodic(begin, end) for
// stretches across channels.
template <typename Span, typename Periodic>
void for_each_run(const Layout& layout, const Span& span, const Periodic& periodic) {
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
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
