#include "../../../csrc/cuda/vector.cuh"

extern "C" int quotients(const int64_t* a, const int64_t* b, int64_t* results, int64_t count) {
  for (int64_t i = 0; i < count; ++i) results[i] = gdfq::cuda::quotient(a[i], b[i]);
  return 0;
}
