#include "../../../csrc/cuda/pack_codes.h"

using namespace gdfq;

extern "C" int pack_codes(const int8_t* codes, uint8_t* packed, int64_t bits, int64_t numel) {
  return cuda::launch_pack_codes(codes, packed, static_cast<int>(bits), numel, nullptr);
}
