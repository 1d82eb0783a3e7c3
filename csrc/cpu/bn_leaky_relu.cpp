// bn_leaky_relu: training-mode batch norm and leaky ReLU,
//   v = (x - mean) * a + bias with a = weight / sqrt(var + eps),   y = v > 0 ? v : slope * v,
// mean and biased var those of the batch; weight and bias one per channel, or one per sample and
// channel. Backward, with g = v > 0 ? dy : slope * dy and M elements per channel:
//   dbias = sum(g),   dweight = sum(g * (x - mean)) / sqrt(var + eps)
//   dx = g * a - [sum(weight * g) + (x - mean) / (var + eps) * sum(weight * g * (x - mean))]
//              / (M * sqrt(var + eps))
//
// Bytes: both directions are a reduction and a pass, because the statistics depend on every
// element: forward reads x twice and writes y once, backward reads dy and x twice and
// writes dx once. Parts are cut by shape alone and merged in order, so the result does not depend
// on the number of threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "channels.h"
#include "layout.h"
#include "moments.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

// ---- statistics ----

template <typename scalar_t>
GDFQ_MULTIVERSION void moments_run(const scalar_t* x, int64_t n, double* first, double* second) {
  add_run(x, n, first, second, [](int64_t, f32x16, int64_t) __attribute__((always_inline)) {});
}

template <typename scalar_t>
GDFQ_MULTIVERSION void moments_rows(const scalar_t* x, int64_t rows, int64_t channels,
                                    double* first, double* second) {
  struct None {};
  add_rows(
      x, rows, channels, first, second,
      [](int64_t, int64_t) __attribute__((always_inline)) { return None{}; },
      [](int64_t, None, f32x16, int64_t) __attribute__((always_inline)) {});
}

// ---- the pass ----

GDFQ_INLINE f32x16 leaky(f32x16 v, f32x16 value, f32x16 slope) {
  return select(less(f32x16{}, v), value, value * slope);
}

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_span(const scalar_t* x, scalar_t* y, int64_t n, float mean,
                                    float factor, float bias, float slope) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = (load(x + i, lanes) - vmean) * vfactor + vbias;
    store(y + i, leaky(v, v, splat(slope)), lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_periodic(const scalar_t* x, scalar_t* y, int64_t n, int64_t phase,
                                        int64_t period, const float* mean, const float* factor,
                                        const float* bias, float slope) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v =
        (load(x + i, lanes) - load(mean + phase)) * load(factor + phase) + load(bias + phase);
    store(y + i, leaky(v, v, splat(slope)), lanes);
    phase = next_phase(phase, period);
  }
}

// ---- backward: the reduction ----

template <typename scalar_t>
GDFQ_MULTIVERSION void reduce_run(const scalar_t* dy, const scalar_t* x, int64_t n, float mean,
                                  float factor, float bias, float slope, double* sum_g,
                                  double* sum_gx) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  for (int64_t start = 0; start < n; start += kChunk) {
    f32x16 first = {}, second = {};
    for (int64_t i = start; i < std::min(n, start + kChunk); i += kLanes) {
      const int64_t lanes = std::min(kLanes, n - i);
      const f32x16 centered = load(x + i, lanes) - vmean;
      const f32x16 g = leaky(centered * vfactor + vbias, load(dy + i, lanes), splat(slope));
      first += g;  // a partial vector's missing dy are 0
      second += g * centered;
    }
    *sum_g += sum(first);
    *sum_gx += sum(second);
  }
}

