// batch_norm_stats: y = (x - running_mean) * a + bias with a = weight / sqrt(running_var + eps),
// and the biased batch mean and variance of x, from one read of x.
//
// Bytes: forward reads x and writes y once; backward, which needs no reduction because
//   dx = a * dy + (2 / M) * dvar * (x - mean) + dmean / M,
// reads dy and x and writes dx once. Tasks are cut by shape alone and their partial sums are merged
// in order, so the result does not depend on the number of threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "../batch_norm_stats_double.h"
#include "../checks.h"
#include "channels.h"
#include "frozen_norm.h"
#include "layout.h"
#include "moments.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

// ---- forward ----

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_run(const scalar_t* x, scalar_t* y, int64_t n, float mean,
                                   float factor, float bias, double* first, double* second) {
  const f32x16 vmean = splat(mean), vfactor = splat(factor), vbias = splat(bias);
  add_run(x, n, first, second,
          [&](int64_t i, f32x16 v, int64_t lanes) __attribute__((always_inline)) {
            store(y + i, (v - vmean) * vfactor + vbias, lanes);
          });
}

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_rows(const scalar_t* x, scalar_t* y, int64_t rows, int64_t channels,
                                    const float* mean, const float* factor, const float* bias,
                                    double* first, double* second) {
  struct Constants {
    f32x16 mean, factor, bias;
  };
  add_rows(
      x, rows, channels, first, second,
      [&](int64_t c, int64_t lanes) __attribute__((always_inline)) {
        return Constants{load(mean + c, lanes), load(factor + c, lanes), load(bias + c, lanes)};
      },
      [&](int64_t i, const Constants& c, f32x16 v, int64_t lanes) __attribute__((always_inline)) {
        store(y + i, (v - c.mean) * c.factor + c.bias, lanes);
      });
}

template <typename scalar_t>
void forward(const at::Tensor& input, at::Tensor& output, const Layout& layout,
             const FrozenNorm& norm, Moments& moments) {
  const scalar_t* x = input.const_data_ptr<scalar_t>();
  scalar_t* y = output.mutable_data_ptr<scalar_t>();
  for_each_segment(
      layout,
      [&](int64_t segment, int64_t begin, int64_t end, int64_t c) {
        forward_run(x + begin, y + begin, end - begin, norm.mean[c], norm.factor[c], norm.bias[c],
                    moments.first(segment) + c, moments.second(segment) + c);
      },
      [&](int64_t segment, int64_t row, int64_t rows) {
        const int64_t begin = row * layout.channels;
        forward_rows(x + begin, y + begin, rows, layout.channels, norm.mean.data(),
                     norm.factor.data(), norm.bias.data(), moments.first(segment),
                     moments.second(segment));
      });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_stats(const at::Tensor& x,
                                                                const at::Tensor& running_mean,
                                                                const at::Tensor& running_var,
                                                                const Optional& weight,
                                                                const Optional& bias, double eps) {
  check_statistics(x, running_mean, running_var, weight, bias);
  const int64_t channels = x.size(1);
  if (x.scalar_type() == at::kDouble)
    return forward_double(x, running_mean, running_var, weight, bias, eps);

  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  at::Tensor mean = at::empty({channels}, float32), var = at::empty({channels}, float32);
  const FrozenNorm norm(running_mean, running_var, weight, bias, eps);
  const Layout layout = channel_layout(input);
  Moments moments(segments_of(layout).count, channels);
  GDFQ_DISPATCH(input.scalar_type(), "batch_norm_stats",
                [&] { forward<scalar_t>(input, output, layout, norm, moments); });
  moments.finish(input.numel() / channels, mean.mutable_data_ptr<float>(),
                 var.mutable_data_ptr<float>());
  return {output, mean, var};
}

// ---- backward ----

template <typename scalar_t>
GDFQ_MULTIVERSION void backward_span(const scalar_t* dy, const scalar_t* x, scalar_t* dx, int64_t n,
                                     float mean, float a, float b, float c) {
  const f32x16 vmean = splat(mean), va = splat(a), vb = splat(b), vc = splat(c);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = load(dy + i, lanes) * va + (load(x + i, lanes) - vmean) * vb + vc;
    store(dx + i, v, lanes);
  }
}

template <typename scalar_t>
GDFQ_MULTIVERSION void backward_periodic(const scalar_t* dy, const scalar_t* x, scalar_t* dx,
                                         int64_t n, int64_t phase, int64_t period,
                                         const float* mean, const float* a, const float* b,
                                         const float* c) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 v = load(dy + i, lanes) * load(a + phase) +
                     (load(x + i, lanes) - load(mean + phase)) * load(b + phase) + load(c + phase);
    store(dx + i, v, lanes);
    phase = next_phase(phase, period);
  }
}

at::Tensor batch_norm_stats_backward(const at::Tensor& grad_y, const at::Tensor& grad_mean,
                                     const at::Tensor& grad_var, const at::Tensor& x,
                                     const at::Tensor& mean, const at::Tensor& running_var,
                                     const Optional& weight, double eps) {
  check_statistics_gradient(grad_y, grad_mean, grad_var, x, mean, running_var, weight);
  if (x.scalar_type() == at::kDouble)
    return backward_double(grad_y, grad_mean, grad_var, x, mean, running_var, weight, eps);
  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  const at::Tensor dy_dense = in_layout_of(grad_y.to(input.scalar_type()), input);
  const Layout layout = channel_layout(input);
  const int64_t period = layout.channels * layout.inner;
  const float count = static_cast<float>(input.numel() / layout.channels);
  std::vector<float> means = values(mean), a = factors(running_var, weight, eps);
  std::vector<float> b = values(grad_var), c = values(grad_mean);
  for (float& v : b) v = v * 2 / count;
  for (float& v : c) v = v / count;
  std::vector<float> pmeans, pa, pb, pc;
  if (has_short_runs(layout)) {
    pmeans = spread(means, layout.inner);
    pa = spread(a, layout.inner);
    pb = spread(b, layout.inner);
    pc = spread(c, layout.inner);
  }
  GDFQ_DISPATCH(input.scalar_type(), "batch_norm_stats_backward", [&] {
    const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* dx = output.mutable_data_ptr<scalar_t>();
    for_each_run(
        layout,
        [&](int64_t begin, int64_t end, int64_t ch) {
          backward_span(dy + begin, in + begin, dx + begin, end - begin, means[ch], a[ch], b[ch],
                        c[ch]);
        },
        [&](int64_t begin, int64_t end) {
          backward_periodic(dy + begin, in + begin, dx + begin, end - begin, begin % period, period,
                            pmeans.data(), pa.data(), pb.data(), pc.data());
        });
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("batch_norm_stats", batch_norm_stats);
  m.impl("batch_norm_stats_backward", batch_norm_stats_backward);
}

}  // namespace gdfq::cpu
