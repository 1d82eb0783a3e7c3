// observe_bn_act_fake_quantize: v = act((x - mean) * a + bias + residual), a = weight / sqrt(var +
// eps), whose minimum and maximum over the batch, in float32, move a range as in
// observe_fake_quantize; then v is quantized over the moved range. An empty batch moves nothing.
//
// Bytes: x (and the residual) is read twice, because the range depends on every element, and y is
// written once; v is computed twice instead of stored. Threads take segments of
// memory. Minimum and maximum are the same in any order, so the result does not depend on the
// number of threads.

#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "bn_act.h"
#include "layout.h"
#include "minmax.h"
#include "operators.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

// Returns v, with the first lane repeated past the last element.
template <bool kResidual, typename scalar_t>
GDFQ_INLINE f32x16 activated(const scalar_t* x, const scalar_t* residual, int64_t lanes,
                             f32x16 mean, f32x16 factor, f32x16 bias, f32x16 act_lo,
                             f32x16 act_hi) {
  const f32x16 v =
      clamp_keep_nan(normalized<kResidual>(x, residual, lanes, mean, factor, bias), act_lo, act_hi);
  return lanes == kLanes ? v : select(lane_mask(lanes), v, splat(v[0]));
}

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void minmax_of_span(const scalar_t* x, const scalar_t* residual, int64_t n,
                                      float mean, float factor, float bias, ActBounds bounds,
                                      MinMaxLanes* range) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  const f32x16 act_lo = splat(bounds.lo), act_hi = splat(bounds.hi);
  MinMaxLanes own = *range;
  for (int64_t i = 0; i < n; i += kLanes) {
    const f32x16 v = activated<kResidual>(x + i, residual + i, std::min(kLanes, n - i), vmean,
                                          vfactor, vbias, act_lo, act_hi);
    own.extend(v);
  }
  *range = own;
}

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void minmax_of_periodic(const scalar_t* x, const scalar_t* residual, int64_t n,
                                          int64_t phase, int64_t period, const float* mean,
                                          const float* factor, const float* bias, ActBounds bounds,
                                          MinMaxLanes* range) {
  const f32x16 act_lo = splat(bounds.lo), act_hi = splat(bounds.hi);
  MinMaxLanes own = *range;
  for (int64_t i = 0; i < n; i += kLanes) {
    const f32x16 v =
        activated<kResidual>(x + i, residual + i, std::min(kLanes, n - i), load(mean + phase),
                             load(factor + phase), load(bias + phase), act_lo, act_hi);
    own.extend(v);
    phase = next_phase(phase, period);
  }
  *range = own;
}

// Minimum and maximum of v over all of `input`; `added` is the residual in its layout.
MinMax minmax_of(const at::Tensor& input, const Optional& added, const FrozenNorm& norm,
                 ActBounds bounds) {
  const Layout layout = channel_layout(input);
  const int64_t period = layout.channels * layout.inner;
  const FrozenNorm tables = has_short_runs(layout) ? norm.spread_over(layout.inner) : FrozenNorm();
  const Segments segments = segments_of(layout);
  std::vector<MinMax> parts(segments.count);
  GDFQ_DISPATCH(input.scalar_type(), "observe_bn_act_fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* res = added ? added->const_data_ptr<scalar_t>() : in;
    with_flag(added.has_value(), [&](auto has_residual) {
      constexpr bool kResidual = decltype(has_residual)::value;
      at::parallel_for(0, segments.count, 1, [&](int64_t from, int64_t to) {
        for (int64_t s = from; s < to; ++s) {
          MinMaxLanes range;
          for_each_run_of(
              layout, s * segments.length, std::min(input.numel(), (s + 1) * segments.length),
              [&](int64_t begin, int64_t end, int64_t c) {
                minmax_of_span<kResidual>(in + begin, res + begin, end - begin, norm.mean[c],
                                          norm.factor[c], norm.bias[c], bounds, &range);
              },
              [&](int64_t begin, int64_t end) {
                minmax_of_periodic<kResidual>(in + begin, res + begin, end - begin, begin % period,
                                              period, tables.mean.data(), tables.factor.data(),
                                              tables.bias.data(), bounds, &range);
              });
          parts[s] = range.merged();
        }
      });
    });
  });
  return merge(parts);
}

at::Tensor observe_bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                        const at::Tensor& running_var, const Optional& weight,
                                        const Optional& bias, double eps, at::Tensor average_lo,
                                        at::Tensor average_hi, at::Tensor lo, at::Tensor hi,
                                        at::Tensor num_batches_tracked, int64_t bits,
                                        double momentum, c10::string_view act,
                                        const Optional& residual, c10::string_view ste,
                                        bool zero_in_range) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_bits(bits);
  check_ste(ste);
  const MovingRange range =
      moving_range(average_lo, average_hi, lo, hi, num_batches_tracked, zero_in_range);
  const at::Tensor input = walkable(narrowed(x));
  const Optional added = residual_of(residual, input);
  if (input.numel() > 0) {
    const MinMax batch =
        minmax_of(input, added, FrozenNorm(running_mean, running_var, weight, bias, eps),
                  act_bounds(activation(act)));
    move_range(range, batch.lo, batch.hi, momentum);
  }
  return bn_act_fake_quantize(input, running_mean, running_var, weight, bias, eps, lo, hi, bits,
                              act, added, ste)
      .to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("observe_bn_act_fake_quantize", observe_bn_act_fake_quantize);
}

}  // namespace gdfq::cpu
