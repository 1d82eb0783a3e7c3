// The dtypes the CUDA launchers take, without a header of torch.
#pragma once

namespace gdfq::cuda {

// float64 is for kd_ce_loss alone: the others leave it to their float32 kernel or to PyTorch.
enum class Dtype { float32, float16, bfloat16, float64 };

}  // namespace gdfq::cuda
