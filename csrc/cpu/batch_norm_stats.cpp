// batch_norm_stats: y = (x - running_mean) * a + bias with a = weight / sqrt(running_var + eps),
// and the biased batch mean and variance of x, from one read of x.
//
// Memory is walked in chunks that stay in the first-level cache: one pass over the chunk sums it,
// the next takes sum(x - pivot) and sum((x - pivot)^2) about the chunk's own mean and writes y.
// From a pivot and those two sums, sum(x) and sum(x^2) follow exactly, and they are accumulated in
// float64, so a mean a thousand times the standard deviation costs no accuracy.
//
// Bytes: forward reads x and writes y once; backward, which needs no reduction because
//   dx = a * dy + (2 / M) * dvar * (x - mean) + dmean / M,
// reads dy and x and writes dx once. Tasks are cut by shape alone and their partial sums are merged
// in order, so the result does not depend on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "../batch_norm_stats_double.h"
#include "channels.h"
#include "layout.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

struct Affine {
  std::vector<float> shift, factor, bias;  // y = (x - shift) * factor + bias
};

struct Sums {
  double first = 0;   // sum of x
  double second = 0;  // sum of x^2

  void add(float pivot, double count, float sum, float square) {
    const double p = pivot;
    first += count * p + sum;
    second += square + 2 * p * sum + count * p * p;
  }
};

// ---- channels apart: runs of one channel ----

constexpr int64_t kChunk = 1024;

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_run(const scalar_t* x, scalar_t* y, int64_t n, float shift,
                                   float factor, float bias, Sums* sums) {
  const f32x16 vshift = splat(shift), vfactor = splat(factor), vbias = splat(bias);
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t count = std::min(kChunk, n - start);
    const int64_t whole = count / kLanes * kLanes;
    const int64_t rest = count - whole;
    const scalar_t* in = x + start;
    scalar_t* out = y + start;
    f32x16 total = {};
    for (int64_t i = 0; i < whole; i += kLanes) total += load(in + i);
    if (rest) total += load(in + whole, rest);
    const float pivot = sum(total) / static_cast<float>(count);

    const f32x16 vpivot = splat(pivot);
    f32x16 first = {}, second = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      const f32x16 v = load(in + i);
      const f32x16 d = v - vpivot;
      first += d;
      second += d * d;
      store(out + i, (v - vshift) * vfactor + vbias);
    }
    if (rest) {
      const f32x16 v = load(in + whole, rest);
      const f32x16 d = keep(lane_mask(rest), v - vpivot);
      first += d;
      second += d * d;
      store(out + whole, (v - vshift) * vfactor + vbias, rest);
    }
    sums->add(pivot, static_cast<double>(count), sum(first), sum(second));
  }
}

// ---- channels last: rows of all channels ----

template <typename scalar_t>
GDFQ_MULTIVERSION void forward_rows(const scalar_t* x, scalar_t* y, int64_t rows, int64_t channels,
                                    const float* shift, const float* factor, const float* bias,
                                    Sums* sums) {
  const int64_t chunk = std::max<int64_t>(16, 4096 / channels);
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t count = std::min(chunk, rows - start);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c);
      const scalar_t* in = x + start * channels + c;
      scalar_t* out = y + start * channels + c;
      f32x16 total = {};
      for (int64_t r = 0; r < count; ++r) total += load(in + r * channels, lanes);
      const f32x16 pivot = total / splat(static_cast<float>(count));

      const f32x16 vshift = load(shift + c, lanes), vfactor = load(factor + c, lanes);
      const f32x16 vbias = load(bias + c, lanes);
      f32x16 first = {}, second = {};
      for (int64_t r = 0; r < count; ++r) {
        const f32x16 v = load(in + r * channels, lanes);
        const f32x16 d = v - pivot;
        first += d;
        second += d * d;
        store(out + r * channels, (v - vshift) * vfactor + vbias, lanes);
      }
      for (int64_t lane = 0; lane < lanes; ++lane)
        sums[c + lane].add(pivot[lane], static_cast<double>(count), first[lane], second[lane]);
    }
  }
}

