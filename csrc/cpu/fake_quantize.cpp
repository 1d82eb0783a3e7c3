// fake_quantize: y = (clamp(round(scale * x - zero)) + zero) / scale, one range per tensor or per
// entry of an axis, and the clip estimator's gradient.
//
// Bytes: forward reads x and writes y once; the gradient reads x and dy and writes dx once.
// Threads take contiguous stretches of memory; every element is independent, so the result does
// not depend on how many there are.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "fake_quantize.h"

#include "layout.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_span(
    const scalar_t* x, scalar_t* y, int64_t n, Grid grid, CodeBounds bounds) {
  const f32x16 scale = splat(grid.scale), zero = splat(grid.zero);
  const f32x16 lowest = splat(bounds.lowest), highest = splat(bounds.highest);
  const f32x16 magic = splat(kRoundMagic);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(y + i, quantize_value(load(x + i), scale, zero, lowest, highest, magic));
  if (i < n)
    store(y + i, quantize_value(load(x + i, n - i), scale, zero, lowest, highest, magic), n - i);
}

template <typename scalar_t>
GDFQ_MULTIVERSION void quantize_periodic(
    const scalar_t* x, scalar_t* y, int64_t n, int64_t phase, int64_t period, const float* scale,
    const float* zero, CodeBounds bounds) {
  const f32x16 lowest = splat(bounds.lowest), highest = splat(bounds.highest);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = quantize_value(
        load(x + i, lanes), load(scale + phase), load(zero + phase), lowest, highest, magic);
    store(y + i, v, lanes);
    phase = (phase + kLanes) % period;
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void gradient_span(
    const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n, Grid grid,
    CodeBounds bounds) {
  const f32x16 scale = splat(grid.scale), zero = splat(grid.zero);
  const f32x16 lowest = splat(bounds.lowest), highest = splat(bounds.highest);
  const f32x16 half = splat(0.5f), none = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = clip_value_gradient(
        load(dy + i, lanes), load(x + i, lanes), scale, zero, lowest, highest, half, none);
    store(dx + i, v, lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void gradient_periodic(
    const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n, int64_t phase,
    int64_t period, const float* scale, const float* zero, CodeBounds bounds) {
  const f32x16 lowest = splat(bounds.lowest), highest = splat(bounds.highest);
  const f32x16 half = splat(0.5f), none = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v =
        clip_value_gradient(load(dy + i, lanes), load(x + i, lanes), load(scale + phase),
                      load(zero + phase), lowest, highest, half, none);
    store(dx + i, v, lanes);
    phase = (phase + kLanes) % period;
  }
}

struct Grids {
  std::vector<Grid> per_channel;
  std::vector<float> scale, zero;  // over one period, where runs are short

  Grids(const at::Tensor& lo, const at::Tensor& hi, int64_t bits, const Layout& layout) {
    const at::Tensor lows = lo.to(at::kFloat).contiguous();
    const at::Tensor highs = hi.to(at::kFloat).contiguous();
    TORCH_CHECK(lows.numel() == highs.numel() && lows.numel() >= layout.channels,
                "lo and hi need ", layout.channels, " entries, got ", lows.numel(), " and ",
                highs.numel());
    TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be 2 to 8, got ", bits);
    std::vector<float> scales, zeros;
    for (int64_t c = 0; c < layout.channels; ++c) {
      const Grid grid = make_grid(lows.const_data_ptr<float>()[c],
                                  highs.const_data_ptr<float>()[c], static_cast<int>(bits));
      per_channel.push_back(grid);
      scales.push_back(grid.scale);
      zeros.push_back(grid.zero);
    }
    if (has_short_runs(layout)) {
      scale = spread(scales, layout.inner);
      zero = spread(zeros, layout.inner);
    }
  }
};

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& lo, const at::Tensor& hi, int64_t bits,
                                  std::optional<int64_t> axis) {
  const at::Tensor input = dense(x);
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output;
  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t period = layout.channels * layout.inner;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "fake_quantize_backward", [&] {
        const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
        const scalar_t* in = input.const_data_ptr<scalar_t>();
        scalar_t* dx = output.mutable_data_ptr<scalar_t>();
        for_each_run(
            layout,
            [&](int64_t begin, int64_t end, int64_t c) {
              gradient_span(dy + begin, in + begin, dx + begin, end - begin,
                            grids.per_channel[c], bounds);
            },
            [&](int64_t begin, int64_t end) {
              gradient_periodic(dy + begin, in + begin, dx + begin, end - begin, begin % period,
                                period, grids.scale.data(), grids.zero.data(), bounds);
            });
      });
  return output;
}

}  // namespace

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& lo, const at::Tensor& hi,
                         int64_t bits, std::optional<int64_t> axis, c10::string_view) {
  const at::Tensor input = dense(x);
  at::Tensor output = at::empty_like(input);
  if (input.numel() == 0) return output;
  const Layout layout = layout_of(input, axis);
  const Grids grids(lo, hi, bits, layout);
  const CodeBounds bounds = code_bounds(static_cast<int>(bits));
  const int64_t period = layout.channels * layout.inner;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "fake_quantize", [&] {
        const scalar_t* in = input.const_data_ptr<scalar_t>();
        scalar_t* out = output.mutable_data_ptr<scalar_t>();
        for_each_run(
            layout,
            [&](int64_t begin, int64_t end, int64_t c) {
              quantize_span(in + begin, out + begin, end - begin, grids.per_channel[c], bounds);
            },
            [&](int64_t begin, int64_t end) {
              quantize_periodic(in + begin, out + begin, end - begin, begin % period, period,
                                grids.scale.data(), grids.zero.data(), bounds);
            });
      });
  return output;
}

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("fake_quantize", fake_quantize);
  m.impl("fake_quantize_backward", fake_quantize_backward);
}

}  // namespace gdfq::cpu
