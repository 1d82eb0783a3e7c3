// bn_act_fake_quantize: y = quantize(act((x - mean) * a + bias + residual)), a = weight / sqrt(var
// + eps), with frozen statistics; act clamps to [0, inf), [0, 6] or nothing.
//
// Bytes: forward reads x (and the residual) and writes y once. Backward recomputes the value before
// the activation, so it reads dy and x (and the residual) and writes dx (and the residual's
// gradient) once; the sums for weight and bias come from the same pass:
//   g = dy where the activation and the estimator pass it, else 0
//   dx = g * a, dresidual = g, dbias = sum(g), dweight = sum(g * (x - mean)) / sqrt(var + eps).
// Segments are cut by shape alone and their partial sums merged in order, so the result does not
// depend on the number of threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "bn_act.h"
#include "layout.h"
#include "operators.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

// Activation and quantizer, the same for the whole tensor.
struct ActQuantizer {
  float act_lo, act_hi;  // the activation's bounds
  int32_t no_lo, no_hi;  // all ones for a missing bound
  Grid grid;
  CodeBounds bounds;
};

ActQuantizer act_quantizer(c10::string_view name, const at::Tensor& lo, const at::Tensor& hi,
                           int64_t bits) {
  const Activation act = activation(name);
  const ActBounds bounds = act_bounds(act);
  return {bounds.lo,
          bounds.hi,
          act == Activation::none ? -1 : 0,
          act == Activation::relu6 ? 0 : -1,
          make_grid(lo.item<float>(), hi.item<float>(), static_cast<int>(bits)),
          code_bounds(static_cast<int>(bits))};
}

// ---- forward ----

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void forward_span(const scalar_t* x, const scalar_t* residual, scalar_t* y,
                                    int64_t n, float mean, float factor, float bias,
                                    ActQuantizer quantizer) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  const f32x16 act_lo = splat(quantizer.act_lo), act_hi = splat(quantizer.act_hi);
  const f32x16 inv_scale = splat(quantizer.grid.inv_scale), zero = splat(quantizer.grid.zero);
  const f32x16 code_lo = splat(quantizer.bounds.lo), code_hi = splat(quantizer.bounds.hi);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = clamp_keep_nan(
        normalized<kResidual>(x + i, residual + i, lanes, vmean, vfactor, vbias), act_lo, act_hi);
    store(y + i, quantize_value(v, inv_scale, zero, code_lo, code_hi, magic), lanes);
  }
}

template <bool kResidual, typename scalar_t>
GDFQ_MULTIVERSION void forward_periodic(const scalar_t* x, const scalar_t* residual, scalar_t* y,
                                        int64_t n, int64_t phase, int64_t period, const float* mean,
                                        const float* factor, const float* bias,
                                        ActQuantizer quantizer) {
  const f32x16 act_lo = splat(quantizer.act_lo), act_hi = splat(quantizer.act_hi);
  const f32x16 inv_scale = splat(quantizer.grid.inv_scale), zero = splat(quantizer.grid.zero);
  const f32x16 code_lo = splat(quantizer.bounds.lo), code_hi = splat(quantizer.bounds.hi);
  const f32x16 magic = splat(kRoundMagic);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v =
        clamp_keep_nan(normalized<kResidual>(x + i, residual + i, lanes, load(mean + phase),
                                             load(factor + phase), load(bias + phase)),
                       act_lo, act_hi);
    store(y + i, quantize_value(v, inv_scale, zero, code_lo, code_hi, magic), lanes);
    phase = next_phase(phase, period);
  }
}

// ---- backward ----

// The gradient to v, the activation's input.
template <bool kClip>
GDFQ_INLINE f32x16 masked(f32x16 g, f32x16 v, const ActQuantizer& quantizer) {
  const f32x16 act_lo = splat(quantizer.act_lo), act_hi = splat(quantizer.act_hi);
  const i32x16 inside = (less(act_lo, v) | quantizer.no_lo) & (less(v, act_hi) | quantizer.no_hi);
  g = keep(inside, g);
  if constexpr (kClip)
    g = clip_gradient(g, clamp_keep_nan(v, act_lo, act_hi), splat(quantizer.grid.inv_scale),
                      splat(quantizer.grid.zero), splat(quantizer.bounds.lo),
                      splat(quantizer.bounds.hi));
  return g;
}

