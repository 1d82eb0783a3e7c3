// Checks of arguments, for every native backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <c10/util/accumulate.h>

#include <optional>

#include "activation.h"
#include "dense.h"
#include "moving_range.h"

namespace gdfq {

inline void check_bits(int64_t bits) {
  TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be 2 to 8, got ", bits);
}

inline Activation activation(c10::string_view act) {
  if (act == "relu") return Activation::relu;
  if (act == "relu6") return Activation::relu6;
  TORCH_CHECK(act == "none", "act must be relu, relu6 or none, got ", act);
  return Activation::none;
}

inline void check_ste(c10::string_view ste) {
  TORCH_CHECK(ste == "identity" || ste == "clip", "ste must be identity or clip, got ", ste);
}

// Kernels walk the gradient as they walk x.
inline void check_gradient(const at::Tensor& grad, const char* name, const at::Tensor& x) {
  TORCH_CHECK(grad.sizes() == x.sizes(), name, " must have x's shape ", x.sizes(), ", got ",
              grad.sizes());
}

// One range per entry of the axis, or one for all of x.
inline void check_range(const at::Tensor& lo, const at::Tensor& hi, int64_t bits,
                        const at::Tensor& x, std::optional<int64_t> axis) {
  for (const at::Tensor& bound : {lo, hi})
    TORCH_CHECK(axis ? bound.dim() == 1 && bound.size(0) == x.size(*axis) : bound.dim() == 0,
                "lo and hi must have ", axis ? x.size(*axis) : 1, axis ? " entries" : " number",
                " each for x of shape ", x.sizes(), ", got shape ", bound.sizes());
  check_bits(bits);
}

// For fake_quantize_minmax_list: one number of bits per tensor.
inline void check_weights(at::TensorList ws, at::IntArrayRef bits) {
  TORCH_CHECK(bits.size() == ws.size(), "bits must have one entry per tensor, got ", bits.size(),
              " for ", ws.size());
  for (const int64_t b : bits) check_bits(b);
  for (const at::Tensor& w : ws)
    TORCH_CHECK(w.dim() > 0, "ws must have at least one dimension each, got a 0-d tensor");
}

inline void check_weight_gradients(at::TensorList grads, at::TensorList ws, at::TensorList los,
                                   at::TensorList his, at::IntArrayRef bits) {
  check_weights(ws, bits);
  const size_t count = ws.size();
  TORCH_CHECK(grads.size() == count && los.size() == count && his.size() == count,
              "grads, ws, los and his must be of one length, got ", grads.size(), ", ", count, ", ",
              los.size(), " and ", his.size());
  for (size_t t = 0; t < count; ++t) {
    check_gradient(grads[t], "grad", ws[t]);
    check_range(los[t], his[t], bits[t], ws[t], 0);
  }
}

// For count_changed_codes: one factor per tensor.
inline void check_weight_updates(at::TensorList updates, at::TensorList ws,
                                 const at::Tensor& factors, at::TensorList los, at::TensorList his,
                                 at::IntArrayRef bits) {
  check_weights(ws, bits);
  const size_t count = ws.size();
  TORCH_CHECK(updates.size() == count && los.size() == count && his.size() == count,
              "updates, ws, los and his must be of one length, got ", updates.size(), ", ", count,
              ", ", los.size(), " and ", his.size());
  TORCH_CHECK(factors.dim() == 1 && factors.size(0) == static_cast<int64_t>(count),
              "factors must be one number for each of ", count, " tensors, got shape ",
              factors.sizes());
  for (size_t t = 0; t < count; ++t) {
    check_gradient(updates[t], "update", ws[t]);
    check_range(los[t], his[t], bits[t], ws[t], 0);
  }
}

inline void check_channels(const Optional& t, const char* name, const at::Tensor& x) {
  TORCH_CHECK(!t || (t->dim() == 1 && t->size(0) == x.size(1)), name, " must be one number for ",
              "each channel of x of shape ", x.sizes(), ", got shape ", t ? t->sizes() : x.sizes());
}

inline void check_batch_norm(const at::Tensor& x, const at::Tensor& running_mean,
                             const at::Tensor& running_var, const Optional& weight,
                             const Optional& bias, const Optional& residual) {
  TORCH_CHECK(x.dim() >= 2, "x must have at least 2 dimensions (N, C, ...), got ", x.dim());
  check_channels(running_mean, "running_mean", x);
  check_channels(running_var, "running_var", x);
  check_channels(weight, "weight", x);
  check_channels(bias, "bias", x);
  TORCH_CHECK(!residual || residual->sizes() == x.sizes(), "residual must have x's shape ",
              x.sizes(), ", got ", residual ? residual->sizes() : x.sizes());
}

// For batch_norm_stats.
inline void check_statistics(const at::Tensor& x, const at::Tensor& running_mean,
                             const at::Tensor& running_var, const Optional& weight,
                             const Optional& bias) {
  check_batch_norm(x, running_mean, running_var, weight, bias, std::nullopt);
  TORCH_CHECK(x.numel() > 0, "x must not be empty: a batch of none has no statistics");
}

inline void check_statistics_gradient(const at::Tensor& grad_y, const at::Tensor& grad_mean,
                                      const at::Tensor& grad_var, const at::Tensor& x,
                                      const at::Tensor& mean, const at::Tensor& running_var,
                                      const Optional& weight) {
  check_statistics(x, mean, running_var, weight, std::nullopt);
  check_gradient(grad_y, "grad_y", x);
  check_channels(grad_mean, "grad_mean", x);
  check_channels(grad_var, "grad_var", x);
}

// For bn_leaky_relu, which has no statistics yet; weight and bias may be per sample.
inline void check_batch_affine(const at::Tensor& x, const Optional& weight, const Optional& bias,
                               double negative_slope) {
  TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "x must be (N, C, ...) and not empty, got ",
              x.sizes());
  TORCH_CHECK(x.scalar_type() != at::kDouble, "x must be float32, float16 or bfloat16");
  for (const auto& t : {weight, bias})
    TORCH_CHECK(!t || (t->dim() == 1 && t->size(0) == x.size(1)) ||
                    (t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(1)),
                "weight and bias must be (C) or (N, C) for x of shape ", x.sizes(), ", got ",
                t ? t->sizes() : x.sizes());
  TORCH_CHECK(negative_slope >= 0 && negative_slope <= 1, "negative_slope must be 0 to 1, got ",
              negative_slope);
}

