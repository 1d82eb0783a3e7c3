#include "bn_act_fake_quantize.h"

#include "bn_act_fake_quantize.cuh"

namespace gdfq::cuda {

cudaError_t launch_bn_act_fake_quantize(Dtype dtype, const void* x, const void* residual, void* y,
                                        FrozenNorm norm, ActQuantizer quantizer, Layout layout,
                                        cudaStream_t stream) {
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T* in = static_cast<const T*>(x);
    T* out = static_cast<T*>(y);
    if (residual) {
      const BnActFakeQuantize<true> op{norm, quantizer};
      const Inputs<T, 2> inputs{{in, static_cast<const T*>(residual)}};
      return map(inputs, out, op, layout, stream);
    }
    const BnActFakeQuantize<false> op{norm, quantizer};
    return map(Inputs<T, 1>{{in}}, out, op, layout, stream);
  });
}

int64_t bn_act_fake_quantize_workspace(Dtype dtype, Layout layout) {
  return sums_workspace(dtype, layout, AffineGradient::kSums);
}

cudaError_t launch_bn_act_fake_quantize_backward(Dtype dtype, const void* dy, const void* x,
                                                 const void* residual, void* dx, void* dresidual,
                                                 float* dweight, float* dbias, FrozenNorm norm,
                                                 ActQuantizer quantizer, bool clip, Layout layout,
                                                 double* workspace, cudaStream_t stream) {
  const AffineGradient finish{norm.var, norm.eps, dweight, dbias};
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T *grad = static_cast<const T*>(dy), *in = static_cast<const T*>(x);
    T* out = static_cast<T*>(dx);
    if (residual) {
      using Op = BnActFakeQuantizeGradient<true>;
      const Tensors<T, Op> tensors{{grad, in, static_cast<const T*>(residual)},
                                   {out, static_cast<T*>(dresidual)}};
      return map_and_sum(tensors, Op{norm, quantizer, clip}, layout, workspace, finish, stream);
    }
    using Op = BnActFakeQuantizeGradient<false>;
    const Tensors<T, Op> tensors{{grad, in}, {out}};
    return map_and_sum(tensors, Op{norm, quantizer, clip}, layout, workspace, finish, stream);
  });
}

}  // namespace gdfq::cuda
