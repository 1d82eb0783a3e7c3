// Checks of arguments, for every native backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moving_range.h"

namespace gdfq {

inline void check_batch_norm(const at::Tensor& x, const at::Tensor& running_mean,
                             const at::Tensor& running_var, const std::optional<at::Tensor>& weight,
                             const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(x.dim() >= 2, "x must have at least 2 dimensions (N, C, ...), got ", x.dim());
  for (const std::optional<at::Tensor>& t :
       {std::optional(running_mean), std::optional(running_var), weight, bias})
    TORCH_CHECK(!t || t->numel() == x.size(1), "x has ", x.size(1),
                " channels, a vector of the batch norm has ", t ? t->numel() : 0);
  TORCH_CHECK(!residual || residual->sizes() == x.sizes(), "residual must have x's shape ",
              x.sizes(), ", got ", residual ? residual->sizes() : x.sizes());
}

// Pointers to the buffers.
inline MovingRange moving_range(const at::Tensor& average_lo, const at::Tensor& average_hi,
                                const at::Tensor& lo, const at::Tensor& hi,
                                const at::Tensor& num_batches_tracked) {
  TORCH_CHECK(num_batches_tracked.numel() == 1 && num_batches_tracked.scalar_type() == at::kLong,
              "num_batches_tracked must be one int64 number, got ",
              num_batches_tracked.scalar_type(), " of shape ", num_batches_tracked.sizes());
  const auto number = [](const at::Tensor& t, const char* name) {
    TORCH_CHECK(t.numel() == 1 && t.scalar_type() == at::kFloat, name,
                " must be one float32 number, got ", t.scalar_type(), " of shape ", t.sizes());
    return t.mutable_data_ptr<float>();
  };
  return {number(average_lo, "average_lo"), number(average_hi, "average_hi"), number(lo, "lo"),
          number(hi, "hi"), num_batches_tracked.mutable_data_ptr<int64_t>()};
}

// Of bns_loss: one entry per layer in each list.
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

}  // namespace gdfq
