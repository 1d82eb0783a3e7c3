// The dispatcher's side of pack_codes on CUDA.

#include "pack_codes.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "tensor.h"

namespace gdfq::cuda {
namespace {

at::Tensor pack_codes(const at::Tensor& codes, int64_t bits) {
  TORCH_CHECK(codes.scalar_type() == at::kChar, "codes must be int8, got ", codes.scalar_type());
  TORCH_CHECK(bits >= 2 && bits <= 7, "bits must be 2 to 7, got ", bits);
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
  TORCH_CHECK(packed.scalar_type() == at::kByte, "packed must be uint8, got ",
              packed.scalar_type());
  TORCH_CHECK(bits >= 2 && bits <= 7, "bits must be 2 to 7, got ", bits);
  const c10::cuda::CUDAGuard guard(packed.device());
  const at::Tensor input = packed.contiguous();
  at::Tensor codes = at::empty(shape, input.options().dtype(at::kChar));
  const int64_t numel = codes.numel();
  TORCH_CHECK(input.numel() == (numel * bits + 7) / 8, "packed must have ", (numel * bits + 7) / 8,
              " bytes for ", numel, " codes of ", bits, " bits, got ", input.numel());
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
