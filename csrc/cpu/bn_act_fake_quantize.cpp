// bn_act_fake_quantize: y = quantize(act((x - mean) * a + bias + residual)), a = weight / sqrt(var
// + eps), with frozen statistics; act clamps to [0, inf), [0, 6] or nothing.
//
// Bytes: forward reads x (and the residual) and writes y once. Backward recomputes the value before
// the activation, so it reads dy and x (and the residual) and writes dx (and the residual's
// gradient) once; the sums for weight and bias come from the same pass:
//   g = dy where the activation and the estimator let it through, else 0
//   dx = g * a, dresidual = g, dbias = sum(g), dweight = sum(g * (x - mean)) / sqrt(var + eps).
// Segments are cut by shape alone and their partial sums merged in order, so the result does not
// depend on the number of threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "bn_act.h"
#include "bn_act_fake_quantize.h"
#include "channels.h"
#include "layout.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

// Everything behind the normalization that is one for the whole tensor.
struct Tail {
  float low, high;          // the activation's bounds
  int32_t no_low, no_high;  // all ones where there is none
  Grid grid;
  CodeBounds bounds;
};

Tail make_tail(c10::string_view act, const at::Tensor& lo, const at::Tensor& hi, int64_t bits) {
  const ActBounds bounds = act_bounds(act);
  return {bounds.low,
          bounds.high,
          act == "none" ? -1 : 0,
          act == "relu6" ? 0 : -1,
          make_grid(lo.item<float>(), hi.item<float>(), static_cast<int>(bits)),
          code_bounds(static_cast<int>(bits))};
}

// ---- forward ----

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void forward_span(const scalar_t* x, const scalar_t* residual, scalar_t* y,
                                    int64_t n, float mean, float factor, float bias, Tail tail) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  const f32x16 low = splat(tail.low), high = splat(tail.high);
  const f32x16 scale = splat(tail.grid.scale), zero = splat(tail.grid.zero);
  const f32x16 lowest = splat(tail.bounds.lowest), highest = splat(tail.bounds.highest);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = clamp_keep_nan(
        normalized<kResidual>(x + i, residual + i, lanes, vmean, vfactor, vbias), low, high);
    store(y + i, quantize_value(v, scale, zero, lowest, highest, magic), lanes);
  }
}

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void forward_periodic(const scalar_t* x, const scalar_t* residual, scalar_t* y,
                                        int64_t n, int64_t phase, int64_t period, const float* mean,
                                        const float* factor, const float* bias, Tail tail) {
  const f32x16 low = splat(tail.low), high = splat(tail.high);
  const f32x16 scale = splat(tail.grid.scale), zero = splat(tail.grid.zero);
  const f32x16 lowest = splat(tail.bounds.lowest), highest = splat(tail.bounds.highest);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v =
        clamp_keep_nan(normalized<kResidual>(x + i, residual + i, lanes, load(mean + phase),
                                             load(factor + phase), load(bias + phase)),
                       low, high);
    store(y + i, quantize_value(v, scale, zero, lowest, highest, magic), lanes);
    phase = next_phase(phase, period);
  }
}

// ---- backward ----

// The gradient in front of the quantizer and the activation, whose input is v.
template <bool kClip>
GDFQ_INLINE f32x16 masked(f32x16 g, f32x16 v, const Tail& tail) {
  const f32x16 low = splat(tail.low), high = splat(tail.high);
  const i32x16 inside = (less(low, v) | tail.no_low) & (less(v, high) | tail.no_high);
  g = keep(inside, g);
  if constexpr (kClip)
    g = clip_gradient(g, clamp_keep_nan(v, low, high), splat(tail.grid.scale),
                      splat(tail.grid.zero), splat(tail.bounds.lowest), splat(tail.bounds.highest));
  return g;
}

constexpr int64_t kChunk = 1024;

