// batch_norm_stats on the GPU: y = (x - running_mean) * a + bias, a = weight / sqrt(running_var +
// eps), and the biased batch mean and variance of x, from one read of x; and the gradient
//   dx = a * dy + (x - mean) * (2 / M * dvar) + dmean / M.
//
// Forward. A thread sums x - p and (x - p)^2 in float32 over at most 32 vectors, with p the mean of
// the first values it reads: close to all of them, and no outlier among them costs accuracy. From
// p and those sums, sum(x) and sum(x^2) follow exactly in float64, and float64 is what the block
// and then finish_statistics add up. Bytes per element: 2s, plus 16 per block and channel.
// Deterministic: the shape decides who adds what, and partial sums are added in a fixed order.
//
// Backward: elementwise.cuh, 3s bytes per element, no reduction.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "../batch_norm.h"
#include "channel_walk.cuh"
#include "elementwise.cuh"
#include "frozen_norm.cuh"
#include "reduce.cuh"

namespace gdfq::cuda {

struct ChannelSums {
  double first;   // sum of x
  double second;  // sum of x^2
};

// Sums about a pivot, in float32.
struct PivotSums {
  float pivot, count, first, second;

  __device__ __forceinline__ void add(float x) {
    const float d = x - pivot;
    first += d;
    second = fmaf(d, d, second);
  }

  __device__ __forceinline__ ChannelSums sums() const {
    const double p = pivot, n = count, s = first;
    return {n * p + s, second + 2 * p * s + n * p * p};
  }
};

namespace {

// Runs of one channel: block (piece, c) takes kThreads * kSlotsPerThread of the channel's slots of
// 16 bytes; rows of any length and alignment. sums: [pieces][channels]. Without kOutput, x is only
// read.
template <typename T, bool kOutput>
__global__ void __launch_bounds__(kThreads)
    batch_norm_stats_runs(const T* __restrict__ x, T* __restrict__ y, FrozenNorm norm,
                          Layout layout, int64_t slots_per_run, ChannelSums* __restrict__ sums) {
  constexpr int n = kVector<T>;
  __shared__ double scratch[2][kWarps];
  const int64_t piece = quotient(blockIdx.x, layout.channels);
  const int64_t channel = blockIdx.x - piece * layout.channels;
  NormConstants constants;
  if constexpr (kOutput) constants = NormConstants(norm, channel);
  const bool same_alignment = misalignment(x) == misalignment(y);

  PivotSums own = {0, 0, 0, 0};
  const int64_t slots = layout.outer * slots_per_run;
  int64_t s = piece * (kThreads * kSlotsPerThread) + threadIdx.x;
#pragma unroll 2
  for (int k = 0; k < kSlotsPerThread; ++k, s += kThreads) {
    if (s >= slots) break;
    const int64_t run = quotient(s, slots_per_run);
    const int64_t start = (run * layout.channels + channel) * layout.inner;
    const Slot<T> slot(s - run * slots_per_run, misalignment(x + start), layout.inner);
    const int lanes = slot.to - slot.from;
    if (lanes <= 0) continue;  // runs need fewer slots the better they lie
    float v[n];
    slot.load(x + start, 0.0f, v);
    if (own.count == 0) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < n; ++i) total += v[i];
      own.pivot = total / static_cast<float>(lanes);
    }
    own.count += static_cast<float>(lanes);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (slot.holds(i)) own.add(v[i]);
      if constexpr (kOutput) v[i] = constants(v[i]);
    }
    if constexpr (kOutput) slot.store(y + start, same_alignment, v);
  }

  const ChannelSums mine = own.sums();
  const double first = reduce_block(mine.first, scratch[0], Sum{});
  const double second = reduce_block(mine.second, scratch[1], Sum{});
  if (threadIdx.x == 0) sums[blockIdx.x] = {first, second};
}