template <int kVectors, typename scalar_t>
GDFQ_INLINE void reduce_columns(const scalar_t* dy, const scalar_t* x, int64_t rows,
                                int64_t channels, int64_t lanes, const float* mean,
                                const float* factor, const float* bias, float slope, double* sum_g,
                                double* sum_gx) {
  f32x16 first[kVectors] = {}, second[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = k * kLanes, i = r * channels + at;
      const f32x16 centered = load(x + i, lanes) - load(mean + at, lanes);
      const f32x16 v = centered * load(factor + at, lanes) + load(bias + at, lanes);
      const f32x16 g = leaky(v, load(dy + i, lanes), splat(slope));
      first[k] += g;
      second[k] += g * centered;
    }
  for (int k = 0; k < kVectors; ++k)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      sum_g[k * kLanes + lane] += first[k][lane];
      sum_gx[k * kLanes + lane] += second[k][lane];
    }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void reduce_rows(const scalar_t* dy, const scalar_t* x, int64_t rows,
                                   int64_t channels, const float* mean, const float* factor,
                                   const float* bias, float slope, double* sum_g, double* sum_gx) {
  const int64_t chunk = rows_per_chunk(channels);
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t count = std::min(chunk, rows - start), offset = start * channels;
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
      reduce_columns<4>(dy + offset + c, x + offset + c, count, channels, kLanes, mean + c,
                        factor + c, bias + c, slope, sum_g + c, sum_gx + c);
    for (; c < channels; c += kLanes)
      reduce_columns<1>(dy + offset + c, x + offset + c, count, channels,
                        std::min(kLanes, channels - c), mean + c, factor + c, bias + c, slope,
                        sum_g + c, sum_gx + c);
  }
}

// ---- backward: the pass ----

struct Slopes {
  float mean, factor, bias, linear, constant;
};

template <typename scalar_t>
GDFQ_MULTIVERSION void backward_span(const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n,
                                     Slopes s, float slope) {
  const f32x16 mean = splat(s.mean), factor = splat(s.factor), bias = splat(s.bias);
  const f32x16 linear = splat(s.linear), constant = splat(s.constant);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 centered = load(x + i, lanes) - mean;
    const f32x16 g = leaky(centered * factor + bias, load(dy + i, lanes), splat(slope));
    store(dx + i, g * factor + centered * linear + constant, lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void backward_periodic(const scalar_t* dy, const scalar_t* x, scalar_t* dx,
                                         int64_t n, int64_t phase, int64_t period,
                                         const float* mean, const float* factor, const float* bias,
                                         const float* linear, const float* constant, float slope) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 centered = load(x + i, lanes) - load(mean + phase);
    const f32x16 vfactor = load(factor + phase);
    const f32x16 g =
        leaky(centered * vfactor + load(bias + phase), load(dy + i, lanes), splat(slope));
    store(dx + i, g * vfactor + centered * load(linear + phase) + load(constant + phase), lanes);
    phase = next_phase(phase, period);
  }
}

// ---- constants ----

// Parameters of each channel, or of each channel of each sample. Rows of constants are 16 longer
// than the channels, so that a vector may start at any of them.
struct BatchAffine {
  int64_t channels;
  bool per_sample;
  std::vector<float> mean, weight, factor, bias;

  BatchAffine(const at::Tensor& x, const at::Tensor& batch_mean, const at::Tensor& var,
              const Optional& weights, const Optional& biases, double eps)
      : channels(x.size(1)),
        per_sample((weights && weights->dim() == 2) || (biases && biases->dim() == 2)) {
    mean = spread(values(batch_mean), 1);
    const std::vector<float> vars = values(var);
    const int64_t samples = per_sample ? x.size(0) : 1;
    weight = table(weights, samples, 1);
    bias = table(biases, samples, 0);
    factor.resize(weight.size());
    for (int64_t s = 0; s < samples; ++s)
      for (int64_t i = 0; i < stride(); ++i)
        factor[s * stride() + i] = factor_of(weight[s * stride() + i], vars[i % channels], eps);
  }

  int64_t stride() const { return channels + 16; }

  std::vector<float> table(const Optional& t, int64_t samples, float missing) {
    std::vector<float> result(samples * stride(), missing);
    if (!t) return result;
    const std::vector<float> all = values(*t);
    for (int64_t s = 0; s < samples; ++s)
      for (int64_t i = 0; i < stride(); ++i)
        result[s * stride() + i] = all[(t->dim() == 2 ? s * channels : 0) + i % channels];
    return result;
  }
};

