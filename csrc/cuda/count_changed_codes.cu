#include "count_changed_codes.h"

#include "count_changed_codes.cuh"

namespace gdfq::cuda {

cudaError_t launch_count_changed_codes(Dtype dtype, const ComparedRows* tensors, int64_t count,
                                       cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    return launch_list(count_changed_rows<decltype(value)>, tensors, count, stream);
  });
}

}  // namespace gdfq::cuda