// Channels last: block (X, Y) takes X * n channels, one of `groups`, n a vector's where rows are
// aligned and else 1, and Y * rows_per_thread rows. sums: [pieces][channels].
template <typename T, int n, bool kOutput>
__global__ void __launch_bounds__(kThreads)
    batch_norm_stats_rows(const T* __restrict__ x, T* __restrict__ y, FrozenNorm norm, int64_t rows,
                          int64_t channels, int64_t groups, int rows_per_thread,
                          ChannelSums* __restrict__ sums) {
  constexpr int kPivotRows = 4;
  __shared__ ChannelSums of_warp[kWarps][32 * n];
  const int64_t piece = quotient(blockIdx.x, groups);
  const int64_t group = (blockIdx.x - piece * groups) * blockDim.x * n;  // its first channel
  const int64_t channel = group + threadIdx.x * n;
  const bool active = channel < channels;

  NormConstants constants[n];
  PivotSums own[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if constexpr (kOutput)
      if (active) constants[i] = NormConstants(norm, channel + i);
    own[i] = {0, 0, 0, 0};
  }
  int64_t row = piece * blockDim.y * rows_per_thread + threadIdx.y;
  const int64_t left = active && row < rows ? (rows - row - 1) / blockDim.y + 1 : 0;
  const int count = left < rows_per_thread ? static_cast<int>(left) : rows_per_thread;

  // The first rows: read together, their mean is the pivot.
  float v[kPivotRows][n];
#pragma unroll
  for (int k = 0; k < kPivotRows; ++k) {
    if (k < count) {
      load<n>(x + (row + k * blockDim.y) * channels + channel, n > 1, v[k]);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) v[k][i] = 0;
    }
  }
  const float inverse = 1.0f / static_cast<float>(count < kPivotRows ? count : kPivotRows);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float total = 0;
#pragma unroll
    for (int k = 0; k < kPivotRows; ++k) total += v[k][i];
    own[i].pivot = count > 0 ? total * inverse : 0.0f;
    own[i].count = static_cast<float>(count);
  }
#pragma unroll
  for (int k = 0; k < kPivotRows; ++k) {
    if (k < count) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        own[i].add(v[k][i]);
        if constexpr (kOutput) v[k][i] = constants[i](v[k][i]);
      }
      if constexpr (kOutput) store<n>(y + (row + k * blockDim.y) * channels + channel, n > 1, v[k]);
    }
  }
#pragma unroll 2
  for (int k = kPivotRows; k < count; ++k) {
    const int64_t first = (row + k * blockDim.y) * channels + channel;
    load<n>(x + first, n > 1, v[0]);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      own[i].add(v[0][i]);
      if constexpr (kOutput) v[0][i] = constants[i](v[0][i]);
    }
    if constexpr (kOutput) store<n>(y + first, n > 1, v[0]);
  }

  // Lanes of a warp that share channels are blockDim.x, a power of two, apart.
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int lane = thread % 32;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    ChannelSums total = own[i].sums();
    for (int step = 16; step >= static_cast<int>(blockDim.x); step /= 2) {
      total.first += __shfl_xor_sync(kFullWarp, total.first, step);
      total.second += __shfl_xor_sync(kFullWarp, total.second, step);
    }
    if (lane < static_cast<int>(blockDim.x)) of_warp[thread / 32][lane * n + i] = total;
  }
  __syncthreads();
  for (int c = thread; c < static_cast<int>(blockDim.x) * n; c += kThreads) {
    if (group + c >= channels) break;
    ChannelSums total = of_warp[0][c];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      total.first += of_warp[warp][c].first;
      total.second += of_warp[warp][c].second;
    }
    sums[piece * channels + group + c] = total;
  }
}

// A warp adds up the pieces of a channel: each lane every 32nd, then the lanes.
__global__ void __launch_bounds__(kThreads)
    finish_statistics(const ChannelSums* __restrict__ sums, float* __restrict__ mean,
                      float* __restrict__ var, int64_t pieces, int64_t channels, double count) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (channel >= channels) return;  // the whole warp
  double first = 0, second = 0;
  for (int64_t piece = threadIdx.x % 32; piece < pieces; piece += 32) {
    const ChannelSums part = sums[piece * channels + channel];
    first += part.first;
    second += part.second;
  }
  first = reduce_warp(first, Sum{});
  second = reduce_warp(second, Sum{});
  if (threadIdx.x % 32 == 0) write_statistics(first, second, count, mean + channel, var + channel);
}

}  // namespace

struct BatchNormStatsGradient {
  struct Constants {
    float mean, a, b, c;
  };
  FrozenNorm norm;         // running_var, weight and eps are used
  const float* mean;       // [channels], of the batch
  const float* grad_mean;  // [channels]
  const float* grad_var;   // [channels]
  float count;

  __device__ __forceinline__ Constants constants(int64_t c) const {
    return {__ldg(mean + c), load_factor(norm, c), div_rn(mul_rn(__ldg(grad_var + c), 2.0f), count),
            div_rn(__ldg(grad_mean + c), count)};
  }

  // The inputs are dy and x.
  __device__ __forceinline__ float operator()(const Constants& k, const float (&v)[2]) const {
    return add_rn(add_rn(mul_rn(v[0], k.a), mul_rn(sub_rn(v[1], k.mean), k.b)), k.c);
  }
};

}  // namespace gdfq::cuda
