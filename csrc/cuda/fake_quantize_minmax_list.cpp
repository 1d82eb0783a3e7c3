// The dispatcher's side of fake_quantize_minmax_list on CUDA.

#include "fake_quantize_minmax_list.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "operators.h"
#include "row_lists.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

using Tensors = std::vector<at::Tensor>;

// Whether the launch for all takes a tensor: not where it is empty, float64 or its rows are
// scattered.
bool launched(const at::Tensor& w) { return w.scalar_type() != at::kDouble && has_rows(w); }

std::tuple<Tensors, Tensors, Tensors> fake_quantize_minmax_list(at::TensorList ws,
                                                                at::IntArrayRef bits,
                                                                c10::string_view ste,
                                                                bool zero_in_range) {
  check_weights(ws, bits);
  check_ste(ste);
  const size_t count = ws.size();
  if (count == 0) return {};
  const c10::cuda::CUDAGuard guard(ws[0].device());
  Tensors inputs(count), ys(count), los(count), his(count);
  Lists<QuantizedRows> lists;
  for (size_t t = 0; t < count; ++t) {
    inputs[t] = dense(ws[t]);
    const at::Tensor& input = inputs[t];
    if (!launched(input)) {
      std::tie(ys[t], los[t], his[t]) = fake_quantize_minmax(input, bits[t], 0, ste, zero_in_range);
      continue;
    }
    const int64_t rows = input.size(0);
    ys[t] = at::empty_like(input);
    los[t] = at::empty({rows}, input.options().dtype(at::kFloat));
    his[t] = at::empty_like(los[t]);
    lists.add(dtype_of(input),
              {input.const_data_ptr(), ys[t].mutable_data_ptr(), los[t].mutable_data_ptr<float>(),
               his[t].mutable_data_ptr<float>(), rows, input.numel() / rows,
               static_cast<int>(bits[t]), zero_in_range});
  }
  lists.launch(launch_fake_quantize_minmax_list);
  return {ys, los, his};
}

Tensors fake_quantize_minmax_list_backward(at::TensorList grads, at::TensorList ws,
                                           at::TensorList los, at::TensorList his,
                                           at::IntArrayRef bits) {
  check_weight_gradients(grads, ws, los, his, bits);
  const size_t count = ws.size();
  if (count == 0) return {};
  const c10::cuda::CUDAGuard guard(ws[0].device());
  Tensors inputs(count), dys(count), dws(count), float_los(count), float_his(count);
  Lists<ClippedRows> lists;
  for (size_t t = 0; t < count; ++t) {
    inputs[t] = dense(ws[t]);
    const at::Tensor& input = inputs[t];
    if (!launched(input)) {
      dws[t] = fake_quantize_backward(grads[t], input, los[t], his[t], bits[t], 0);
      continue;
    }
    const int64_t rows = input.size(0);
    dys[t] = in_layout_of(grads[t].to(input.scalar_type()), input);
    dws[t] = at::empty_like(input);
    float_los[t] = floats(los[t]);
    float_his[t] = floats(his[t]);
    lists.add(dtype_of(input),
              {dys[t].const_data_ptr(), input.const_data_ptr(), dws[t].mutable_data_ptr(),
               float_los[t].const_data_ptr<float>(), float_his[t].const_data_ptr<float>(), rows,
               input.numel() / rows, static_cast<int>(bits[t])});
  }
  lists.launch(launch_fake_quantize_minmax_list_backward);
  return dws;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("fake_quantize_minmax_list", fake_quantize_minmax_list);
  m.impl("fake_quantize_minmax_list_backward", fake_quantize_minmax_list_backward);
}

}  // namespace gdfq::cuda
