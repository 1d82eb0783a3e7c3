// fake_quantize_minmax: each entry of an axis is quantized over its own minimum and maximum.
//
// Bytes: w is read once from memory and once more from cache, y is written once. A thread takes
// whole rows, so the result does not depend on how many threads there are.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "../minmax.h"
#include "layout.h"
#include "minmax.h"
#include "operators.h"

namespace gdfq::cpu {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_minmax(const at::Tensor& w,
                                                                    int64_t bits,
                                                                    std::optional<int64_t> axis,
                                                                    c10::string_view ste,
                                                                    bool zero_in_range) {
  check_bits(bits);
  check_ste(ste);
  const at::Tensor input = dense(narrowed(w));
  const auto float32 = input.options().dtype(at::kFloat);
  const Layout layout = input.numel() == 0 ? Layout{1, 1, 0} : layout_of(input, axis);
  const bool rows = axis.has_value() && layout.outer == 1 && input.numel() > 0;
  if (!rows) {
    // One range for everything, or an axis whose entries are scattered: two operators.
    const auto [lo, hi] = minmax_along(input, axis, zero_in_range);
    return {fake_quantize(input, lo, hi, bits, axis, ste).to(w.scalar_type()), lo, hi};
  }

  const int64_t channels = input.size(*axis);
  const int64_t inner = input.numel() / channels;
  at::Tensor lo = at::empty({channels}, float32), hi = at::empty({channels}, float32);
  at::Tensor output = at::empty_like(input);
  GDFQ_DISPATCH(input.scalar_type(), "fake_quantize_minmax", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    float* lo_out = lo.mutable_data_ptr<float>();
    float* hi_out = hi.mutable_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, kGrain / inner);
    at::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        MinMax range = minmax(in + c * inner, inner);
        if (zero_in_range) contain_zero(range.lo, range.hi);
        lo_out[c] = range.lo;
        hi_out[c] = range.hi;
        quantize_over(in + c * inner, out + c * inner, inner, range, static_cast<int>(bits));
      }
    });
  });
  return {output.to(w.scalar_type()), lo, hi};
}

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("fake_quantize_minmax", fake_quantize_minmax); }

}  // namespace gdfq::cpu
