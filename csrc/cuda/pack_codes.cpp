// The dispatcher's side of pack_codes on CUDA.

#include "pack_codes.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "tensor.h"

namespace gdfq::cuda {
namespace {

at::Tensor pack_codes(const at::Tensor& codes, int64_t bits) {
  check_codes(codes, bits);
  const c10::cuda::CUDAGuard guard(codes.device());
  const at::Tensor input = codes.contiguous();
  const int64_t numel = input.numel();
  at::Tensor packed = at::empty({(numel * bits + 7) / 8}, input.options().dtype(at::kByte));
  if (numel == 0) return packed;
  C10_CUDA_CHECK(launch_pack_codes(input.const_data_ptr<int8_t>(),
                                   packed.mutable_data_ptr<uint8_t>(), static_cast<int>(bits),
                                   numel, c10::cuda::getCurrentCUDAStream()));
  return packed;
}

at::Tensor unpack_codes(const at::Tensor& packed, int64_t bits, at::IntArrayRef shape) {
  check_packed(packed, bits, shape);
  const c10::cuda::CUDAGuard guard(packed.device());
  const at::Tensor input = packed.contiguous();
  at::Tensor codes = at::empty(shape, input.options().dtype(at::kChar));
  const int64_t numel = codes.numel();
  if (numel == 0) return codes;
  C10_CUDA_CHECK(launch_unpack_codes(input.const_data_ptr<uint8_t>(),
                                     codes.mutable_data_ptr<int8_t>(), static_cast<int>(bits),
                                     numel, c10::cuda::getCurrentCUDAStream()));
  return codes;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, GDFQ_CUDA_KEY, m) {
  m.impl("pack_codes", pack_codes);
  m.impl("unpack_codes", unpack_codes);
}

}  // namespace gdfq::cuda
