// The dtypes the CUDA launchers take, without a header of torch.
#pragma once

namespace gdfq::cuda {

enum class Dtype { float32, float16, bfloat16 };

}  // namespace gdfq::cuda
