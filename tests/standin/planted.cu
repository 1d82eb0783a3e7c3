// Planted bugs, each beside its correct twin: what the stand-in's three builds must catch.
// test_planted.py names the build for each. Never part of the CUDA extension.

#include <cuda_runtime.h>

#include <cstdint>

#include "../../csrc/cuda/launch.cuh"

using gdfq::cuda::launch;

namespace {

constexpr int kThreads = 128;
constexpr unsigned kFullWarp = 0xffffffffu;

// y[i] = x[kThreads - 1 - i], through shared memory.
template <bool kCorrect>
__global__ void missing_barrier(const float* x, float* y, int64_t) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  if (kCorrect) __syncthreads();
  y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The same between lanes of a warp.
template <bool kCorrect>
__global__ void missing_warp_barrier(const float* x, float* y, int64_t) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  if (kCorrect) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// y[0] = sum of x: the block that finishes last adds up the partial sums of all blocks.
template <bool kCorrect>
__global__ void missing_fence(const float* x, float* y, float* partial, unsigned* finished,
                              int64_t) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += x[blockIdx.x * kThreads + i];
    partial[blockIdx.x] = sum;
    if (kCorrect) __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];
    y[0] = sum;
  }
}

// y = 2 x, with a barrier that only some threads of the block reach.
template <bool kCorrect>
__global__ void divergent_barrier(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  if (kCorrect) {
    tile[i] = i < n ? 2 * x[i] : 0;
    __syncthreads();
    if (i < n) y[i] = tile[i];
  } else if (i < n) {
    tile[i] = 2 * x[i];
    __syncthreads();
    y[i] = tile[i];
  }
}

// y[0] = sum of the first 16 elements.
template <bool kCorrect>
__global__ void half_warp_shuffle(const float* x, float* y, int64_t) {
  if (threadIdx.x >= 16) return;
  float sum = x[threadIdx.x];
  for (int step = 8; step > 0; step /= 2)
    sum += __shfl_xor_sync(kCorrect ? 0xffffu : kFullWarp, sum, step);
  if (threadIdx.x == 0) y[0] = sum;
}

// y = x, n a multiple of 4, from an address that need not be one of 16.
template <bool kCorrect>
__global__ void misaligned_vector(const float* x, float* y, int64_t n) {
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  for (int64_t i = threadIdx.x; i < n / 4; i += kThreads) {
    if (!kCorrect || aligned) {
      const float4 v = *reinterpret_cast<const float4*>(x + 4 * i);
      y[4 * i] = v.x, y[4 * i + 1] = v.y, y[4 * i + 2] = v.z, y[4 * i + 3] = v.w;
    } else {
      for (int64_t j = 4 * i; j < 4 * i + 4; ++j) y[j] = x[j];
    }
  }
}

// y = x for any n, four at a time.
template <bool kCorrect>
__global__ void overrun_tail(const float* x, float* y, int64_t n) {
  for (int64_t i = 4 * threadIdx.x; i < n; i += 4 * kThreads)
    for (int64_t j = i; j < i + 4; ++j)
      if (!kCorrect || j < n) y[j] = x[j];
}

// The same past the end of dynamic shared memory, which holds n floats.
template <bool kCorrect>
__global__ void overrun_shared(const float* x, float* y, int64_t n) {
  GDFQ_DYNAMIC_SHARED(float, tile);
  const int i = static_cast<int>(threadIdx.x);
  if (i < n + (kCorrect ? 0 : 1)) tile[i] = x[i % n];
  __syncthreads();
  if (i < n) y[i] = tile[i];
}

// y[0] = sum of n elements: threads past the end write nothing to shared memory.
template <bool kCorrect>
__global__ void uninitialised_shared(const float* x, float* y, int64_t n) {
  __shared__ float tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) {
    tile[i] = x[i];
  } else if (kCorrect) {
    tile[i] = 0;
  }
  __syncthreads();
  if (i == 0) {
    float sum = 0;
    for (int j = 0; j < kThreads; ++j) sum += tile[j];
    y[0] = sum;
  }
}

// y = x after a flag that another thread sets: waited for by spinning.
template <bool kCorrect>
__global__ void spin_wait(const float* x, float* y, int64_t) {
  __shared__ volatile int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  if (threadIdx.x == kThreads - 1) flag = 1;
  if (kCorrect) {
    __syncthreads();
  } else {
    while (flag == 0) {
    }
  }
  y[threadIdx.x] = x[threadIdx.x];
}

}  // namespace

#define PLANTED(name, shared)                                                                     \
  extern "C" int planted_##name(int64_t correct, const float* x, float* y, int64_t n) {                     \
    return launch(correct ? ::name<true> : ::name<false>, dim3(1), dim3(kThreads), shared, nullptr, \
                  x, y, n);                                                                       \
  }

PLANTED(missing_barrier, 0)
PLANTED(missing_warp_barrier, 0)
PLANTED(divergent_barrier, 0)
PLANTED(half_warp_shuffle, 0)
PLANTED(misaligned_vector, 0)
PLANTED(overrun_tail, 0)
PLANTED(overrun_shared, static_cast<size_t>(n) * sizeof(float))
PLANTED(uninitialised_shared, 0)
PLANTED(spin_wait, 0)

extern "C" int planted_missing_fence(int64_t correct, const float* x, float* y, int64_t n) {
  constexpr int kBlocks = 6;
  float partial[kBlocks];
  unsigned finished = 0;
  return launch(correct ? ::missing_fence<true> : ::missing_fence<false>, dim3(kBlocks),
                dim3(kThreads), 0, nullptr, x, y, partial, &finished, n);
}