template <bool kResidual, bool kClip, typename scalar_t>
GDFQ_MULTIVERSION void backward_run(const scalar_t* dy, const scalar_t* x, const scalar_t* residual,
                                    scalar_t* dx, scalar_t* dresidual, int64_t n, float mean,
                                    float factor, float bias, ActQuantizer quantizer, double* sum_g,
                                    double* sum_gx) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  for (int64_t start = 0; start < n; start += kChunk) {
    f32x16 first = {}, second = {};
    for (int64_t i = start; i < std::min(n, start + kChunk); i += kLanes) {
      const int64_t lanes = std::min(kLanes, n - i);
      const f32x16 centered = load(x + i, lanes) - vmean;
      f32x16 v = centered * vfactor + vbias;
      if constexpr (kResidual) v += load(residual + i, lanes);
      const f32x16 g = masked<kClip>(load(dy + i, lanes), v, quantizer);
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
                                  const float* factor, const float* bias,
                                  const ActQuantizer& quantizer, double* sum_g, double* sum_gx) {
  f32x16 first[kVectors] = {}, second[kVectors] = {};
  for (int64_t r = start; r < stop; ++r)
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = c + k * kLanes, i = r * channels + at;
      const f32x16 vfactor = load(factor + at, lanes);
      const f32x16 centered = load(x + i, lanes) - load(mean + at, lanes);
      f32x16 v = centered * vfactor + load(bias + at, lanes);
      if constexpr (kResidual) v += load(residual + i, lanes);
      const f32x16 g = masked<kClip>(load(dy + i, lanes), v, quantizer);
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
                                     const float* factor, const float* bias, ActQuantizer quantizer,
                                     double* sum_g, double* sum_gx) {
  const int64_t chunk = rows_per_chunk(channels);
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t stop = std::min(rows, start + chunk);
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
      backward_columns<4, kResidual, kClip>(dy, x, residual, dx, dresidual, start, stop, channels,
                                            c, kLanes, mean, factor, bias, quantizer, sum_g,
                                            sum_gx);
    for (; c < channels; c += kLanes)
      backward_columns<1, kResidual, kClip>(dy, x, residual, dx, dresidual, start, stop, channels,
                                            c, std::min(kLanes, channels - c), mean, factor, bias,
                                            quantizer, sum_g, sum_gx);
  }
}

}  // namespace

at::Tensor bn_act_fake_quantize(const at::Tensor& x, const at::Tensor& running_mean,
                                const at::Tensor& running_var, const Optional& weight,
                                const Optional& bias, double eps, const at::Tensor& lo,
                                const at::Tensor& hi, int64_t bits, c10::string_view act,
                                const Optional& residual, c10::string_view ste) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_range(lo, hi, bits, x, std::nullopt);
  check_ste(ste);
  const ActQuantizer quantizer = act_quantizer(act, lo, hi, bits);
  const at::Tensor input = walkable(narrowed(x));
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  if (input.numel() == 0) return output.to(x.scalar_type());
  const Optional added = residual_of(residual, input);
  const Layout layout = channel_layout(input);
  const int64_t period = layout.channels * layout.inner;
  const FrozenNorm norm(running_mean, running_var, weight, bias, eps);
  const FrozenNorm tables = has_short_runs(layout) ? norm.spread_over(layout.inner) : FrozenNorm();
  GDFQ_DISPATCH(input.scalar_type(), "bn_act_fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* res = residual ? added->const_data_ptr<scalar_t>() : in;
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    with_flag(residual.has_value(), [&](auto has_residual) {
      constexpr bool kResidual = decltype(has_residual)::value;
      for_each_run(
          layout,
          [&](int64_t begin, int64_t end, int64_t c) {
            forward_span<kResidual>(in + begin, res + begin, out + begin, end - begin, norm.mean[c],
                                    norm.factor[c], norm.bias[c], quantizer);
          },
          [&](int64_t begin, int64_t end) {
            forward_periodic<kResidual>(in + begin, res + begin, out + begin, end - begin,
                                        begin % period, period, tables.mean.data(),
                                        tables.factor.data(), tables.bias.data(), quantizer);
          });
    });
  });
  return output.to(x.scalar_type());
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_act_fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& running_mean,
    const at::Tensor& running_var, const Optional& weight, const Optional& bias, double eps,
    const at::Tensor& lo, const at::Tensor& hi, int64_t bits, c10::string_view act,
    const Optional& residual, c10::string_view ste) {
  check_batch_norm(x, running_mean, running_var, weight, bias, residual);
  check_gradient(grad, "grad", x);
  check_range(lo, hi, bits, x, std::nullopt);
  check_ste(ste);
  const ActQuantizer quantizer = act_quantizer(act, lo, hi, bits);
  const at::Tensor input = walkable(narrowed(x));
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const int64_t channels = x.size(1);
  at::Tensor dx = at::empty_like(input, input.suggest_memory_format());
  at::Tensor dresidual = residual ? at::empty_like(dx) : at::empty({0}, input.options());
  at::Tensor dweight = at::zeros({channels}, float32), dbias = at::zeros({channels}, float32);
  const auto widened = [&](const at::Tensor& t) { return t.to(x.scalar_type()); };
  if (input.numel() == 0) return {widened(dx), widened(dresidual), dweight, dbias};

  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  const Optional added = residual_of(residual, input);
  const Layout layout = channel_layout(input);
  const FrozenNorm norm(running_mean, running_var, weight, bias, eps);
  const Segments segments = segments_of(layout);
  std::vector<double> sums(segments.count * 2 * channels);  // [segment][g, g * (x - mean)][channel]
  GDFQ_DISPATCH(input.scalar_type(), "bn_act_fake_quantize_backward", [&] {
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* res = residual ? added->const_data_ptr<scalar_t>() : in;
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
                                             dres + begin, end - begin, norm.mean[c],
                                             norm.factor[c], norm.bias[c], quantizer, own + c,
                                             own + channels + c);
            },
            [&](int64_t segment, int64_t row, int64_t rows) {
              double* own = sums.data() + segment * 2 * channels;
              const int64_t begin = row * channels;
              backward_rows<kResidual, kClip>(dy + begin, in + begin, res + begin, out + begin,
                                              dres + begin, rows, channels, norm.mean.data(),
                                              norm.factor.data(), norm.bias.data(), quantizer, own,
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
