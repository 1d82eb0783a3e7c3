// The dispatcher's side of count_changed_codes on CUDA.

#include "count_changed_codes.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "row_lists.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

at::Tensor count_changed_codes(at::TensorList ws, at::TensorList updates, const at::Tensor& factors,
                               at::TensorList los, at::TensorList his, at::IntArrayRef bits) {
  check_weight_updates(updates, ws, factors, los, his, bits);
  const size_t count = ws.size();
  const c10::cuda::CUDAGuard guard(factors.device());
  const at::Tensor factor = floats(factors);
  at::Tensor counts = at::zeros({static_cast<int64_t>(count)}, factors.options().dtype(at::kLong));
  std::vector<at::Tensor> inputs(count), moves(count), float_los(count), float_his(count);
  Lists<ComparedRows> lists;
  for (size_t t = 0; t < count; ++t) {
    if (ws[t].numel() == 0) continue;
    inputs[t] = dense(narrowed(ws[t]));
    if (!has_rows(inputs[t])) inputs[t] = inputs[t].contiguous();
    const at::Tensor& input = inputs[t];
    const int64_t rows = input.size(0);
    moves[t] = in_layout_of(updates[t].to(input.scalar_type()), input);
    float_los[t] = floats(los[t]);
    float_his[t] = floats(his[t]);
    lists.add(dtype_of(input),
              {input.const_data_ptr(), moves[t].const_data_ptr(),
               factor.const_data_ptr<float>() + t, float_los[t].const_data_ptr<float>(),
               float_his[t].const_data_ptr<float>(), counts.mutable_data_ptr<int64_t>() + t, rows,
               input.numel() / rows, static_cast<int>(bits[t])});
  }
  lists.launch(launch_count_changed_codes);
  return counts;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) { m.impl("count_changed_codes", count_changed_codes); }

}  // namespace gdfq::cuda