template <typename scalar_t>
void forward(const at::Tensor& input, at::Tensor& output, const Layout& layout,
             const Affine& affine, std::vector<Sums>& sums) {
  const scalar_t* x = input.const_data_ptr<scalar_t>();
  scalar_t* y = output.mutable_data_ptr<scalar_t>();
  const int64_t channels = layout.channels;
  const bool last = layout.inner == 1;
  // Pieces of the outer dimension: at most 64, of at least kGrain elements where runs are rows.
  const int64_t run = channels * layout.inner;
  const int64_t pieces =
      std::clamp<int64_t>(layout.outer * run / kGrain, 1, std::min<int64_t>(64, layout.outer));
  const int64_t per_piece = (layout.outer + pieces - 1) / pieces;
  // Few samples of large images: cut the channels too.
  const int64_t bands = last ? 1 : std::min<int64_t>(channels, (64 + pieces - 1) / pieces);
  const int64_t per_band = (channels + bands - 1) / bands;
  std::vector<Sums> partial(pieces * channels);

  const int64_t tasks = pieces * bands;
  const int64_t task_numel = std::max<int64_t>(1, per_piece * per_band * layout.inner);
  const int64_t grain = std::max<int64_t>(1, kGrain / task_numel);
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t piece = task / bands, band = task % bands;
      const int64_t from = piece * per_piece;
      const int64_t to = std::min(layout.outer, from + per_piece);
      Sums* own = partial.data() + piece * channels;
      if (last) {
        if (from < to)
          forward_rows(x + from * channels, y + from * channels, to - from, channels,
                       affine.shift.data(), affine.factor.data(), affine.bias.data(), own);
        continue;
      }
      for (int64_t o = from; o < to; ++o)
        for (int64_t c = band * per_band; c < std::min(channels, (band + 1) * per_band); ++c) {
          const int64_t offset = o * run + c * layout.inner;
          forward_run(x + offset, y + offset, layout.inner, affine.shift[c], affine.factor[c],
                      affine.bias[c], own + c);
        }
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t c = 0; c < channels; ++c) {
      sums[c].first += partial[piece * channels + c].first;
      sums[c].second += partial[piece * channels + c].second;
    }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_stats(
    const at::Tensor& x, const at::Tensor& running_mean, const at::Tensor& running_var,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps) {
  TORCH_CHECK(x.dim() >= 2, "x must have at least 2 dimensions (N, C, ...), got ", x.dim());
  const int64_t channels = x.size(1);
  for (const auto& t : {running_mean, running_var})
    TORCH_CHECK(t.numel() == channels, "x has ", channels, " channels, a statistic has ",
                t.numel());
  for (const auto& t : {weight, bias})
    TORCH_CHECK(!t || t->numel() == channels, "x has ", channels, " channels, weight or bias has ",
                t ? t->numel() : 0);
  TORCH_CHECK(x.numel() > 0, "x must not be empty: a batch of none has no statistics");
  if (x.scalar_type() == at::kDouble)
    return forward_double(x, running_mean, running_var, weight, bias, eps);

  const at::Tensor input = walkable(x);
  at::Tensor output = at::empty_like(input, input.suggest_memory_format());
  const auto float32 = input.options().dtype(at::kFloat).memory_format(std::nullopt);
  at::Tensor mean = at::empty({channels}, float32), var = at::empty({channels}, float32);
  Affine affine{values(running_mean), factors(running_var, weight, eps),
                bias ? values(*bias) : std::vector<float>(channels, 0)};
  const Layout layout = channel_layout(input);
  std::vector<Sums> sums(channels);
  AT_DISPATCH_SWITCH(input.scalar_type(), "batch_norm_stats", AT_DISPATCH_CASE(at::kFloat, [&] {
                       forward<scalar_t>(input, output, layout, affine, sums);
                     }) AT_DISPATCH_CASE(at::kHalf, [&] {
                       forward<scalar_t>(input, output, layout, affine, sums);
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
                       forward<scalar_t>(input, output, layout, affine, sums);
                     }));
  const double count = static_cast<double>(input.numel() / channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double average = sums[c].first / count;
    const double variance = sums[c].second / count - average * average;
    mean.mutable_data_ptr<float>()[c] = static_cast<float>(average);
    var.mutable_data_ptr<float>()[c] = static_cast<float>(variance < 0 ? 0 : variance);
  }
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
    phase = (phase + kLanes) % period;
  }
}

at::Tensor batch_norm_stats_backward(const at::Tensor& grad_y, const at::Tensor& grad_mean,
                                     const at::Tensor& grad_var, const at::Tensor& x,
                                     const at::Tensor& mean, const at::Tensor& running_var,
                                     const std::optional<at::Tensor>& weight, double eps) {
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
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "batch_norm_stats_backward", [&] {
        const scalar_t* dy = dy_dense.const_data_ptr<scalar_t>();
        const scalar_t* in = input.const_data_ptr<scalar_t>();
        scalar_t* dx = output.mutable_data_ptr<scalar_t>();
        for_each_run(
            layout,
            [&](int64_t begin, int64_t end, int64_t ch) {
              backward_span(dy + begin, in + begin, dx + begin, end - begin, means[ch], a[ch],
                            b[ch], c[ch]);
            },
            [&](int64_t begin, int64_t end) {
              backward_periodic(dy + begin, in + begin, dx + begin, end - begin, begin % period,
                                period, pmeans.data(), pa.data(), pb.data(), pc.data());
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
