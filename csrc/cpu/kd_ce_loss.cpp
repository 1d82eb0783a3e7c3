// kd_ce_loss: mean over the batch of -sum_k y_k log softmax(s)_k, plus alpha * T^2 times the mean
// over batch and classes of p_t (log p_t - log p_s), p = softmax(logits / T); and its gradient
//   [softmax(s) * sum_k y_k - y] / B + alpha * T / (B * K) * (softmax(s / T) - softmax(t / T)).
//
// One thread takes a row: one walk finds both maxima, one takes the exponentials and every sum,
// one writes the gradient from exponentials kept on chip. Bytes: both logits (and soft labels)
// read once, the gradient written once. Float64 throughout: at high temperatures the two
// distributions nearly agree, and float32 would lose the divergence in its own rounding. Rows are
// independent and added in order, so the result does not depend on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "scalar_result.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

constexpr int64_t kWide = 8;

typedef double f64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8 __attribute__((vector_size(64)));

GDFQ_INLINE f64x8 load_wide(const double* p) {
  f64x8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

GDFQ_INLINE void store_wide(double* p, f64x8 v) { std::memcpy(p, &v, sizeof(v)); }

GDFQ_INLINE double sum_wide(f64x8 v) {
  double total = 0;
  for (int64_t lane = 0; lane < kWide; ++lane) total += v[lane];
  return total;
}

// exp(v) for v <= 0, to 1e-14 relative; NaN stays, below -708 it is exp(-708).
GDFQ_INLINE f64x8 exp_nonpositive(f64x8 v) {
  const f64x8 floor = f64x8{} - 708.0;
  v = v < floor ? floor : v;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds, and leaves n in the low bits
  const f64x8 shifted = v * 1.4426950408889634 + magic;
  const f64x8 n = shifted - magic;
  const f64x8 r = (v - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  f64x8 p = f64x8{} + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * bit_cast<f64x8>((bit_cast<i64x8>(shifted) + 1023) << 52);
}

struct Row {
  double cross_entropy;
  double divergence;
};

// `work` has room for 6 padded rows: student, teacher and label, then the three exponentials.
GDFQ_MULTIVERSION Row loss_row(double* work, int64_t padded, int64_t classes, double label_sum,
                               double temperature, double weight, double batch) {
  double *s = work, *t = s + padded, *label = t + padded;
  double *es = label + padded, *es_soft = es + padded, *et_soft = es_soft + padded;
  // Padding repeats the first class for the maxima.
  for (int64_t k = classes; k < padded; ++k) {
    s[k] = s[0];
    t[k] = t[0];
    label[k] = 0;
  }
  f64x8 high_s = load_wide(s), high_t = load_wide(t);
  for (int64_t k = kWide; k < padded; k += kWide) {
    const f64x8 vs = load_wide(s + k), vt = load_wide(t + k);
    high_s = vs > high_s ? vs : high_s;
    high_t = vt > high_t ? vt : high_t;
  }
  double max_s = high_s[0], max_t = high_t[0];
  for (int64_t lane = 1; lane < kWide; ++lane) {
    max_s = high_s[lane] > max_s ? high_s[lane] : max_s;
    max_t = high_t[lane] > max_t ? high_t[lane] : max_t;
  }
  // Then it adds exp(-708) to sums of at least 1: negligible.
  for (int64_t k = classes; k < padded; ++k) {
    s[k] = max_s - 1e30;
    t[k] = max_t - 1e30;
  }
  const double coolness = 1 / temperature;
  f64x8 total = {}, total_s = {}, total_t = {}, gap = {}, agreement = {};
  for (int64_t k = 0; k < padded; k += kWide) {
    const f64x8 vs = load_wide(s + k) - max_s, vt = load_wide(t + k) - max_t;
    const f64x8 a = exp_nonpositive(vs);
    const f64x8 b = exp_nonpositive(vs * coolness), c = exp_nonpositive(vt * coolness);
    store_wide(es + k, a);
    store_wide(es_soft + k, b);
    store_wide(et_soft + k, c);
    total += a;
    total_s += b;
    total_t += c;
    gap += c * (vt - vs);
    agreement += load_wide(label + k) * vs;
  }
  const double z = sum_wide(total), z_s = sum_wide(total_s), z_t = sum_wide(total_t);
  const double hard = label_sum / (z * batch), soft_s = weight / z_s, soft_t = weight / z_t;
  for (int64_t k = 0; k < padded; k += kWide)
    store_wide(es + k, load_wide(es + k) * hard - load_wide(label + k) * (1 / batch) +
                           (load_wide(es_soft + k) * soft_s - load_wide(et_soft + k) * soft_t));
  return {label_sum * std::log(z) - sum_wide(agreement),
          sum_wide(gap) / (temperature * z_t) + std::log(z_s) - std::log(z_t)};
}

std::tuple<at::Tensor, at::Tensor> kd_ce_loss(const at::Tensor& student_logits,
                                              const at::Tensor& teacher_logits,
                                              const at::Tensor& labels, double temperature,
                                              double alpha) {
  check_logits(student_logits, teacher_logits, labels);
  const int64_t batch = student_logits.size(0), classes = student_logits.size(1);
  const bool hard = labels.dim() == 1;
  const at::Tensor targets =
      hard ? labels.to(at::kLong).contiguous() : labels.to(at::kDouble).contiguous();
  const at::Tensor student = student_logits.contiguous();
  const at::Tensor teacher = teacher_logits.to(student.scalar_type()).contiguous();
  const bool wide = student.scalar_type() == at::kDouble;
  const auto options = student.options().dtype(wide ? at::kDouble : at::kFloat);
  at::Tensor gradient = at::empty({batch, classes}, options);
  if (hard)
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t label = targets.const_data_ptr<int64_t>()[b];
      TORCH_CHECK_INDEX(label >= 0 && label < classes, "labels[", b, "] is ", label,
                        ", but there are ", classes, " classes");
    }

  std::vector<Row> rows(batch);
  const int64_t padded = (classes + kWide - 1) / kWide * kWide;
  const double elements = static_cast<double>(batch) * static_cast<double>(classes);
  const double weight = alpha * temperature / elements;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, student.scalar_type(), "kd_ce_loss", [&] {
        const scalar_t* s = student.const_data_ptr<scalar_t>();
        const scalar_t* t = teacher.const_data_ptr<scalar_t>();
        const int64_t grain = std::max<int64_t>(1, 4096 / padded);
        at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
          std::vector<double> work(6 * padded);
          double* label = work.data() + 2 * padded;
          for (int64_t b = begin; b < end; ++b) {
            std::copy(s + b * classes, s + (b + 1) * classes, work.data());
            std::copy(t + b * classes, t + (b + 1) * classes, work.data() + padded);
            double label_sum = 1;
            if (hard) {
              std::fill(label, label + classes, 0.0);
              label[targets.const_data_ptr<int64_t>()[b]] = 1;
            } else {
              const double* y = targets.const_data_ptr<double>() + b * classes;
              label_sum = 0;
              for (int64_t k = 0; k < classes; ++k) label_sum += label[k] = y[k];
            }
            rows[b] = loss_row(work.data(), padded, classes, label_sum, temperature, weight,
                               static_cast<double>(batch));
            const double* result = work.data() + 3 * padded;
            if (wide)
              std::copy(result, result + classes,
                        gradient.mutable_data_ptr<double>() + b * classes);
            else
              std::copy(result, result + classes, gradient.mutable_data_ptr<float>() + b * classes);
          }
        });
      });
  double cross_entropy = 0, divergence = 0;
  for (const Row& row : rows) {
    cross_entropy += row.cross_entropy;
    divergence += row.divergence;
  }
  const double loss = cross_entropy / static_cast<double>(batch) +
                      alpha * temperature * temperature * divergence / elements;
  return {scalar_result(loss, options), gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("kd_ce_loss", kd_ce_loss); }

}  // namespace gdfq::cpu
