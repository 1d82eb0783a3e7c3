// Elementwise operators with constants per channel: y[i] = op(constants(channel of i), inputs[i]).
//
// An operator is a struct with
//   Constants            a channel's constants, in registers
//   constants(channel)   computes them
//   operator()(constants, const float (&inputs)[kInputs]) -> float
//
// Where channels are last and have constants for each sample, `samples` parts of equal size follow
// each other, and channel c of sample s is number s * channels + c.
//
// Every element is read once from each input and written once, by one thread, so the result
// depends on no order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../layout.h"
#include "launch.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

// Launch bounds of (kThreads, 1): without a number of blocks, ptxas spills a little if that lets
// one more block run.
constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 2;
constexpr int kRowsPerThread = 8;

template <typename T, int kInputs>
struct Inputs {
  const T* data[kInputs];
};

namespace {

template <int n, typename T, int kInputs, typename Op>
__device__ __forceinline__ void map_lanes(const Inputs<T, kInputs>& inputs, T* output, const Op& op,
                                          const typename Op::Constants& constants, int64_t first,
                                          bool aligned) {
  float v[kInputs][n];
#pragma unroll
  for (int k = 0; k < kInputs; ++k) load<n>(inputs.data[k] + first, aligned, v[k]);
  float result[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float lane[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) lane[k] = v[k][i];
    result[i] = op(constants, lane);
  }
  store<n>(output + first, aligned, result);
}

// Memory in order: a thread takes kVectorsPerThread vectors, a block apart. `head` elements come
// before the first 16-byte boundary, if all tensors share one; else nothing is aligned and
// vectors are loaded element by element. A vector that crosses channels is too.
template <bool kSamples, typename T, int kInputs, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    map_flat(Inputs<T, kInputs> inputs, T* __restrict__ output, Op op, Layout layout,
             int64_t samples, int64_t numel, int head, bool aligned) {
  constexpr int n = kVector<T>;
  const bool one_channel = layout.channels == 1 && (!kSamples || samples == 1);
  const auto channel_of = [&](int64_t run) {
    const int64_t row = quotient(run, layout.channels);
    int64_t sample = 0;
    if constexpr (kSamples) sample = quotient(row, quotient(layout.outer, samples));
    return run - (row - sample) * layout.channels;
  };
  const auto elements = [&](int64_t first, int count) {
#pragma unroll 1
    for (int64_t i = first; i < first + count; ++i) {
      const int64_t channel = one_channel ? 0 : channel_of(quotient(i, layout.inner));
      map_lanes<1>(inputs, output, op, op.constants(channel), i, false);
    }
  };

  const int64_t vectors = (numel - head) / n;
  int64_t vector = static_cast<int64_t>(blockIdx.x) * (kThreads * kVectorsPerThread) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kVectorsPerThread; ++k, vector += kThreads) {
    if (vector >= vectors) break;
    const int64_t first = head + vector * n;
    int64_t channel = 0;
    if (!one_channel) {
      const int64_t run = quotient(first, layout.inner);
      if (first + n > (run + 1) * layout.inner) {
        elements(first, n);
        continue;
      }
      channel = channel_of(run);
    }
    // Not kept for the next vector: a 64-bit division in between would spill them.
    map_lanes<n>(inputs, output, op, op.constants(channel), first, aligned);
  }

  if (blockIdx.x == 0) {
    const int edges = static_cast<int>(numel - vectors * n);
    const int edge = static_cast<int>(threadIdx.x);
    if (edge < edges) elements(edge < head ? edge : vectors * n + edge, 1);
  }
}

// Channels last: block (X, Y) takes X vectors of channels, one of `groups`, and Y * kRowsPerThread
// rows of a sample, one of `pieces`, so that a thread keeps the constants of its channels. Rows are
// aligned.
template <bool kSamples, typename T, int kInputs, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    map_rows(Inputs<T, kInputs> inputs, T* __restrict__ output, Op op, int64_t rows,
             int64_t channels, int64_t groups, int64_t pieces) {
  constexpr int n = kVector<T>;
  const int64_t part = quotient(blockIdx.x, groups);
  int64_t sample = 0;
  if constexpr (kSamples) sample = quotient(part, pieces);
  const int64_t channel = ((blockIdx.x - part * groups) * blockDim.x + threadIdx.x) * n;
  if (channel >= channels) return;
  typename Op::Constants constants[n];
#pragma unroll
  for (int i = 0; i < n; ++i) constants[i] = op.constants(sample * channels + channel + i);

  int64_t row = (part - sample * pieces) * blockDim.y * kRowsPerThread + threadIdx.y;
#pragma unroll 2
  for (int k = 0; k < kRowsPerThread; ++k, row += blockDim.y) {
    if (row >= rows) break;
    const int64_t first = (sample * rows + row) * channels + channel;
    float v[kInputs][n];
#pragma unroll
    for (int j = 0; j < kInputs; ++j) load<n>(inputs.data[j] + first, true, v[j]);
    float result[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      float lane[kInputs];
#pragma unroll
      for (int j = 0; j < kInputs; ++j) lane[j] = v[j][i];
      result[i] = op(constants[i], lane);
    }
    store<n>(output + first, true, result);
  }
}

// The block of map_rows and of other walks over rows of channels: as many threads across as there
// are vectors of channels, at most a warp, the rest along the rows.
inline dim3 rows_block(int64_t vectors) {
  unsigned across = 1;
  while (across < 32 && across < vectors) across *= 2;
  return dim3(across, kThreads / across);
}

// A sample's channels that lie in runs are channels of their own.
inline Layout split_samples(Layout layout, int64_t& samples) {
  if (samples > 1 && layout.inner > 1) {
    layout = {layout.outer / samples, samples * layout.channels, layout.inner};
    samples = 1;
  }
  return layout;
}

template <bool kSamples = false, typename T, int kInputs, typename Op>
cudaError_t map(const Inputs<T, kInputs>& inputs, T* output, const Op& op, Layout layout,
                cudaStream_t stream, int64_t samples = 1) {
  constexpr int n = kVector<T>;
  layout = split_samples(layout, samples);
  const int64_t numel = layout.outer * layout.channels * layout.inner;
  const int skew = misalignment(output);
  bool aligned = true;
  for (const T* input : inputs.data) aligned = aligned && misalignment(input) == skew;

  if (layout.inner == 1 && layout.channels % n == 0 && aligned && skew == 0) {
    const int64_t vectors = layout.channels / n;
    const dim3 block = rows_block(vectors);
    const int64_t groups = divide_up(vectors, block.x);
    const int64_t rows = layout.outer / samples;
    const int64_t pieces = divide_up(rows, block.y * kRowsPerThread);
    return launch(map_rows<kSamples, T, kInputs, Op>,
                  dim3(static_cast<unsigned>(samples * pieces * groups)), block, 0, stream, inputs,
                  output, op, rows, layout.channels, groups, pieces);
  }
  int64_t head = aligned && skew > 0 ? n - skew : 0;
  if (head > numel) head = numel;
  const int64_t vectors = (numel - head) / n;
  int64_t blocks = divide_up(vectors, kThreads * kVectorsPerThread);
  if (blocks == 0) blocks = 1;
  return launch(map_flat<kSamples, T, kInputs, Op>, dim3(static_cast<unsigned>(blocks)),
                dim3(kThreads), 0, stream, inputs, output, op, layout, samples, numel,
                static_cast<int>(head), aligned);
}

}  // namespace
}  // namespace gdfq::cuda
