// Sixteen float32 lanes as a compiler vector: one source for AVX-512, AVX2, SSE2 and NEON, and the
// same lane order, hence the same sums, on all of them.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "../quantizer.h"

// One clone per instruction set, chosen when the library is loaded; a build for tests has only one.
#if defined(GDFQ_CPU_CLONES_AVX2)
#define GDFQ_MULTIVERSION __attribute__((target("avx2")))
#elif defined(GDFQ_CPU_CLONES_DEFAULT)
#define GDFQ_MULTIVERSION
#elif defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define GDFQ_MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GDFQ_MULTIVERSION
#endif

namespace gdfq::cpu {

constexpr int64_t kLanes = 16;

typedef float f32x16 __attribute__((vector_size(64)));
typedef double f64x16 __attribute__((vector_size(128)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

template <typename To, typename From>
GDFQ_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

GDFQ_INLINE f32x16 splat(float value) { return f32x16{} + value; }

// ---- comparisons, as masks of all ones or zeros per lane ----
//
// Written with the sign of a difference: GCC makes one scalar comparison per lane of a comparison
// of wide vectors in an inlined function. Ternaries that amount to a minimum or maximum are safe.

GDFQ_INLINE f32x16 select(i32x16 mask, f32x16 yes, f32x16 no) {
  return bit_cast<f32x16>((mask & bit_cast<i32x16>(yes)) | (~mask & bit_cast<i32x16>(no)));
}

// v where the mask is set, else +0.
GDFQ_INLINE f32x16 keep(i32x16 mask, f32x16 v) {
  return bit_cast<f32x16>(mask & bit_cast<i32x16>(v));
}

GDFQ_INLINE i32x16 is_nan(f32x16 v) {
  return (0x7f800000 - (bit_cast<i32x16>(v) & 0x7fffffff)) >> 31;
}

// a < b; false where either is NaN. Subnormals keep a - b from vanishing where a != b.
GDFQ_INLINE i32x16 less(f32x16 a, f32x16 b) {
  const f32x16 difference = a - b;
  return (bit_cast<i32x16>(difference) >> 31) & ~is_nan(difference);
}

// a < b for numbers below 2^31.
GDFQ_INLINE u32x16 less(u32x16 a, u32x16 b) {
  return bit_cast<u32x16>(bit_cast<i32x16>(a - b) >> 31);
}

GDFQ_INLINE u32x16 select(u32x16 mask, u32x16 yes, u32x16 no) {
  return (mask & yes) | (~mask & no);
}

// clip_gradient of quantizer.h, by masks.
GDFQ_INLINE f32x16 clip_gradient(f32x16 grad, f32x16 x, f32x16 inv_scale, f32x16 zero,
                                 f32x16 code_lo, f32x16 code_hi) {
  const f32x16 v = position(x, inv_scale, zero);
  return keep(~less(v, code_lo - 0.5f) & less(v, code_hi + 0.5f), grad);
}

// code_of of quantizer.h, as floats.
GDFQ_INLINE f32x16 code_of(f32x16 x, f32x16 inv_scale, f32x16 zero, f32x16 code_lo,
                           f32x16 code_hi) {
  const f32x16 v = clamp_keep_nan(position(x, inv_scale, zero), code_lo, code_hi);
  return round_half_even(select(is_nan(v), code_lo, v), splat(kRoundMagic));
}

// ---- float16 and bfloat16, branch-free ----

GDFQ_INLINE f32x16 from_bfloat16(u16x16 bits) {
  return bit_cast<f32x16>(__builtin_convertvector(bits, u32x16) << 16);
}

GDFQ_INLINE u16x16 to_bfloat16(f32x16 value) {
  const u32x16 bits = bit_cast<u32x16>(value);
  const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32x16 nan = u32x16{} + 0x7fc0u;
  return __builtin_convertvector(select(bit_cast<u32x16>(is_nan(value)), nan, rounded), u16x16);
}

GDFQ_INLINE f32x16 from_half(u16x16 half) {
  const u32x16 bits = __builtin_convertvector(half, u32x16);
  const u32x16 magnitude = (bits & 0x7fffu) << 13;
  // Rebiasing the exponent by a multiplication also normalizes float16's subnormals.
  u32x16 result = bit_cast<u32x16>(bit_cast<f32x16>(magnitude) * bit_cast<float>(0x77800000u));
  result |= ~less(magnitude, u32x16{} + (0x7c00u << 13)) & 0x7f800000u;  // infinity and NaN
  return bit_cast<f32x16>(result | ((bits & 0x8000u) << 16));
}

GDFQ_INLINE u16x16 to_half(f32x16 value) {
  const u32x16 bits = bit_cast<u32x16>(value), magnitude = bits & 0x7fffffffu;
  const f32x16 largest = splat(65536.0f), smallest = splat(0x1p-14f);  // infinity, first normal
  f32x16 v = bit_cast<f32x16>(magnitude);
  v = v < largest ? v : largest;
  f32x16 power = bit_cast<f32x16>(bit_cast<u32x16>(v) & 0x7f800000u);
  power = power > smallest ? power : smallest;
  // Adding 2^13 times its power of two rounds v to a multiple of the float16 spacing, counted in
  // the low bits; the 0x800 there makes the exponent's bias vanish among the upper 16 bits.
  const u32x16 magic = bit_cast<u32x16>(power) + ((13u << 23) + 0x800u);
  const u32x16 rounded = bit_cast<u32x16>(v + bit_cast<f32x16>(magic));
  const u32x16 nan = ((0x7f800000u - magnitude) >> 22) & 0x200u;
  const u32x16 sign = (bits >> 16) & 0x8000u;
  return __builtin_convertvector((rounded + (rounded >> 13)) | nan | sign, u16x16);
}

// ---- unaligned loads and stores, whole or of the first n lanes ----

GDFQ_INLINE f32x16 load(const float* p) {
  f32x16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

GDFQ_INLINE f32x16 load(const c10::Half* p) {
  u16x16 v;
  std::memcpy(&v, static_cast<const void*>(p), sizeof(v));
  return from_half(v);
}

GDFQ_INLINE f32x16 load(const c10::BFloat16* p) {
  u16x16 v;
  std::memcpy(&v, static_cast<const void*>(p), sizeof(v));
  return from_bfloat16(v);
}

GDFQ_INLINE void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof(v)); }

GDFQ_INLINE void store(c10::Half* p, f32x16 v) {
  const u16x16 half = to_half(v);
  std::memcpy(static_cast<void*>(p), &half, sizeof(half));
}

GDFQ_INLINE void store(c10::BFloat16* p, f32x16 v) {
  const u16x16 half = to_bfloat16(v);
  std::memcpy(static_cast<void*>(p), &half, sizeof(half));
}

template <typename scalar_t>
GDFQ_INLINE f32x16 load(const scalar_t* p, int64_t n) {
  if (n == kLanes) return load(p);
  scalar_t buffer[kLanes];
  std::memset(static_cast<void*>(buffer), 0, sizeof(buffer));
  std::memcpy(static_cast<void*>(buffer), static_cast<const void*>(p), n * sizeof(scalar_t));
  return load(buffer);
}

template <typename scalar_t>
GDFQ_INLINE void store(scalar_t* p, f32x16 v, int64_t n) {
  if (n == kLanes) return store(p, v);
  scalar_t buffer[kLanes];
  store(buffer, v);
  std::memcpy(static_cast<void*>(p), static_cast<const void*>(buffer), n * sizeof(scalar_t));
}

// All ones in the first n lanes.
GDFQ_INLINE i32x16 lane_mask(int64_t n) {
  const i32x16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return (index - static_cast<int32_t>(n)) >> 31;
}

// Lanes 8 apart are added first, then those 4, 2 and 1 apart.
GDFQ_INLINE float sum(f32x16 v) {
  typedef float f32x8 __attribute__((vector_size(32)));
  typedef float f32x4 __attribute__((vector_size(16)));
  f32x8 halves[2];
  std::memcpy(halves, &v, sizeof(v));
  halves[0] += halves[1];
  f32x4 quarters[2];
  std::memcpy(quarters, halves, sizeof(quarters));
  const f32x4 lanes = quarters[0] + quarters[1];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// ---- float64, for sums ----

GDFQ_INLINE f64x16 widen(f32x16 v) { return __builtin_convertvector(v, f64x16); }

GDFQ_INLINE f64x16 load_double(const double* p) {
  f64x16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

GDFQ_INLINE void store_double(double* p, f64x16 v) { std::memcpy(p, &v, sizeof(v)); }

}  // namespace gdfq::cpu