template <bool kResidual, bool kClip, typename scalar_t>
GDFQ_MULTIVERSION void backward_run(const scalar_t* dy, const scalar_t* x, const scalar_t* residual,
                                    scalar_t* dx, scalar_t* dresidual, int64_t n, float mean,
                                    float factor, float bias, Tail tail, double* sum_g,
                                    double* sum_gx) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  for (int64_t start = 0; start < n; start += kChunk) {
    f32x16 first = {}, second = {};
    for (int64_t i = start; i < std::min(n, start + kChunk); i += kLanes) {
      const int64_t lanes = std::min(kLanes, n - i);
      const f32x16 centered = load(x + i, lanes) - vmean;
      f32x16 v = centered * vfactor + vbias;
      if constexpr (kResidual) v += load(residual + i, lanes);
      const f32x16 g = masked<kClip>(load(dy + i, lanes), v, tail);
      store(dx + i, g * vfactor, lanes);
      if constexpr (kResidual) store(dresidual + i, g, lanes);
      first += g;  // a partial vector's missing dy are 0
      second += g * centered;
    }
    *sum_g += sum(first);
    *sum_gx += sum(second);
  }
}

// Columns c to c + 16 * kVectors of some rows; several vectors keep the reads of a row together.
template <int kVectors, bool kResidual, bool kClip, typename scalar_t>
GDFQ_INLINE void backward_columns(const scalar_t* dy, const scalar_t* x, const scalar_t* residual,
                                  scalar_t* dx, scalar_t* dresidual, int64_t start, int64_t stop,
                                  int64_t channels, int64_t c, int64_t lanes, const float* mean,
                                  const float* factor, const float* bias, const Tail& tail,
                                  double* sum_g, double* sum_gx) {
  f32x16 first[kVectors] = {}, second[kVectors] = {};
  for (int64_t r = start; r < stop; ++r)
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = c + k * kLanes, i = r * channels + at;
      const f32x16 vfactor = load(factor + at, lanes);
      const f32x16 centered = load(x + i, lanes) - load(mean + at, lanes);
      f32x16 v = centered * vfactor + load(bias + at, lanes);
      if constexpr (kResidual) v += load(residual + i, lanes);
      const f32x16 g = masked<kClip>(load(dy + i, lanes), v, tail);
      store(dx + i, g * vfactor, lanes);
      if constexpr (kResidual) store(dresidual + i, g, lanes);
      first[k] += g;
      second[k] += g * centered;
    }
  for (int k = 0; k < kVectors; ++k)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      sum_g[c + k * kLanes + lane] += first[k][lane];
      sum_gx[c + k * kLanes + lane] += second[k][lane];
    }
}

