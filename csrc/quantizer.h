// The arithmetic of asymmetric uniform fake quantization, written once for every backend.
//
//   scale = (2^bits - 1) * (1 / max(hi - lo, 1e-8))
//   zero  = round(scale * lo) + 2^(bits - 1)
//   code  = clamp(round(scale * x - zero), -2^(bits - 1), 2^(bits - 1) - 1)
//   y     = (code + zero) / scale
//
// Every multiplication, subtraction and division rounds once, to nearest even, in float32: a
// contracted multiply-add moves values that lie beside a tie, so this header is compiled with
// contraction off. The functions are templates over `float` and the CPU's vector of floats.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define GDFQ_INLINE __host__ __device__ __forceinline__
#else
#define GDFQ_INLINE inline __attribute__((always_inline))
#endif

namespace gdfq {

#if defined(__CUDA_ARCH__)
GDFQ_INLINE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
GDFQ_INLINE float add_rn(float a, float b) { return __fadd_rn(a, b); }
GDFQ_INLINE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
GDFQ_INLINE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
#else
template <typename T>
GDFQ_INLINE T mul_rn(T a, T b) {
  return a * b;
}
template <typename T>
GDFQ_INLINE T add_rn(T a, T b) {
  return a + b;
}
template <typename T>
GDFQ_INLINE T sub_rn(T a, T b) {
  return a - b;
}
template <typename T>
GDFQ_INLINE T div_rn(T a, T b) {
  return a / b;
}
#endif

// Scale and zero point of one range, and the codes' bounds.
struct Grid {
  float scale;
  float zero;
};

struct CodeBounds {
  float lowest;
  float highest;
};

GDFQ_INLINE CodeBounds code_bounds(int bits) {
  const float half = static_cast<float>(1 << (bits - 1));
  return {-half, half - 1.0f};
}

// The ends of a range are moved so that it contains 0. NaN stays.
GDFQ_INLINE void contain_zero(float& lo, float& hi) {
  lo = lo > 0.0f ? 0.0f : lo;
  hi = hi < 0.0f ? 0.0f : hi;
}

GDFQ_INLINE Grid make_grid(float lo, float hi, int bits) {
  const float levels = static_cast<float>((1 << bits) - 1);
  float width = sub_rn(hi, lo);
  width = width < 1e-8f ? 1e-8f : width;  // keeps NaN
  const float scale = mul_rn(levels, div_rn(1.0f, width));
  const float zero = add_rn(nearbyintf(mul_rn(scale, lo)), static_cast<float>(1 << (bits - 1)));
  return {scale, zero};
}

// The code before rounding and clamping.
template <typename T>
GDFQ_INLINE T position(T x, T scale, T zero) {
  return sub_rn(mul_rn(scale, x), zero);
}

// Ternaries rather than fmin and fmax: NaN compares false and stays.
template <typename T>
GDFQ_INLINE T clamp_keep_nan(T v, T lowest, T highest) {
  v = v < lowest ? lowest : v;
  return v > highest ? highest : v;
}

// Half to even for |v| < 2^22. The bounds are integers, so rounding after the clamp gives the
// same code as rounding before it.
template <typename T>
GDFQ_INLINE T round_half_even(T v, T magic) {
  return sub_rn(add_rn(v, magic), magic);
}

constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23

template <typename T>
GDFQ_INLINE T quantize_value(T x, T scale, T zero, T lowest, T highest, T magic) {
  const T code = round_half_even(clamp_keep_nan(position(x, scale, zero), lowest, highest), magic);
  return div_rn(add_rn(code, zero), scale);
}

// The code itself. NaN has none and gets the lowest.
GDFQ_INLINE int code_of(float x, float scale, float zero, CodeBounds bounds) {
  float v = clamp_keep_nan(position(x, scale, zero), bounds.lowest, bounds.highest);
  v = v != v ? bounds.lowest : v;
  return static_cast<int>(round_half_even(v, kRoundMagic));
}

// The clip straight-through estimator: the gradient passes where the rounded code needs no clamp.
// Half to even at the bounds: lowest is even, so lowest - 0.5 rounds inside; highest is odd, so
// highest + 0.5 rounds outside.
template <typename T>
GDFQ_INLINE T clip_value_gradient(T grad, T x, T scale, T zero, T lowest, T highest, T half,
                                  T none) {
  const T v = position(x, scale, zero);
  T kept = v >= lowest - half ? grad : none;
  return v < highest + half ? kept : none;
}

}  // namespace gdfq
