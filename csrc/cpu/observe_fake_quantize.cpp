// observe_fake_quantize: the batch's minimum and maximum move an average of them,
//   average <- momentum * average + (1 - momentum) * batch,   t <- t + 1
//   lo, hi   = average / (1 - momentum^t)
// and the batch is quantized over the moved range. An empty batch moves nothing.
//
// Bytes: x is read twice, because the range depends on every element, and y is written once.
// Minimum and maximum are the same in any order, so the result does not depend on the number of
// threads.

#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "channels.h"
#include "layout.h"
#include "minmax.h"
#include "operators.h"

namespace gdfq::cpu {
namespace {

MinMax minmax_of(const at::Tensor& input) {
  const Layout layout{1, 1, input.numel()};
  const Segments segments = segments_of(layout);
  std::vector<MinMax> partial(segments.count);
  GDFQ_DISPATCH(input.scalar_type(), "observe_fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    at::parallel_for(0, segments.count, 1, [&](int64_t from, int64_t to) {
      for (int64_t s = from; s < to; ++s) {
        const int64_t begin = s * segments.length;
        partial[s] = minmax(in + begin, std::min(segments.length, input.numel() - begin));
      }
    });
  });
  return merge(partial);
}

at::Tensor observe_fake_quantize(const at::Tensor& x, at::Tensor average_lo, at::Tensor average_hi,
                                 at::Tensor lo, at::Tensor hi, at::Tensor num_batches_tracked,
                                 int64_t bits, double momentum, c10::string_view ste,
                                 bool zero_in_range) {
  check_bits(bits);
  check_ste(ste);
  const MovingRange range =
      moving_range(average_lo, average_hi, lo, hi, num_batches_tracked, zero_in_range);
  const at::Tensor input = dense(narrowed(x));
  if (input.numel() > 0) {
    const MinMax batch = minmax_of(input);
    move_range(range, batch.lo, batch.hi, momentum);
  }
  return fake_quantize(input, lo, hi, bits, std::nullopt, ste).to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("observe_fake_quantize", observe_fake_quantize); }

}  // namespace gdfq::cpu
