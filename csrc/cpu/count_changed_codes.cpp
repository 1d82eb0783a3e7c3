// count_changed_codes: the number of elements of each tensor whose codes differ between w and
// w - factor * update, over given ranges of the entries of dimension 0.
//
// All rows of all tensors are one list, which threads share by its elements. Bytes: weight and
// update are read once; only a number per tensor is written. Counts are integers, so the
// result does not depend on the number of threads.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "../checks.h"
#include "../dense.h"
#include "rows.h"
#include "simd.h"

namespace gdfq::cpu {
namespace {

template <typename scalar_t>
GDFQ_MULTIVERSION int64_t changed_in_row(const scalar_t* w, const scalar_t* update, int64_t n,
                                         float factor, float lo, float hi, int bits) {
  const Grid grid = make_grid(lo, hi, bits);
  const CodeBounds bounds = code_bounds(bits);
  const f32x16 inv_scale = splat(grid.inv_scale), zero = splat(grid.zero), factors = splat(factor);
  const f32x16 code_lo = splat(bounds.lo), code_hi = splat(bounds.hi);
  i32x16 changed{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min(kLanes, n - i);
    const f32x16 before = load(w + i, lanes);
    const f32x16 after = sub_rn(before, mul_rn(factors, load(update + i, lanes)));
    const f32x16 difference = code_of(before, inv_scale, zero, code_lo, code_hi) -
                              code_of(after, inv_scale, zero, code_lo, code_hi);
    // All ones, which is -1, where the difference is not 0.
    changed += (-(bit_cast<i32x16>(difference) & 0x7fffffff) >> 31) & lane_mask(lanes);
  }
  int64_t total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total -= changed[lane];
  return total;
}

at::Tensor count_changed_codes(at::TensorList ws, at::TensorList updates, const at::Tensor& factors,
                               at::TensorList los, at::TensorList his, at::IntArrayRef bits) {
  check_weight_updates(updates, ws, factors, los, his, bits);
  const size_t count = ws.size();
  const at::Tensor factor = floats(factors);
  at::Tensor counts = at::zeros({static_cast<int64_t>(count)}, factors.options().dtype(at::kLong));
  std::vector<at::Tensor> inputs(count), moves(count), float_los(count), float_his(count);
  for (size_t t = 0; t < count; ++t) {
    if (ws[t].numel() == 0) continue;
    const at::Tensor input = dense(narrowed(ws[t]));
    inputs[t] = has_rows(input) ? input : input.contiguous();
    moves[t] = in_layout_of(updates[t].to(input.scalar_type()), inputs[t]);
    float_los[t] = floats(los[t]);
    float_his[t] = floats(his[t]);
  }
  int64_t* const totals = counts.mutable_data_ptr<int64_t>();
  Rows(inputs).for_each([&](const Row& row) {
    const at::Tensor& input = inputs[row.tensor];
    const int64_t inner = input.numel() / input.size(0), offset = row.index * inner;
    GDFQ_DISPATCH(input.scalar_type(), "count_changed_codes", [&] {
      const int64_t changed =
          changed_in_row(input.const_data_ptr<scalar_t>() + offset,
                         moves[row.tensor].const_data_ptr<scalar_t>() + offset, inner,
                         factor.const_data_ptr<float>()[row.tensor],
                         float_los[row.tensor].const_data_ptr<float>()[row.index],
                         float_his[row.tensor].const_data_ptr<float>()[row.index],
                         static_cast<int>(bits[row.tensor]));
      std::atomic_ref<int64_t>(totals[row.tensor]).fetch_add(changed, std::memory_order_relaxed);
    });
  });
  return counts;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) { m.impl("count_changed_codes", count_changed_codes); }

}  // namespace gdfq::cpu
