// A stand-in for the CUDA device runtime: device code compiled by a C++ compiler, each CUDA thread
// a fiber, blocks one after another. runtime.cpp says what it checks.
//
// Not modelled: memory order weaker than happens-before, concurrent blocks, limits of registers
// and shared memory, inline PTX, last-bit differences of approximate functions.
#pragma once

#include "cuda_runtime_api.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// thread_local, so that one region holds every block's static shared memory and can be poisoned;
// AddressSanitizer guards plain statics only. Kernels live in anonymous namespaces for that.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define GDFQ_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(standin::dynamic_shared())

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace standin {

// Two operations are the same one if they stand at the same place of the source.
struct Site {
  const char* file;
  int line;
};

enum class WarpOperation { sync, index, exclusive_or, up, down, ballot };

void barrier(Site site);
uint64_t warp(WarpOperation operation, unsigned mask, uint64_t value, int argument, int width,
              Site site);
void fence();
void* dynamic_shared();
cudaError_t run(dim3 grid, dim3 block, size_t dynamic_shared, void (*body)(void*), void* argument);

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared,
                   cudaStream_t, Arguments... arguments) {
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  return run(
      grid, block, dynamic_shared, [](void* p) { (*static_cast<decltype(body)*>(p))(); }, &body);
}

template <typename T>
T shuffle(WarpOperation operation, unsigned mask, T value, int argument, int width, Site site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = warp(operation, mask, bits, argument, width, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace standin

#define STANDIN_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- synchronization ----

inline void __syncthreads(STANDIN_SITE) { standin::barrier({file, line}); }
inline void __threadfence() { standin::fence(); }
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xffffffffu, STANDIN_SITE) {
  standin::warp(standin::WarpOperation::sync, mask, 0, 0, 32, {file, line});
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, STANDIN_SITE) {
  return standin::shuffle(standin::WarpOperation::index, mask, value, lane, width, {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, STANDIN_SITE) {
  return standin::shuffle(standin::WarpOperation::exclusive_or, mask, value, lanes, width,
                          {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, STANDIN_SITE) {
  return standin::shuffle(standin::WarpOperation::up, mask, value, static_cast<int>(by), width,
                          {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, STANDIN_SITE) {
  return standin::shuffle(standin::WarpOperation::down, mask, value, static_cast<int>(by), width,
                          {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, STANDIN_SITE) {
  return static_cast<unsigned>(standin::warp(standin::WarpOperation::ballot, mask, predicate != 0,
                                             0, 32, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, STANDIN_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, STANDIN_SITE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

// ---- atomics: integers only, for float sums in any order are not deterministic ----

unsigned atomicAdd(unsigned* address, unsigned value);
int atomicAdd(int* address, int value);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value);
unsigned atomicInc(unsigned* address, unsigned limit);
unsigned atomicExch(unsigned* address, unsigned value);
unsigned atomicMax(unsigned* address, unsigned value);
unsigned atomicMin(unsigned* address, unsigned value);
int atomicMax(int* address, int value);
int atomicMin(int* address, int value);

// ---- loads, bits, arithmetic ----

template <typename T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ T __ldcs(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ T __ldcg(const T* p) {
  return *p;
}
template <typename T>
__forceinline__ void __stwb(T* p, T value) {
  *p = value;
}
template <typename T>
__forceinline__ void __stcs(T* p, T value) {
  *p = value;
}

__forceinline__ float __uint_as_float(unsigned v) { return __builtin_bit_cast(float, v); }
__forceinline__ unsigned __float_as_uint(float v) { return __builtin_bit_cast(unsigned, v); }
__forceinline__ float __int_as_float(int v) { return __builtin_bit_cast(float, v); }
__forceinline__ int __float_as_int(float v) { return __builtin_bit_cast(int, v); }
__forceinline__ double __longlong_as_double(long long v) { return __builtin_bit_cast(double, v); }
__forceinline__ int __popc(unsigned v) { return __builtin_popcount(v); }
__forceinline__ int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
__forceinline__ int __ffs(int v) { return __builtin_ffs(v); }

__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __fsqrt_rn(float a) { return std::sqrt(a); }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
__forceinline__ float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
__forceinline__ float __expf(float a) { return std::exp(a); }
// Saturates; NaN gives 0.
__forceinline__ int __float2int_rn(float v) {
  if (v != v) return 0;
  if (v >= 2147483648.0f) return 2147483647;
  if (v < -2147483648.0f) return -2147483647 - 1;
  return static_cast<int>(std::nearbyint(v));
}