template <bool kResidual, bool kClip, typename scalar_t>
GDFQ_MULTIVERSION void backward_rows(const scalar_t* dy, const scalar_t* x,
                                     const scalar_t* residual, scalar_t* dx, scalar_t* dresidual,
                                     int64_t rows, int64_t channels, const float* mean,
                                     const float* factor, const float* bias, Tail tail,
                                     double* sum_g, double* sum_gx) {
  const int64_t chunk = rows_per_chunk(channels);
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t stop = std::min(rows, start + chunk);
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
      backward_columns<4, kResidual, kClip>(dy, x, residual, dx, dresidual, start, stop, channels,
                                            c, kLanes, mean, factor, bias, tail, sum_g, sum_gx);
    for (; c < channels; c += kLanes)
      backward_columns<1, kResidual, kClip>(dy, x, residual, dx, dresidual, start, stop, channels,
                                            c, std::min(kLanes, channels - c), mean, factor, bias,
                                            tail, sum_g, sum_gx);
  }
}

}  // namespace

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                const at::Tensor& lo, const at::Tensor& hi, int64_t bits,
                                c10::string_view act, const std::optional<at::Tensor>& residual,
                                c10::string_view ste) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_range(lo, hi, bits, x, std::nullopt);
  check_ste(ste);
  const Tail tail = make_tail(act, lo, hi, bits);
  const at::Tensor input = walkable(narrowed(x));
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  if (input.numel() == 0) return output.to(x.scalar_type());
  const at::Tensor added =
      residual ? in_layout_of(residual->to(input.scalar_type()), input) : at::Tensor();
  const Layout layout = channel_layout(input);
  const int64_t period = layout.channels * layout.inner;
  const Affine affine(running_mean, running_var, weight, bias, eps);
  const Affine tables = has_short_runs(layout) ? affine.spread_over(layout.inner) : Affine();
  GDFQ_DISPATCH(input.scalar_type(), "bn_act_fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* res = residual ? added.const_data_ptr<scalar_t>() : in;
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    with_flag(residual.has_value(), [&](auto has_residual) {
      constexpr bool kResidual = decltype(has_residual)::value;
      for_each_run(
          layout,
          [&](int64_t begin, int64_t end, int64_t c) {
            forward_span<kResidual>(in + begin, res + begin, out + begin, end - begin,
                                    affine.mean[c], affine.factor[c], affine.bias[c], tail);
          },
          [&](int64_t begin, int64_t end) {
            forward_periodic<kResidual>(in + begin, res + begin, out + begin, end - begin,
                                        begin % period, period, tables.mean.data(),
                                        tables.factor.data(), tables.bias.data(), tail);
          });
    });
  });
  return output.to(x.scalar_type());
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_act_fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& running_mean,
    const at::Tensor& running_var, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, const at::Tensor& lo, const at::Tensor& hi,
    int64_t bits, c10::string_view act, const std::optional<at::Tensor>& residual,
    c10::string_view ste) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, std::nullopt);
  check_ste(ste);
  const Tail tail = make_tail(act, lo, hi, bits);
  const at::Tensor input = walkable(narrowed(x));
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const int64_t channels = x.size(1);
  at::Tensor dx = at::empty_like(input, input.suggest_memory_format());
  at::Tensor dresidual = residual ? at::empty_like(dx) : at::empty({0}, input.options());
  at::Tensor dweight = at::zeros({channels}, float32), dbias = at::zeros({channels}, float32);
  const auto widened = [&](const at::Tensor& t) { return t.to(x.scalar_type()); };
  if (input.numel() == 0) return {widened(dx), widened(dresidual), dweight, dbias};

  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  const at::Tensor added =
      residual ? in_layout_of(residual->to(input.scalar_type()), input) : at::Tensor();
  const Layout layout = channel_layout(input);
  const Affine affine(running_mean, running_var, weight, bias, eps);
  const Segments segments = segments_of(layout);
  std::vector<double> sums(segments.count * 2 * channels);  // [segment][g, g * (x - mean)][channel]
  GDFQ_DISPATCH(input.scalar_type(), "bn_act_fake_quantize_backward", [&] {
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* res = residual ? added.const_data_ptr<scalar_t>() : in;
    scalar_t* out = dx.mutable_data_ptr<scalar_t>();
    scalar_t* dres = residual ? dresidual.mutable_data_ptr<scalar_t>() : out;
    with_flag(residual.has_value(), [&](auto has_residual) {
      with_flag(ste == "clip", [&](auto clips) {
        constexpr bool kResidual = decltype(has_residual)::value;
        constexpr bool kClip = decltype(clips)::value;
        for_each_segment(
            layout,
            [&](int64_t segment, int64_t begin, int64_t end, int64_t c) {
              double* own = sums.data() + segment * 2 * channels;
              backward_run<kResidual, kClip>(dy + begin, in + begin, res + begin, out + begin,
                                             dres + begin, end - begin, affine.mean[c],
                                             affine.factor[c], affine.bias[c], tail, own + c,
                                             own + channels + c);
            },
            [&](int64_t segment, int64_t row, int64_t rows) {
              double* own = sums.data() + segment * 2 * channels;
              const int64_t begin = row * channels;
              backward_rows<kResidual, kClip>(dy + begin, in + begin, res + begin, out + begin,
                                              dres + begin, rows, channels, affine.mean.data(),
                                              affine.factor.data(), affine.bias.data(), tail, own,
                                              own + channels);
            });
      });
    });
  });
  const std::vector<float> vars = values(running_var);
  for (int64_t c = 0; c < channels; ++c) {
    double g = 0, gx = 0;
    for (int64_t segment = 0; segment < segments.count; ++segment) {
      g += sums[segment * 2 * channels + c];
      gx += sums[(segment * 2 + 1) * channels + c];
    }
    dbias.mutable_data_ptr<float>()[c] = static_cast<float>(g);
    dweight.mutable_data_ptr<float>()[c] = static_cast<float>(gx / std::sqrt(vars[c] + eps));
  }
  return {widened(dx), widened(dresidual), dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("bn_act_fake_quantize", bn_act_fake_quantize);
  m.impl("bn_act_fake_quantize_backward", bn_act_fake_quantize_backward);
}

}  // namespace gdfq::cpu
