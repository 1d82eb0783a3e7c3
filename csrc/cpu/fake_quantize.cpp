// fake_quantize: y = (clamp(round(inv_scale * x - zero)) + zero) / inv_scale, one range per tensor
// or per entry of an axis, and the gradients of the clip and the learned estimator. The latter's
// are, with v = inv_scale * x - zero, per range of n elements:
//   dhi = (sum of dy above + sum of dy * (round(v) - v) / levels inside) / sqrt(n * levels)
//   dlo = (sum of dy below - sum of dy * (round(v) - v) / levels inside) / sqrt(n * levels)
//
// Bytes: forward reads x and writes y once; the gradients read x and dy and write dx once, sums
// included. Threads take contiguous stretches of memory; every element is independent, and sums
// are taken over segments cut by shape alone and merged in order, so the result does not depend on
// how many threads there are.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "channels.h"
#include "grids.h"
#include "layout.h"
#include "operators.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_span(const scalar_t* x, scalar_t* y, int64_t n, Grid grid,
                                     CodeBounds bounds) {
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  const f32x16 magic = splat(kRoundMagic);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(y + i, quantize_value(load(x + i), inv_scale, zero, code_lo, code_hi, magic));
  if (i < n)
    store(y + i, quantize_value(load(x + i, n - i), inv_scale, zero, code_lo, code_hi, magic),
          n - i);
}

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_periodic(const scalar_t* x, scalar_t* y, int64_t n, int64_t phase,
                                         int64_t period, const float* inv_scale, const float* zero,
                                         CodeBounds bounds) {
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = quantize_value(load(x + i, lanes), load(inv_scale + phase), load(zero + phase),
                                    code_lo, code_hi, magic);
    store(y + i, v, lanes);
    phase = next_phase(phase, period);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void gradient_span(const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n,
                                     Grid grid, CodeBounds bounds) {
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v =
        clip_gradient(load(dy + i, lanes), load(x + i, lanes), inv_scale, zero, code_lo, code_hi);
    store(dx + i, v, lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void gradient_periodic(const scalar_t* dy, const scalar_t* x, scalar_t* dx,
                                         int64_t n, int64_t phase, int64_t period,
                                         const float* inv_scale, const float* zero,
                                         CodeBounds bounds) {
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = clip_gradient(load(dy + i, lanes), load(x + i, lanes), load(inv_scale + phase),
                                   load(zero + phase), code_lo, code_hi);
    store(dx + i, v, lanes);
    phase = next_phase(phase, period);
  }
}

// ---- learned range ----

// Sums over one range: dy times the rounding error inside, and dy beyond either bound.
struct RangeSums {
  double rounding = 0, below = 0, above = 0;
};

struct RangeTerms {
  f32x16 dx, rounding, below, above;
};

GDFQ_INLINE RangeTerms range_terms(f32x16 dy, f32x16 x, f32x16 inv_scale, f32x16 zero,
                                   f32x16 code_lo, f32x16 code_hi) {
  const f32x16 v = position(x, inv_scale, zero);
  const f32x16 code = round_half_even(clamp_keep_nan(v, code_lo, code_hi), splat(kRoundMagic));
  const i32x16 below = less(v, code_lo - 0.5f);
  const i32x16 inside = ~below & less(v, code_hi + 0.5f);
  const i32x16 above = ~below & ~inside & ~is_nan(v);
  return {keep(inside, dy), keep(inside, dy * (code - v)), keep(below, dy), keep(above, dy)};
}

template <typename scalar_t>
GDFQ_MULTIVERSION void learned_run(const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n,
                                   Grid grid, CodeBounds bounds, RangeSums* sums) {
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t start = 0; start < n; start += kChunk) {
    f32x16 rounding = {}, below = {}, above = {};
    for (int64_t i = start; i < std::min(n, start + kChunk); i += kLanes) {
      const int64_t lanes = std::min(kLanes, n - i);
      const RangeTerms terms =
          range_terms(load(dy + i, lanes), load(x + i, lanes), inv_scale, zero, code_lo, code_hi);
      store(dx + i, terms.dx, lanes);
      rounding += terms.rounding;
      below += terms.below;
      above += terms.above;
    }
    sums->rounding += sum(rounding);
    sums->below += sum(below);
    sums->above += sum(above);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void learned_rows(const scalar_t* dy, const scalar_t* x, scalar_t* dx,
                                    int64_t rows, int64_t channels, const float* inv_scale,
                                    const float* zero, CodeBounds bounds, RangeSums* sums) {
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  const int64_t chunk = rows_per_chunk(channels);
  for (int64_t start = 0; start < rows; start += chunk)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c);
      const f32x16 vinv_scale = load(inv_scale + c), vzero = load(zero + c);
      f32x16 rounding = {}, below = {}, above = {};
      for (int64_t r = start; r < std::min(rows, start + chunk); ++r) {
        const int64_t i = r * channels + c;
        const RangeTerms terms = range_terms(load(dy + i, lanes), load(x + i, lanes), vinv_scale,
                                             vzero, code_lo, code_hi);
        store(dx + i, terms.dx, lanes);
        rounding += terms.rounding;
        below += terms.below;
        above += terms.above;
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        sums[c + lane].rounding += rounding[lane];
        sums[c + lane].below += below[lane];
        sums[c + lane].above += above[lane];
      }
    }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
    int64_t bits, std::optional<int64_t> axis) {
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, axis);
  const at::Tensor input = dense(narrowed(x));
  const auto float32 = lo.options().dtype(at::kFloat);
  at::Tensor dx = at::empty_like(input);
  at::Tensor dlo = at::zeros(lo.sizes(), float32), dhi = at::zeros(hi.sizes(), float32);
  if (input.numel() == 0) return {dx.to(x.scalar_type()), dlo, dhi};
  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t channels = layout.channels;
  const Segments segments = segments_of(layout);
  std::vector<RangeSums> partial(segments.count * channels);
  GDFQ_DISPATCH(input.scalar_type(), "fake_quantize_learned_backward", [&] {
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = dx.mutable_data_ptr<scalar_t>();
    for_each_segment(
        layout,
        [&](int64_t segment, int64_t begin, int64_t end, int64_t c) {
          learned_run(dy + begin, in + begin, out + begin, end - begin, grids.per_channel[c],
                      bounds, &partial[segment * channels + c]);
        },
        [&](int64_t segment, int64_t row, int64_t rows) {
          const int64_t begin = row * channels;
          learned_rows(dy + begin, in + begin, out + begin, rows, channels, grids.inv_scale.data(),
                       grids.zero.data(), bounds, &partial[segment * channels]);
        });
  });
  const double levels = static_cast<double>((1 << bits) - 1);
  const double elements = static_cast<double>(input.numel() / channels);
  const double factor = 1 / std::sqrt(elements * levels);
  for (int64_t c = 0; c < channels; ++c) {
    RangeSums total;
    for (int64_t segment = 0; segment < segments.count; ++segment) {
      const RangeSums& part = partial[segment * channels + c];
      total.rounding += part.rounding;
      total.below += part.below;
      total.above += part.above;
    }
    dlo.mutable_data_ptr<float>()[c] =
        static_cast<float>(factor * (total.below - total.rounding / levels));
    dhi.mutable_data_ptr<float>()[c] =
        static_cast<float>(factor * (total.above + total.rounding / levels));
  }
  return {dx.to(x.scalar_type()), dlo, dhi};
}

}  // namespace

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& lo,
                                  const at::Tensor& hi, int64_t bits, std::optional<int64_t> axis) {
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, axis);
  const at::Tensor input = dense(narrowed(x));
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output.to(x.scalar_type());
  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t period = layout.channels * layout.inner;
  GDFQ_DISPATCH(input.scalar_type(), "fake_quantize_backward", [&] {
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* dx = output.mutable_data_ptr<scalar_t>();
    for_each_run(
        layout,
        [&](int64_t begin, int64_t end, int64_t c) {
          gradient_span(dy + begin, in + begin, dx + begin, end - begin, grids.per_channel[c],
                        bounds);
        },
        [&](int64_t begin, int64_t end) {
          gradient_periodic(dy + begin, in + begin, dx + begin, end - begin, begin % period, period,
                            grids.inv_scale.data(), grids.zero.data(), bounds);
        });
  });
  return output.to(x.scalar_type());
}

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view ste) {
  check_range(lo, hi, bits, x, axis);
  if (ste != "learned") check_ste(ste);
  const at::Tensor input = dense(narrowed(x));
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output.to(x.scalar_type());
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t period = layout.channels * layout.inner;
  GDFQ_DISPATCH(input.scalar_type(), "fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    for_each_run(
        layout,
        [&](int64_t begin, int64_t end, int64_t c) {
          quantize_span(in + begin, out + begin, end - begin, grids.per_channel[c], bounds);
        },
        [&](int64_t begin, int64_t end) {
          quantize_periodic(in + begin, out + begin, end - begin, begin % period, period,
                            grids.inv_scale.data(), grids.zero.data(), bounds);
        });
  });
  return output.to(x.scalar_type());
}

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("fake_quantize", fake_quantize);
  m.impl("fake_quantize_backward", fake_quantize_backward);
  m.impl("fake_quantize_learned_backward", fake_quantize_learned_backward);
}

}  // namespace gdfq::cpu
