// The arithmetic of asymmetric uniform fake quantization, written once for every backend.
//
//   inv_scale = (2^bits - 1) * (1 / max(hi - lo, 1e-8)), the reciprocal of the step size
//   zero      = round(inv_scale * lo) + 2^(bits - 1)
//   code      = clamp(round(inv_scale * x - zero), -2^(bits - 1), 2^(bits - 1) - 1)
//   y         = (code + zero) / inv_scale
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

// Reciprocal of the step size and zero point of one range.
struct Grid {
  float inv_scale;
  float zero;
};

// Lower and upper bound of the codes.
struct CodeBounds {
  float lo;
  float hi;
};

GDFQ_INLINE CodeBounds code_bounds(int bits) {
  const float half = static_cast<float>(1 << (bits - 1));
  return {-half, half - 1.0f};
}

// Moves a range's bounds so that it contains 0. NaN stays.
GDFQ_INLINE void contain_zero(float& lo, float& hi) {
  lo = lo > 0.0f ? 0.0f : lo;
  hi = hi < 0.0f ? 0.0f : hi;
}

GDFQ_INLINE Grid make_grid(float lo, float hi, int bits) {
  const float levels = static_cast<float>((1 << bits) - 1);
  float width = sub_rn(hi, lo);
  width = width < 1e-8f ? 1e-8f : width;  // keeps NaN
  const float inv_scale = mul_rn(levels, div_rn(1.0f, width));
  const float zero = add_rn(nearbyintf(mul_rn(inv_scale, lo)), static_cast<float>(1 << (bits - 1)));
  return {inv_scale, zero};
}

// The code before rounding and clamping.
template <typename T>
GDFQ_INLINE T position(T x, T inv_scale, T zero) {
  return sub_rn(mul_rn(inv_scale, x), zero);
}

// Ternaries rather than fmin and fmax: NaN compares false and stays.
template <typename T>
GDFQ_INLINE T clamp_keep_nan(T v, T lo, T hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

// Half to even for |v| < 2^22. The bounds are integers, so rounding after the clamp gives the
// same code as rounding before it.
template <typename T>
GDFQ_INLINE T round_half_even(T v, T magic) {
  return sub_rn(add_rn(v, magic), magic);
}

constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23

template <typename T>
GDFQ_INLINE T quantize_value(T x, T inv_scale, T zero, T code_lo, T code_hi, T magic) {
  const T code =
      round_half_even(clamp_keep_nan(position(x, inv_scale, zero), code_lo, code_hi), magic);
  return div_rn(add_rn(code, zero), inv_scale);
}

// The code itself. NaN has none and gets the lower bound.
GDFQ_INLINE int code_of(float x, float inv_scale, float zero, CodeBounds bounds) {
  float v = clamp_keep_nan(position(x, inv_scale, zero), bounds.lo, bounds.hi);
  v = v != v ? bounds.lo : v;
  return static_cast<int>(round_half_even(v, kRoundMagic));
}

// The clip straight-through estimator: the gradient passes where the rounded code needs no clamp.
// Half to even at the bounds: the lower is even, so lower - 0.5 rounds inside; the upper is odd, so
// upper + 0.5 rounds outside.
GDFQ_INLINE float clip_gradient(float grad, float x, float inv_scale, float zero,
                                CodeBounds bounds) {
  const float v = position(x, inv_scale, zero);
  return v >= bounds.lo - 0.5f && v < bounds.hi + 0.5f ? grad : 0.0f;
}

}  // namespace gdfq
