// bn_act_fake_quantize on the GPU: y = quantize(act(v)), v = (x - mean) * a + bias + residual, a =
// weight / sqrt(var + eps); and its gradients, with g = dy where activation and estimator pass it,
// else 0:
//   dx = g * a,  dresidual = g,  dbias = sum(g),  dweight = sum(g * (x - mean)) / sqrt(var + eps).
//
// Forward: threads map to memory as elementwise.cuh says; 2s bytes per element, 3s with a residual.
// Backward: as elementwise_sums.cuh says, v computed again, and both sums from the same pass; 3s
// bytes per element, 5s with a residual. Deterministic: elements are independent, and partial sums
// are added in a fixed order.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../quantizer.h"
#include "bn_act.cuh"
#include "bn_act_fake_quantize.h"
#include "elementwise.cuh"
#include "elementwise_sums.cuh"
#include "frozen_norm.cuh"

namespace gdfq::cuda {

struct ActQuantizerConstants {
  NormConstants norm;
  Grid grid;

  __device__ __forceinline__ ActQuantizerConstants() {}
  __device__ __forceinline__ ActQuantizerConstants(const FrozenNorm& norm,
                                                   const ActQuantizer& quantizer, int64_t c)
      : norm(norm, c), grid(make_grid(__ldg(quantizer.lo), __ldg(quantizer.hi), quantizer.bits)) {}
};

template <bool kResidual>
struct BnActFakeQuantize {
  using Constants = ActQuantizerConstants;
  FrozenNorm norm;
  ActQuantizer quantizer;

  __device__ __forceinline__ Constants constants(int64_t c) const { return {norm, quantizer, c}; }

  // The inputs are x and the residual.
  __device__ __forceinline__ float operator()(const Constants& k,
                                              const float (&in)[1 + kResidual]) const {
    const float v = BnAct<kResidual>{norm, quantizer.act}(k.norm, in);
    const CodeBounds bounds = code_bounds(quantizer.bits);
    return quantize_value(v, k.grid.inv_scale, k.grid.zero, bounds.lo, bounds.hi, kRoundMagic);
  }
};

template <bool kResidual>
struct BnActFakeQuantizeGradient {
  static constexpr int kInputs = 2 + kResidual, kOutputs = 1 + kResidual, kSums = 2;
  using Constants = ActQuantizerConstants;
  FrozenNorm norm;
  ActQuantizer quantizer;
  bool clip;

  __device__ __forceinline__ Constants constants(int64_t c) const { return {norm, quantizer, c}; }

  // The inputs are dy, x and the residual, the outputs dx and the residual's gradient.
  __device__ __forceinline__ void operator()(const Constants& k, const float (&in)[kInputs],
                                             float (&out)[kOutputs], float (&terms)[kSums]) const {
    const float centered = sub_rn(in[1], k.norm.mean);
    float v = add_rn(mul_rn(centered, k.norm.factor), k.norm.bias);
    if constexpr (kResidual) v = add_rn(v, in[2]);
    float g = in[0];
    if (clip) {
      g = clip_gradient(g, activate(v, quantizer.act), k.grid.inv_scale, k.grid.zero,
                        code_bounds(quantizer.bits));
    }
    if (quantizer.act != Activation::none) g = v > 0.0f ? g : 0.0f;
    if (quantizer.act == Activation::relu6) g = v < 6.0f ? g : 0.0f;
    out[0] = mul_rn(g, k.norm.factor);
    if constexpr (kResidual) out[1] = g;
    terms[0] = g;
    terms[1] = mul_rn(g, centered);
  }
};

struct AffineGradient {
  static constexpr int kSums = 2;
  const float* var;  // [channels]
  double eps;
  float* dweight;  // [channels]
  float* dbias;    // [channels]

  __device__ __forceinline__ void operator()(int64_t c, const double (&sums)[kSums]) const {
    dbias[c] = static_cast<float>(sums[0]);
    dweight[c] = static_cast<float>(sums[1] / sqrt(static_cast<double>(var[c]) + eps));
  }
};

}  // namespace gdfq::cuda
