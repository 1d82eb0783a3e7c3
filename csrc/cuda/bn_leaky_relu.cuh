// bn_leaky_relu on the GPU: training-mode batch norm and leaky ReLU,
//   v = (x - mean) * a + bias with a = weight / sqrt(var + eps),   y = v > 0 ? v : slope * v,
// mean and biased var those of the batch; weight and bias one per channel, or one per sample and
// channel. Backward, with g = v > 0 ? dy : slope * dy and M elements per channel:
//   dbias = sum(g),   dweight = sum(g * (x - mean)) / sqrt(var + eps)
//   dx = g * a + (x - mean) * linear + constant,
//   linear = -sum(weight * g * (x - mean)) / (M * sqrt(var + eps)^3),
//   constant = -sum(weight * g) / (M * sqrt(var + eps)).
//
// Both directions are a reduction and a pass. Forward: batch_norm_stats.cuh's statistics, without
// its output, then elementwise.cuh; 3s bytes per element. Backward: elementwise_sums.cuh with no
// output, then elementwise.cuh; 5s. Deterministic: elements are independent, and partial sums are
// added in a fixed order.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../batch_norm.h"
#include "bn_leaky_relu.h"
#include "elementwise.cuh"
#include "elementwise_sums.cuh"

namespace gdfq::cuda {

// Parameters by number: channel c of sample s has number s * channels + c.
struct AffineOf {
  BatchAffine affine;

  __device__ __forceinline__ int64_t channel(int64_t number) const {
    return affine.samples > 1 ? remainder_of(number, affine.channels) : number;
  }
  __device__ __forceinline__ float weight(int64_t number) const {
    if (!affine.weight) return 1.0f;
    return __ldg(affine.weight + (affine.weight_per_sample ? number : channel(number)));
  }
  __device__ __forceinline__ float bias(int64_t number) const {
    if (!affine.bias) return 0.0f;
    return __ldg(affine.bias + (affine.bias_per_sample ? number : channel(number)));
  }
};

struct LeakyConstants {
  float mean, factor, bias;

  __device__ __forceinline__ LeakyConstants() {}
  __device__ __forceinline__ LeakyConstants(const AffineOf& parameters, int64_t number) {
    const BatchAffine& affine = parameters.affine;
    const int64_t c = parameters.channel(number);
    mean = __ldg(affine.mean + c);
    factor = factor_of(parameters.weight(number), __ldg(affine.var + c), affine.eps);
    bias = parameters.bias(number);
  }
};

struct BnLeakyRelu {
  using Constants = LeakyConstants;
  AffineOf parameters;
  float slope;

  __device__ __forceinline__ Constants constants(int64_t number) const {
    return {parameters, number};
  }

  __device__ __forceinline__ float operator()(const Constants& k, const float (&x)[1]) const {
    const float v = add_rn(mul_rn(sub_rn(x[0], k.mean), k.factor), k.bias);
    return v > 0.0f ? v : mul_rn(v, slope);
  }
};

// The gradient in front of the leaky ReLU.
__device__ __forceinline__ float leaky_gradient(float dy, float centered, const LeakyConstants& k,
                                                float slope) {
  const float v = add_rn(mul_rn(centered, k.factor), k.bias);
  return v > 0.0f ? dy : mul_rn(dy, slope);
}

struct LeakySums {
  static constexpr int kInputs = 2, kOutputs = 0, kSums = 2;
  using Constants = LeakyConstants;
  AffineOf parameters;
  float slope;

  __device__ __forceinline__ Constants constants(int64_t number) const {
    return {parameters, number};
  }

  // The inputs are dy and x, the terms g and g * (x - mean).
  __device__ __forceinline__ void operator()(const Constants& k, const float (&in)[kInputs],
                                             float (&)[1], float (&terms)[kSums]) const {
    const float centered = sub_rn(in[1], k.mean);
    terms[0] = leaky_gradient(in[0], centered, k, slope);
    terms[1] = mul_rn(terms[0], centered);
  }
};

// linear and constant of a channel from sum(weight * g) and sum(weight * g * (x - mean)).
struct LeakySlopes {
  static constexpr int kSums = LeakySums::kSums;
  const float* var;  // [channels]
  double eps;
  double count;
  float* linear;    // [channels]
  float* constant;  // [channels]

  __device__ __forceinline__ void operator()(int64_t c, const double (&sums)[kSums]) const {
    const double inverse = 1 / sqrt(static_cast<double>(var[c]) + eps);
    constant[c] = static_cast<float>(-inverse * sums[0] / count);
    linear[c] = static_cast<float>(-inverse * inverse * inverse * sums[1] / count);
  }
};

// The gradients of weight and bias and, with one sample, the slopes; with several, `weighted`,
// [samples][channels][2], is what LeakySlopes then adds up over the samples.
struct LeakyAffineGradient {
  static constexpr int kSums = LeakySums::kSums;
  AffineOf parameters;
  LeakySlopes slopes;
  float* dweight;  // [samples][channels]
  float* dbias;    // [samples][channels]
  double* weighted;

  __device__ __forceinline__ void operator()(int64_t number, const double (&sums)[kSums]) const {
    const int64_t c = parameters.channel(number);
    dbias[number] = static_cast<float>(sums[0]);
    dweight[number] =
        static_cast<float>(sums[1] / sqrt(static_cast<double>(slopes.var[c]) + slopes.eps));
    const double weight = parameters.weight(number);
    const double products[kSums] = {weight * sums[0], weight * sums[1]};
    if (parameters.affine.samples == 1) {
      slopes(c, products);
    } else {
      weighted[2 * number] = products[0];
      weighted[2 * number + 1] = products[1];
    }
  }
};

struct BnLeakyReluGradient {
  struct Constants {
    LeakyConstants norm;
    float linear, constant;
  };
  AffineOf parameters;
  float slope;
  const float* linear;    // [channels]
  const float* constant;  // [channels]

  __device__ __forceinline__ Constants constants(int64_t number) const {
    const int64_t c = parameters.channel(number);
    return {{parameters, number}, __ldg(linear + c), __ldg(constant + c)};
  }

  // The inputs are dy and x.
  __device__ __forceinline__ float operator()(const Constants& k, const float (&in)[2]) const {
    const float centered = sub_rn(in[1], k.norm.mean);
    const float g = leaky_gradient(in[0], centered, k.norm, slope);
    return add_rn(add_rn(mul_rn(g, k.norm.factor), mul_rn(centered, k.linear)), k.constant);
  }
};

}  // namespace gdfq::cuda
