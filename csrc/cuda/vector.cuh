// 16-byte vectors of float32, float16 or bfloat16 in memory, float32 in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace gdfq::cuda {

// Elements of a 16-byte vector.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// ---- conversions ----

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

__device__ __forceinline__ unsigned bits_of(__half v) { return __half_as_ushort(v); }
__device__ __forceinline__ unsigned bits_of(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }

__device__ __forceinline__ float half_from_bits(unsigned bits, __half) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ float half_from_bits(unsigned bits, __nv_bfloat16) {
  return __uint_as_float(bits << 16);
}

template <typename T>
__device__ __forceinline__ void unpack(uint4 raw, float (&v)[kVector<T>]) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(words[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = half_from_bits(words[i] & 0xffffu, T{});
      v[2 * i + 1] = half_from_bits(words[i] >> 16, T{});
    }
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&v)[kVector<T>]) {
  unsigned words[4];
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = bits_of(from_float<T>(v[2 * i])) | bits_of(from_float<T>(v[2 * i + 1])) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// ---- loads and stores of n elements, 128 bits at once where `aligned` says they may be ----
//
// __stwb, a store with the default cache policy: the compiler splits a plain store of a uint4.

template <int n, typename T>
__device__ __forceinline__ void load(const T* p, bool aligned, float (&v)[n]) {
  if constexpr (n == kVector<T>) {
    if (aligned) {
      unpack<T>(__ldg(reinterpret_cast<const uint4*>(p)), v);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
}

template <int n, typename T>
__device__ __forceinline__ void store(T* p, bool aligned, const float (&v)[n]) {
  if constexpr (n == kVector<T>) {
    if (aligned) {
      __stwb(reinterpret_cast<uint4*>(p), pack<T>(v));
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}

// Elements between the last 16-byte boundary and p.
template <typename T>
__host__ __device__ __forceinline__ int misalignment(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// A row of any alignment is cut at the 16-byte boundaries of memory into slots; the first and the
// last may be partly outside the row.
template <typename T>
struct Slot {
  int64_t first;  // element of the row in lane 0, negative in a partial first slot
  int from, to;   // lanes inside the row

  __device__ __forceinline__ Slot(int64_t index, int skew, int64_t length) {
    first = index * kVector<T> - skew;
    from = first < 0 ? static_cast<int>(-first) : 0;
    to = length - first < kVector<T> ? static_cast<int>(length - first) : kVector<T>;
  }

  __device__ __forceinline__ bool full() const { return from == 0 && to == kVector<T>; }

  __device__ __forceinline__ bool holds(int lane) const { return lane >= from && lane < to; }

  // Lanes outside the row get `other`.
  __device__ __forceinline__ void load(const T* row, float other, float (&v)[kVector<T>],
                                       bool aligned = true) const {
    if (full() && aligned) {
      unpack<T>(__ldg(reinterpret_cast<const uint4*>(row + first)), v);
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) v[i] = holds(i) ? to_float(row[first + i]) : other;
    }
  }

  __device__ __forceinline__ void store(T* row, bool aligned, const float (&v)[kVector<T>]) const {
    if (full() && aligned) {
      __stwb(reinterpret_cast<uint4*>(row + first), pack<T>(v));
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i)
        if (holds(i)) row[first + i] = from_float<T>(v[i]);
    }
  }
};

// Slots of rows that may start anywhere, or always at a boundary.
template <typename T>
__host__ __device__ __forceinline__ int64_t slots_of(int64_t length, bool always_aligned) {
  const int n = kVector<T>;
  return always_aligned ? length / n : (length + 2 * n - 2) / n;
}

// ---- indices ----

// a / b for a >= 0, b > 0. The compiler's 64-bit division is a call of some 100 instructions,
// around which kernels would spill.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0)
    return static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  // Rounding errs by 4e-7 at most, so no step goes too far, and each leaves a millionth of a.
  const float inverse = __fdividef(0.999999f, static_cast<float>(b));
  int64_t result = 0;
  while (a >= b) {
    const int64_t step = static_cast<int64_t>(static_cast<float>(a) * inverse);
    result += step > 0 ? step : 1;
    a -= (step > 0 ? step : 1) * b;
  }
  return result;
}

__device__ __forceinline__ int64_t remainder_of(int64_t a, int64_t b) {
  return a - quotient(a, b) * b;
}

}  // namespace gdfq::cuda
