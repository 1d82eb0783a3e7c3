// Tensors as the memory that kernels walk, for every native backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <optional>

#include "layout.h"

namespace gdfq {

using Optional = std::optional<at::Tensor>;

// Kernels compute in float32: float64 is rounded to it first, and a result is widened again.
inline at::Tensor narrowed(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? x.to(at::kFloat) : x;
}

inline Optional narrowed(const Optional& x) { return x ? Optional(narrowed(*x)) : std::nullopt; }

// float32, contiguous: a copy only if it isn't already.
inline at::Tensor floats(const at::Tensor& t) { return t.to(at::kFloat).contiguous(); }

inline Optional floats(const Optional& t) { return t ? Optional(floats(*t)) : std::nullopt; }

// `like` decides shape and strides; a tensor that already has them is returned as it is.
inline at::Tensor in_layout_of(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides() && tensor.is_non_overlapping_and_dense()) return tensor;
  return at::empty_like(like, like.options().dtype(tensor.scalar_type())).copy_(tensor);
}

// The residual in the dtype and layout of `input`.
inline Optional residual_of(const Optional& residual, const at::Tensor& input) {
  return residual ? Optional(in_layout_of(residual->to(input.scalar_type()), input)) : std::nullopt;
}

inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

inline Layout layout_of(const at::Tensor& tensor, std::optional<int64_t> axis) {
  if (!axis.has_value() || tensor.size(*axis) == 1) return {1, 1, tensor.numel()};
  const int64_t channels = tensor.size(*axis);
  const int64_t inner = tensor.stride(*axis);
  return {tensor.numel() / (channels * inner), channels, inner};
}

// Whether the entries of dimension 0 follow each other in a dense tensor's memory.
inline bool has_rows(const at::Tensor& tensor) {
  return tensor.numel() > 0 && layout_of(tensor, 0).outer == 1;
}

// Activations, whose channel axis is 1; (N, C) counts as channels last.
inline Layout channel_layout(const at::Tensor& x) {
  const int64_t channels = x.size(1);
  if (channels == 1) return {x.size(0), 1, x.numel() / x.size(0)};
  return layout_of(x, 1);
}

// Contiguous or channels last, which the activation kernels walk.
inline at::Tensor walkable(const at::Tensor& x) { return x.contiguous(x.suggest_memory_format()); }

}  // namespace gdfq
