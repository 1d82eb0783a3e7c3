#include "bn_leaky_relu.h"

#include "bn_leaky_relu.cuh"

namespace gdfq::cuda {

cudaError_t launch_bn_leaky_relu(Dtype dtype, const void* x, void* y, BatchAffine affine,
                                 float slope, Layout layout, cudaStream_t stream) {
  const BnLeakyRelu op{{affine}, slope};
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Inputs<T, 1> inputs{{static_cast<const T*>(x)}};
    return map<true>(inputs, static_cast<T*>(y), op, layout, stream, affine.samples);
  });
}

int64_t bn_leaky_relu_workspace(Dtype dtype, Layout layout, int64_t samples) {
  return sums_workspace(dtype, layout, LeakySums::kSums, samples) +
         samples * layout.channels * LeakySums::kSums;
}

cudaError_t launch_bn_leaky_relu_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                          float* dweight, float* dbias, BatchAffine affine,
                                          float slope, Layout layout, double* workspace,
                                          float* affine_gradient, cudaStream_t stream) {
  const AffineOf parameters{affine};
  double* weighted = workspace;
  double* sums = workspace + affine.samples * affine.channels * LeakySums::kSums;
  const double count = static_cast<double>(layout.outer * layout.inner);
  const LeakySlopes slopes{affine.var, affine.eps, count, affine_gradient,
                           affine_gradient + affine.channels};
  const LeakyAffineGradient finish{parameters, slopes, dweight, dbias, weighted};
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T *grad = static_cast<const T*>(dy), *in = static_cast<const T*>(x);
    const Tensors<T, LeakySums> tensors{{grad, in}, {nullptr}};
    cudaError_t error = map_and_sum(tensors, LeakySums{parameters, slope}, layout, sums, finish,
                                    stream, affine.samples);
    if (error == cudaSuccess && affine.samples > 1)
      error = launch_finish(weighted, affine.samples, affine.channels, slopes, stream);
    if (error != cudaSuccess) return error;
    const BnLeakyReluGradient op{parameters, slope, slopes.linear, slopes.constant};
    return map<true>(Inputs<T, 2>{{grad, in}}, static_cast<T*>(dx), op, layout, stream,
                     affine.samples);
  });
}

}  // namespace gdfq::cuda
