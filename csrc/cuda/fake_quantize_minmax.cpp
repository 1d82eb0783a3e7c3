// The dispatcher's side of fake_quantize_minmax on CUDA.

#include "fake_quantize_minmax.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "../minmax.h"
#include "operators.h"
#include "tensor.h"

namespace gdfq::cuda {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_minmax(const at::Tensor& w,
                                                                    int64_t bits,
                                                                    std::optional<int64_t> axis,
                                                                    c10::string_view ste,
                                                                    bool zero_in_range) {
  check_bits(bits);
  check_ste(ste);
  if (w.scalar_type() == at::kDouble) {
    auto [y, lo, hi] = fake_quantize_minmax(w.to(at::kFloat), bits, axis, ste, zero_in_range);
    return {y.to(at::kDouble), lo, hi};
  }
  const c10::cuda::CUDAGuard guard(w.device());
  const at::Tensor input = dense(w);
  const auto float32 = input.options().dtype(at::kFloat);
  if (input.numel() == 0 || !axis || layout_of(input, axis).outer != 1) {
    // One range for everything, or an axis whose entries are scattered: two operators.
    const auto [lo, hi] = minmax_along(input, axis, zero_in_range);
    return {fake_quantize(input, lo, hi, bits, axis, ste), lo, hi};
  }
  const int64_t rows = input.size(*axis);
  at::Tensor output = at::empty_like(input);
  at::Tensor lo = at::empty({rows}, float32), hi = at::empty({rows}, float32);
  C10_CUDA_CHECK(launch_fake_quantize_minmax(
      dtype_of(input), input.const_data_ptr(), output.mutable_data_ptr(),
      lo.mutable_data_ptr<float>(), hi.mutable_data_ptr<float>(), static_cast<int>(bits),
      zero_in_range, rows, input.numel() / rows, c10::cuda::getCurrentCUDAStream()));
  return {output, lo, hi};
}

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) { m.impl("fake_quantize_minmax", fake_quantize_minmax); }

}  // namespace gdfq::cuda
