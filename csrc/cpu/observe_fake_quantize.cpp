// observe_fake_quantize: the batch's minimum and maximum move an average of them,
//   average <- momentum * average + (1 - momentum) * batch,   t <- t + 1
//   lo, hi   = average / (1 - momentum^t)
// and the batch is quantized over the moved range. An empty batch moves nothing.
//
// Bytes: x is read twice, for no element can be quantized before the last one is seen, and y is
// written once. Minimum and maximum are the same in any order, so the result does not depend on
// the number of threads.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "channels.h"
#include "fake_quantize.h"
#include "layout.h"
#include "minmax.h"

namespace gdfq::cpu {
namespace {

MinMax minmax_of(const at::Tensor& input) {
  const Layout layout{1, 1, input.numel()};
  const Segments segments = segments_of(layout);
  std::vector<MinMax> partial(segments.count);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "observe_fake_quantize", [&] {
        const scalar_t* in = input.const_data_ptr<scalar_t>();
        at::parallel_for(0, segments.count, 1, [&](int64_t from, int64_t to) {
          for (int64_t s = from; s < to; ++s) {
            const int64_t begin = s * segments.length;
            partial[s] = minmax(in + begin, std::min(segments.length, input.numel() - begin));
          }
        });
      });
  MinMax whole = partial[0];
  for (const MinMax& part : partial) {
    if (std::isnan(part.low)) return part;
    whole.low = std::min(whole.low, part.low);
    whole.high = std::max(whole.high, part.high);
  }
  return whole;
}

float& scalar(const at::Tensor& t, const char* name) {
  TORCH_CHECK(t.numel() == 1 && t.scalar_type() == at::kFloat, name,
              " must be one float32 number, got ", t.scalar_type(), " of shape ", t.sizes());
  return *t.mutable_data_ptr<float>();
}

at::Tensor observe_fake_quantize(const at::Tensor& x, at::Tensor average_lo, at::Tensor average_hi,
                                 at::Tensor lo, at::Tensor hi, at::Tensor num_batches_tracked,
                                 int64_t bits, double momentum, c10::string_view ste) {
  TORCH_CHECK(num_batches_tracked.numel() == 1 && num_batches_tracked.scalar_type() == at::kLong,
              "num_batches_tracked must be one int64 number, got ",
              num_batches_tracked.scalar_type(), " of shape ", num_batches_tracked.sizes());
  float& average_low = scalar(average_lo, "average_lo");
  float& average_high = scalar(average_hi, "average_hi");
  float& low = scalar(lo, "lo");
  float& high = scalar(hi, "hi");
  const at::Tensor input = dense(x);
  if (input.numel() > 0) {
    const MinMax batch = minmax_of(input);
    const int64_t t = ++*num_batches_tracked.mutable_data_ptr<int64_t>();
    const float past = static_cast<float>(momentum), present = static_cast<float>(1 - momentum);
    average_low = average_low * past + present * batch.low;
    average_high = average_high * past + present * batch.high;
    const double correction = 1 - std::pow(momentum, static_cast<double>(t));
    low = static_cast<float>(average_low / correction);
    high = static_cast<float>(average_high / correction);
  }
  return fake_quantize(input, lo, hi, bits, std::nullopt, ste);
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("observe_fake_quantize", observe_fake_quantize); }

}  // namespace gdfq::cpu
