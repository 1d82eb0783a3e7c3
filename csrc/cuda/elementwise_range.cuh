// Minimum and maximum of op(constants(channel of i), inputs[i]) over all elements i, in float32, by
// an operator of elementwise.cuh; only the blocks' minima and maxima, [2][blocks], are written, for
// a launch that merges them.
//
// Every element is read once from each input. Deterministic: minimum and maximum don't depend on
// order. A NaN makes both NaN.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../layout.h"
#include "elementwise.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

constexpr int64_t kMostRangeBlocks = 1024;

struct MinMax {
  float lo, hi;

  // Neutral to every number.
  __device__ __forceinline__ MinMax() : lo(INFINITY), hi(-INFINITY) {}

  __device__ __forceinline__ void extend(float v) {
    lo = Minimum{}(lo, v);
    hi = Maximum{}(hi, v);
  }

  // All threads of the block take part, and thread 0 writes.
  __device__ __forceinline__ void write(float* ranges) const {
    __shared__ float scratch[2][kThreads / 32];
    const float block_lo = reduce_block(lo, scratch[0], Minimum{});
    const float block_hi = reduce_block(hi, scratch[1], Maximum{});
    if (threadIdx.x == 0) {
      ranges[blockIdx.x] = block_lo;
      ranges[gridDim.x + blockIdx.x] = block_hi;
    }
  }
};

// An operator without constants needs no channel.
template <typename Op>
constexpr bool kByChannel = !std::is_empty_v<typename Op::Constants>;

namespace {

template <int n, typename T, int kInputs, typename Op>
__device__ __forceinline__ void extend_lanes(MinMax& own, const Inputs<T, kInputs>& inputs,
                                             const Op& op, const typename Op::Constants& constants,
                                             int64_t first, bool aligned) {
  float v[kInputs][n];
#pragma unroll
  for (int j = 0; j < kInputs; ++j) load<n>(inputs.data[j] + first, aligned, v[j]);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float lane[kInputs];
#pragma unroll
    for (int j = 0; j < kInputs; ++j) lane[j] = v[j][i];
    own.extend(op(constants, lane));
  }
}

// Memory in order, every gridDim-th stretch of kThreads vectors a block's; `head` and `aligned` are
// those of map_flat.
template <typename T, int kInputs, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    range_flat(Inputs<T, kInputs> inputs, Op op, Layout layout, int64_t numel, int head,
               bool aligned, float* __restrict__ ranges) {
  constexpr int n = kVector<T>;
  MinMax own;
  const auto elements = [&](int64_t first, int count) {
#pragma unroll 1
    for (int64_t i = first; i < first + count; ++i) {
      int64_t channel = 0;
      if constexpr (kByChannel<Op>)
        channel = remainder_of(quotient(i, layout.inner), layout.channels);
      extend_lanes<1>(own, inputs, op, op.constants(channel), i, false);
    }
  };

  const int64_t vectors = (numel - head) / n, step = static_cast<int64_t>(gridDim.x) * kThreads;
  constexpr int kUnroll = kByChannel<Op> ? 1 : 4;
#pragma unroll kUnroll
  for (int64_t vector = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; vector < vectors;
       vector += step) {
    const int64_t first = head + vector * n;
    int64_t channel = 0;
    if constexpr (kByChannel<Op>) {
      const int64_t run = quotient(first, layout.inner);
      if (first + n > (run + 1) * layout.inner) {
        elements(first, n);
        continue;
      }
      channel = remainder_of(run, layout.channels);
    }
    extend_lanes<n>(own, inputs, op, op.constants(channel), first, aligned);
  }

  if (blockIdx.x == 0) {
    const int edges = static_cast<int>(numel - vectors * n);
    const int edge = static_cast<int>(threadIdx.x);
    if (edge < edges) elements(edge < head ? edge : vectors * n + edge, 1);
  }
  own.write(ranges);
}

// Channels last: a tile is `across` vectors of channels, one of `groups`, and kRowsPerThread rows
// of each of the kThreads / across threads that share a channel, which keep its constants; a block
// takes every gridDim-th tile. Rows are aligned.
template <typename T, int kInputs, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    range_rows(Inputs<T, kInputs> inputs, Op op, int64_t rows, int64_t channels, unsigned across,
               int64_t groups, int64_t tiles, float* __restrict__ ranges) {
  constexpr int n = kVector<T>;
  const unsigned x = threadIdx.x % across, y = threadIdx.x / across, down = kThreads / across;
  MinMax own;
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t piece = quotient(tile, groups);
    const int64_t channel = ((tile - piece * groups) * across + x) * n;
    if (channel >= channels) continue;
    typename Op::Constants constants[n];
#pragma unroll
    for (int i = 0; i < n; ++i) constants[i] = op.constants(channel + i);

    int64_t row = piece * down * kRowsPerThread + y;
#pragma unroll 2
    for (int k = 0; k < kRowsPerThread; ++k, row += down) {
      if (row >= rows) break;
      float v[kInputs][n];
#pragma unroll
      for (int j = 0; j < kInputs; ++j)
        load<n>(inputs.data[j] + row * channels + channel, true, v[j]);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        float lane[kInputs];
#pragma unroll
        for (int j = 0; j < kInputs; ++j) lane[j] = v[j][i];
        own.extend(op(constants[i], lane));
      }
    }
  }
  own.write(ranges);
}

// `ranges` has room for 2 * kMostRangeBlocks; `blocks` is how many wrote theirs.
template <typename T, int kInputs, typename Op>
cudaError_t range_of(const Inputs<T, kInputs>& inputs, const Op& op, Layout layout, float* ranges,
                     int64_t& blocks, cudaStream_t stream) {
  constexpr int n = kVector<T>;
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  if (layout.channels == 1) layout = {1, 1, numel};
  const int skew = misalignment(inputs.data[0]);
  bool aligned = true;
  for (const T* input : inputs.data) aligned = aligned && misalignment(input) == skew;

  if constexpr (kByChannel<Op>) {
    if (layout.inner == 1 && layout.channels % n == 0 && aligned && skew == 0) {
      const int64_t vectors = layout.channels / n;
      const unsigned across = rows_block(vectors).x;
      const int64_t groups = divide_up(vectors, across);
      const int64_t tiles = groups * divide_up(layout.outer, kThreads / across * kRowsPerThread);
      blocks = tiles < kMostRangeBlocks ? tiles : kMostRangeBlocks;
      return launch(range_rows<T, kInputs, Op>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                    0, stream, inputs, op, layout.outer, layout.channels, across, groups, tiles,
                    ranges);
    }
  }
  int64_t head = aligned && skew > 0 ? n - skew : 0;
  if (head > numel) head = numel;
  // A few vectors a thread, until there are blocks enough to fill a GPU.
  blocks = divide_up(numel, 4 * n * kThreads);
  if (blocks > kMostRangeBlocks) blocks = kMostRangeBlocks;
  return launch(range_flat<T, kInputs, Op>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                stream, inputs, op, layout, numel, static_cast<int>(head), aligned, ranges);
}

}  // namespace
}  // namespace gdfq::cuda