inline void check_batch_affine_gradient(const at::Tensor& grad, const at::Tensor& x,
                                        const at::Tensor& mean, const at::Tensor& var,
                                        const Optional& weight, const Optional& bias,
                                        double negative_slope) {
  check_batch_affine(x, weight, bias, negative_slope);
  check_gradient(grad, "grad", x);
  check_channels(mean, "mean", x);
  check_channels(var, "var", x);
}

// Returns pointers to the buffers.
inline MovingRange moving_range(const at::Tensor& average_lo, const at::Tensor& average_hi,
                                const at::Tensor& lo, const at::Tensor& hi,
                                const at::Tensor& num_batches_tracked, bool zero_in_range) {
  TORCH_CHECK(num_batches_tracked.dim() == 0 && num_batches_tracked.scalar_type() == at::kLong,
              "num_batches_tracked must be one int64 number, got ",
              num_batches_tracked.scalar_type(), " of shape ", num_batches_tracked.sizes());
  const auto number = [](const at::Tensor& t, const char* name) {
    TORCH_CHECK(t.dim() == 0 && t.scalar_type() == at::kFloat, name,
                " must be one float32 number, got ", t.scalar_type(), " of shape ", t.sizes());
    return t.mutable_data_ptr<float>();
  };
  return {number(average_lo, "average_lo"),
          number(average_hi, "average_hi"),
          number(lo, "lo"),
          number(hi, "hi"),
          num_batches_tracked.mutable_data_ptr<int64_t>(),
          zero_in_range};
}

// For bns_loss: one entry per layer in each list.
inline void check_layers(at::TensorList means, at::TensorList vars, at::TensorList running_means,
                         at::TensorList running_vars) {
  const size_t layers = means.size();
  TORCH_CHECK(layers > 0, "means must hold at least one layer");
  TORCH_CHECK(
      vars.size() == layers && running_means.size() == layers && running_vars.size() == layers,
      "means, vars, running_means and running_vars must be of one length, got ", layers, ", ",
      vars.size(), ", ", running_means.size(), " and ", running_vars.size());
  for (size_t l = 0; l < layers; ++l)
    TORCH_CHECK(vars[l].sizes() == means[l].sizes() &&
                    running_means[l].sizes() == means[l].sizes() &&
                    running_vars[l].sizes() == means[l].sizes(),
                "layer ", l, ": statistics must have one shape, got ", means[l].sizes(), ", ",
                vars[l].sizes(), ", ", running_means[l].sizes(), " and ", running_vars[l].sizes());
}

inline void check_logits(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                         const at::Tensor& labels) {
  TORCH_CHECK(student_logits.dim() == 2 && student_logits.sizes() == teacher_logits.sizes(),
              "student_logits and teacher_logits must have one shape (B, K), got ",
              student_logits.sizes(), " and ", teacher_logits.sizes());
  TORCH_CHECK(student_logits.numel() > 0, "student_logits must not be empty, got ",
              student_logits.sizes());
  TORCH_CHECK(labels.dim() == 1 ? labels.size(0) == student_logits.size(0)
                                : labels.sizes() == student_logits.sizes(),
              "labels must be (B) or (B, K) for logits ", student_logits.sizes(), ", got ",
              labels.sizes());
}

inline void check_packed_bits(int64_t bits) {
  TORCH_CHECK(bits >= 2 && bits <= 7, "bits must be 2 to 7, got ", bits);
}

inline void check_codes(const at::Tensor& codes, int64_t bits) {
  TORCH_CHECK(codes.scalar_type() == at::kChar, "codes must be int8, got ", codes.scalar_type());
  check_packed_bits(bits);
}

inline void check_packed(const at::Tensor& packed, int64_t bits, at::IntArrayRef shape) {
  TORCH_CHECK(packed.scalar_type() == at::kByte, "packed must be uint8, got ",
              packed.scalar_type());
  check_packed_bits(bits);
  const int64_t numel = c10::multiply_integers(shape);
  TORCH_CHECK(packed.numel() == (numel * bits + 7) / 8, "packed must have ", (numel * bits + 7) / 8,
              " bytes for ", numel, " codes of ", bits, " bits, got ", packed.numel());
}

}  // namespace gdfq
