#include "pack_codes.h"

#include "pack_codes.cuh"

namespace gdfq::cuda {
namespace {

dim3 grid_of(int64_t numel) {
  return dim3(static_cast<unsigned>(divide_up(numel, kGroup * kPackThreads)));
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

cudaError_t launch_pack_codes(const int8_t* codes, uint8_t* packed, int bits, int64_t numel,
                              cudaStream_t stream) {
  const auto kernel = bits == 2   ? pack_codes_flat<2>
                      : bits == 3 ? pack_codes_flat<3>
                      : bits == 4 ? pack_codes_flat<4>
                      : bits == 5 ? pack_codes_flat<5>
                      : bits == 6 ? pack_codes_flat<6>
                                  : pack_codes_flat<7>;
  return launch(kernel, grid_of(numel), dim3(kPackThreads), 0, stream, codes, packed, numel,
                is_aligned(codes));
}

cudaError_t launch_unpack_codes(const uint8_t* packed, int8_t* codes, int bits, int64_t numel,
                                cudaStream_t stream) {
  const auto kernel = bits == 2   ? unpack_codes_flat<2>
                      : bits == 3 ? unpack_codes_flat<3>
                      : bits == 4 ? unpack_codes_flat<4>
                      : bits == 5 ? unpack_codes_flat<5>
                      : bits == 6 ? unpack_codes_flat<6>
                                  : unpack_codes_flat<7>;
  return launch(kernel, grid_of(numel), dim3(kPackThreads), 0, stream, packed, codes, numel,
                is_aligned(packed));
}

}  // namespace gdfq::cuda
