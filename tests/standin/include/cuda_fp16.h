// float16 by its bits.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};
struct __half2 {
  __half x, y;
};

__forceinline__ unsigned short __half_as_ushort(__half h) { return h.bits; }
__forceinline__ __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half h) {
  const unsigned sign = (h.bits & 0x8000u) << 16;
  const unsigned exponent = (h.bits >> 10) & 31u;
  const unsigned mantissa = h.bits & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// To nearest, half to even, by way of the exact multiple of float16's step.
inline __half __float2half_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  const unsigned sign = (bits >> 16) & 0x8000u;
  const unsigned magnitude = bits & 0x7fffffffu;
  unsigned half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    half = static_cast<unsigned>(std::nearbyint(__uint_as_float(magnitude) * 0x1p24f));
  } else {
    const unsigned rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    half = (rounded - 0x38000000u) >> 13;
  }
  return {static_cast<unsigned short>(sign | half)};
}

__forceinline__ __half __float2half(float v) { return __float2half_rn(v); }
inline __half2 __floats2half2_rn(float a, float b) {
  return {__float2half_rn(a), __float2half_rn(b)};
}
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