// Elementwise: calls span(begin, end, sample, channel) for runs of one channel, or, where channels
// are last, periodic(begin, end, sample).
template <typename Span, typename Periodic>
void for_each_stretch(const Layout& layout, int64_t samples, bool per_sample, const Span& span,
                      const Periodic& periodic) {
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  const int64_t sample_numel = per_sample ? numel / samples : numel;
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sample = begin / sample_numel;
      int64_t stop = std::min(end, (sample + 1) * sample_numel);
      if (layout.inner == 1) {
        periodic(begin, stop, sample);
      } else {
        const int64_t run = begin / layout.inner;
        stop = std::min(stop, (run + 1) * layout.inner);
        span(begin, stop, sample, run % layout.channels);
      }
      begin = stop;
    }
  });
}

template <typename F>
void dispatch(const at::Tensor& input, const F& f) {
  GDFQ_DISPATCH(input.scalar_type(), "bn_leaky_relu", [&] { f(scalar_t{}); });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_leaky_relu(const at::Tensor& x,
                                                             const Optional& weight,
                                                             const Optional& bias, double eps,
                                                             double negative_slope) {
  check_batch_affine(x, weight, bias, negative_slope);
  const at::Tensor input = walkable(x);
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const int64_t channels = x.size(1), samples = x.size(0);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  at::Tensor mean = at::empty({channels}, float32), var = at::empty({channels}, float32);
  const Layout layout = channel_layout(input);
  const Segments segments = segments_of(layout);
  Moments moments(segments.count, channels);
  const float slope = static_cast<float>(negative_slope);
  dispatch(input, [&](auto type) {
    using scalar_t = decltype(type);
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    for_each_segment(
        layout,
        [&](int64_t segment, int64_t begin, int64_t end, int64_t c) {
          moments_run(in + begin, end - begin, moments.first(segment) + c,
                      moments.second(segment) + c);
        },
        [&](int64_t segment, int64_t row, int64_t rows) {
          moments_rows(in + row * channels, rows, channels, moments.first(segment),
                       moments.second(segment));
        });
    moments.finish(input.numel() / channels, mean.mutable_data_ptr<float>(),
                   var.mutable_data_ptr<float>());
    const BatchAffine affine(input, mean, var, weight, bias, eps);
    for_each_stretch(
        layout, samples, affine.per_sample,
        [&](int64_t begin, int64_t end, int64_t sample, int64_t c) {
          const int64_t at = sample * affine.stride() + c;
          forward_span(in + begin, out + begin, end - begin, affine.mean[c], affine.factor[at],
                       affine.bias[at], slope);
        },
        [&](int64_t begin, int64_t end, int64_t sample) {
          const int64_t at = sample * affine.stride();
          forward_periodic(in + begin, out + begin, end - begin, begin % channels, channels,
                           affine.mean.data(), affine.factor.data() + at, affine.bias.data() + at,
                           slope);
        });
  });
  return {output, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_leaky_relu_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
    const Optional& weight, const Optional& bias, double eps, double negative_slope) {
  check_batch_affine_gradient(grad, x, mean, var, weight, bias, negative_slope);
  const at::Tensor input = walkable(x);
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  const int64_t channels = x.size(1), samples = x.size(0);
  const at::Tensor dy_dense = in_layout_of(grad.to(input.scalar_type()), input);
  at::Tensor dx = at::empty_like(input, input.suggest_memory_format());
  const Layout layout = channel_layout(input);
  const BatchAffine affine(input, mean, var, weight, bias, eps);
  const std::vector<float> vars = values(var);
  const float slope = static_cast<float>(negative_slope);
  const bool per_sample = affine.per_sample;

  // Sums of g and of g * (x - mean): of each sample, or of segments that are then added up.
  const Segments segments = segments_of(layout);
  const int64_t parts = per_sample ? samples : segments.count;
  std::vector<double> sums(parts * 2 * channels);
  const int64_t rows_per_sample = layout.outer / samples;
  at::Tensor dweight =
      per_sample ? at::empty({samples, channels}, float32) : at::empty({channels}, float32);
  at::Tensor dbias = at::empty_like(dweight);
  dispatch(input, [&](auto type) {
    using scalar_t = decltype(type);
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = dx.mutable_data_ptr<scalar_t>();
    const auto run = [&](int64_t part, int64_t sample, int64_t begin, int64_t end, int64_t c) {
      const int64_t at = sample * affine.stride() + c;
      double* own = sums.data() + part * 2 * channels;
      reduce_run(dy + begin, in + begin, end - begin, affine.mean[c], affine.factor[at],
                 affine.bias[at], slope, own + c, own + channels + c);
    };
    const auto rows = [&](int64_t part, int64_t sample, int64_t row, int64_t count) {
      const int64_t at = sample * affine.stride();
      double* own = sums.data() + part * 2 * channels;
      reduce_rows(dy + row * channels, in + row * channels, count, channels, affine.mean.data(),
                  affine.factor.data() + at, affine.bias.data() + at, slope, own, own + channels);
    };
    if (per_sample) {
      const int64_t sample_numel = input.numel() / samples;
      at::parallel_for(0, samples, std::max<int64_t>(1, kGrain / sample_numel),
                       [&](int64_t from, int64_t to) {
                         for (int64_t n = from; n < to; ++n) {
                           if (layout.inner == 1) {
                             rows(n, n, n * rows_per_sample, rows_per_sample);
                             continue;
                           }
                           for (int64_t c = 0; c < channels; ++c) {
                             const int64_t begin = n * sample_numel + c * layout.inner;
                             run(n, n, begin, begin + layout.inner, c);
                           }
                         }
                       });
    } else {
      for_each_segment(
          layout,
          [&](int64_t segment, int64_t begin, int64_t end, int64_t c) {
            run(segment, 0, begin, end, c);
          },
          [&](int64_t segment, int64_t row, int64_t count) { rows(segment, 0, row, count); });
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += sums[part * 2 * channels + i];
    }

    const double count = static_cast<double>(input.numel() / channels);
    std::vector<float> linear(channels), constant(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse = 1 / std::sqrt(static_cast<double>(vars[c]) + eps);
      double all_g = 0, all_gx = 0;
      for (int64_t s = 0; s < (per_sample ? samples : 1); ++s) {
        const double g = sums[s * 2 * channels + c], gx = sums[(s * 2 + 1) * channels + c];
        dbias.mutable_data_ptr<float>()[s * channels + c] = static_cast<float>(g);
        dweight.mutable_data_ptr<float>()[s * channels + c] = static_cast<float>(gx * inverse);
        all_g += affine.weight[s * affine.stride() + c] * g;
        all_gx += affine.weight[s * affine.stride() + c] * gx;
      }
      constant[c] = static_cast<float>(-inverse * all_g / count);
      linear[c] = static_cast<float>(-inverse * inverse * inverse * all_gx / count);
    }
    const std::vector<float> linears = spread(linear, 1), constants = spread(constant, 1);
    for_each_stretch(
        layout, samples, per_sample,
        [&](int64_t begin, int64_t end, int64_t sample, int64_t c) {
          const int64_t at = sample * affine.stride() + c;
          backward_span(
              dy + begin, in + begin, out + begin, end - begin,
              {affine.mean[c], affine.factor[at], affine.bias[at], linear[c], constant[c]}, slope);
        },
        [&](int64_t begin, int64_t end, int64_t sample) {
          const int64_t at = sample * affine.stride();
          backward_periodic(dy + begin, in + begin, out + begin, end - begin, begin % channels,
                            channels, affine.mean.data(), affine.factor.data() + at,
                            affine.bias.data() + at, linears.data(), constants.data(), slope);
        });
  });
  return {dx, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("bn_leaky_relu", bn_leaky_relu);
  m.impl("bn_leaky_relu_backward", bn_leaky_relu_backward);
}

}  // namespace gdfq::cpu
