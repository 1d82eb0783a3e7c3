// fake_quantize_minmax_list: every entry of dimension 0 of every tensor is quantized over its own
// minimum and maximum, and the clip estimator's gradient.
//
// All rows of all tensors are one list, which threads share by its elements, so that a network of
// many small weights is one parallel section. Bytes: each weight is read once from memory and once
// more from cache, each result written once; the gradient reads both and writes one. Rows are
// independent, so the result does not depend on the number of threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "layout.h"
#include "minmax.h"
#include "operators.h"
#include "rows.h"

namespace gdfq::cpu {
namespace {

using Lists = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>>;

Lists fake_quantize_minmax_list(at::TensorList ws, at::IntArrayRef bits, c10::string_view ste,
                                bool zero_in_range) {
  check_weights(ws, bits);
  check_ste(ste);
  const size_t count = ws.size();
  std::vector<at::Tensor> inputs(count), ys(count), los(count), his(count);
  for (size_t t = 0; t < count; ++t) {
    const at::Tensor input = dense(narrowed(ws[t]));
    if (!has_rows(input)) {  // empty, or rows are scattered
      std::tie(ys[t], los[t], his[t]) = fake_quantize_minmax(input, bits[t], 0, ste, zero_in_range);
      continue;
    }
    inputs[t] = input;
    ys[t] = at::empty_like(input);
    los[t] = at::empty({input.size(0)}, input.options().dtype(at::kFloat));
    his[t] = at::empty_like(los[t]);
  }
  Rows(inputs).for_each([&](const Row& row) {
    const at::Tensor& input = inputs[row.tensor];
    const int64_t inner = input.numel() / input.size(0), offset = row.index * inner;
    GDFQ_DISPATCH(input.scalar_type(), "fake_quantize_minmax_list", [&] {
      const scalar_t* in = input.const_data_ptr<scalar_t>() + offset;
      scalar_t* out = ys[row.tensor].mutable_data_ptr<scalar_t>() + offset;
      MinMax range = minmax(in, inner);
      if (zero_in_range) contain_zero(range.lo, range.hi);
      los[row.tensor].mutable_data_ptr<float>()[row.index] = range.lo;
      his[row.tensor].mutable_data_ptr<float>()[row.index] = range.hi;
      quantize_over(in, out, inner, range, static_cast<int>(bits[row.tensor]));
    });
  });
  for (size_t t = 0; t < count; ++t) ys[t] = ys[t].to(ws[t].scalar_type());
  return {ys, los, his};
}

template <typename scalar_t>
GDFQ_MULTIVERSION void gradient_row(const scalar_t* dy, const scalar_t* w, scalar_t* dw, int64_t n,
                                    float lo, float hi, int bits) {
  const Grid grid = make_grid(lo, hi, bits);
  const CodeBounds bounds = code_bounds(bits);
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    store(dw + i,
          clip_gradient(load(dy + i, lanes), load(w + i, lanes), inv_scale, zero, code_lo, code_hi),
          lanes);
  }
}

std::vector<at::Tensor> fake_quantize_minmax_list_backward(at::TensorList grads, at::TensorList ws,
                                                           at::TensorList los, at::TensorList his,
                                                           at::IntArrayRef bits) {
  check_weight_gradients(grads, ws, los, his, bits);
  const size_t count = ws.size();
  std::vector<at::Tensor> inputs(count), dys(count), dws(count), float_los(count), float_his(count);
  for (size_t t = 0; t < count; ++t) {
    const at::Tensor input = dense(narrowed(ws[t]));
    if (!has_rows(input)) {
      dws[t] = fake_quantize_backward(grads[t], input, los[t], his[t], bits[t], 0);
      continue;
    }
    inputs[t] = input;
    dys[t] = in_layout_of(grads[t].to(input.scalar_type()), input);
    dws[t] = at::empty_like(input);
    float_los[t] = floats(los[t]);
    float_his[t] = floats(his[t]);
  }
  Rows(inputs).for_each([&](const Row& row) {
    const at::Tensor& input = inputs[row.tensor];
    const int64_t inner = input.numel() / input.size(0), offset = row.index * inner;
    GDFQ_DISPATCH(input.scalar_type(), "fake_quantize_minmax_list_backward", [&] {
      gradient_row(dys[row.tensor].const_data_ptr<scalar_t>() + offset,
                   input.const_data_ptr<scalar_t>() + offset,
                   dws[row.tensor].mutable_data_ptr<scalar_t>() + offset, inner,
                   float_los[row.tensor].const_data_ptr<float>()[row.index],
                   float_his[row.tensor].const_data_ptr<float>()[row.index],
                   static_cast<int>(bits[row.tensor]));
    });
  });
  for (size_t t = 0; t < count; ++t) dws[t] = dws[t].to(ws[t].scalar_type());
  return dws;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("fake_quantize_minmax_list", fake_quantize_minmax_list);
  m.impl("fake_quantize_minmax_list_backward", fake_quantize_minmax_list_backward);
}

}  // namespace gdfq::cpu
