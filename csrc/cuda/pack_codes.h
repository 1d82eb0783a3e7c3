// Launchers of pack_codes and unpack_codes; at least one code, 2 to 7 bits. The result is 16-byte
// aligned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gdfq::cuda {

cudaError_t launch_pack_codes(const int8_t* codes, uint8_t* packed, int bits, int64_t numel,
                              cudaStream_t stream);

cudaError_t launch_unpack_codes(const uint8_t* packed, int8_t* codes, int bits, int64_t numel,
                                cudaStream_t stream);

}  // namespace gdfq::cuda
