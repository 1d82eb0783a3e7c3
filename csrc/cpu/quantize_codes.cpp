// quantize_codes: the integer code = clamp(round(inv_scale * x - zero)) behind fake_quantize, with
// inv_scale and zero, which turn it back into (code + zero) / inv_scale.
//
// Bytes: x is read once and one byte an element written. Threads take contiguous stretches of
// memory; every element is independent, so the result does not depend on how many there are.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "channels.h"
#include "grids.h"
#include "layout.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

typedef int8_t i8x16 __attribute__((vector_size(16)));

GDFQ_INLINE i8x16 to_codes(f32x16 x, f32x16 inv_scale, f32x16 zero, f32x16 code_lo,
                           f32x16 code_hi) {
  const f32x16 code = code_of(x, inv_scale, zero, code_lo, code_hi);
  return __builtin_convertvector(__builtin_convertvector(code, i32x16), i8x16);
}

template <typename scalar_t>
GDFQ_MULTIVERSION void codes_span(const scalar_t* x, int8_t* codes, int64_t n, Grid grid,
                                  CodeBounds bounds) {
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const i8x16 v = to_codes(load(x + i, lanes), inv_scale, zero, code_lo, code_hi);
    std::memcpy(codes + i, &v, lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void codes_periodic(const scalar_t* x, int8_t* codes, int64_t n, int64_t phase,
                                      int64_t period, const float* inv_scale, const float* zero,
                                      CodeBounds bounds) {
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const i8x16 v =
        to_codes(load(x + i, lanes), load(inv_scale + phase), load(zero + phase), code_lo, code_hi);
    std::memcpy(codes + i, &v, lanes);
    phase = next_phase(phase, period);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_codes(const at::Tensor& x,
                                                              const at::Tensor& lo,
                                                              const at::Tensor& hi, int64_t bits,
                                                              std::optional<int64_t> axis) {
  check_range(lo, hi, bits, x, axis);
  const at::Tensor input = dense(narrowed(x));
  at::Tensor codes = at::empty_like(input, input.options().dtype(at::kChar));
  const int64_t ranges = lo.numel();
  const Grids all(lo, hi, bits, Layout{1, ranges, kShortRun});
  at::Tensor inv_scale = at::empty(lo.sizes(), lo.options().dtype(at::kFloat));
  at::Tensor zero = at::empty(lo.sizes(), inv_scale.options());
  for (int64_t c = 0; c < ranges; ++c) {
    inv_scale.mutable_data_ptr<float>()[c] = all.per_channel[c].inv_scale;
    zero.mutable_data_ptr<float>()[c] = all.per_channel[c].zero;
  }
  if (input.numel() == 0) return {codes, inv_scale, zero};
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t period = layout.channels * layout.inner;
  GDFQ_DISPATCH(input.scalar_type(), "quantize_codes", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    int8_t* out = codes.mutable_data_ptr<int8_t>();
    for_each_run(
        layout,
        [&](int64_t begin, int64_t end, int64_t c) {
          codes_span(in + begin, out + begin, end - begin, grids.per_channel[c], bounds);
        },
        [&](int64_t begin, int64_t end) {
          codes_periodic(in + begin, out + begin, end - begin, begin % period, period,
                         grids.inv_scale.data(), grids.zero.data(), bounds);
        });
  });
  return {codes, inv_scale, zero};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("quantize_codes", quantize_codes); }

}  // namespace gdfq::cpu
