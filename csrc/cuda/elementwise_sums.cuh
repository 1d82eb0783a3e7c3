// Elementwise operators that also add up terms per channel, in the same read:
//   outputs[i], terms = op(constants(channel of i), inputs[i]);   sums[channel of i] += terms.
//
// An operator is a struct with
//   kInputs, kOutputs, kSums    at least 1, 0 and 1
//   Constants                   a channel's constants, in registers
//   constants(channel)          computes them
//   operator()(constants, inputs, outputs, terms)   references to arrays of float
// and with `samples` above 1, channel c of sample s is number s * channels + c.
//
// A thread adds in float32 over at most 8 slots of 16 bytes, or 32 rows; a block and then
// finish_sums add in float64. Each element is read and written once; besides, a block writes 8
// bytes per channel and sum. Deterministic: shape and alignment decide who adds what, and partial
// sums are added in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../layout.h"
#include "channel_walk.cuh"
#include "elementwise.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

template <typename Op>
constexpr int kRoomForOutputs = Op::kOutputs > 0 ? Op::kOutputs : 1;

template <typename T, typename Op>
struct Tensors {
  const T* inputs[Op::kInputs];
  T* outputs[kRoomForOutputs<Op>];
};

namespace {

// Runs of one channel: block (piece, c) takes kThreads * kSlotsPerThread of the channel's slots of
// 16 bytes; runs of any length and alignment. sums: [pieces][channels][kSums].
template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    sum_runs(Tensors<T, Op> tensors, Op op, Layout layout, int64_t slots_per_run,
             double* __restrict__ sums) {
  constexpr int n = kVector<T>;
  __shared__ double scratch[Op::kSums][kWarps];
  const int64_t piece = quotient(blockIdx.x, layout.channels);
  const int64_t channel = blockIdx.x - piece * layout.channels;
  const typename Op::Constants constants = op.constants(channel);
  const int base = misalignment(tensors.inputs[0]);

  float own[Op::kSums] = {};
  const int64_t slots = layout.outer * slots_per_run;
  int64_t s = piece * (kThreads * kSlotsPerThread) + threadIdx.x;
#pragma unroll 1
  for (int k = 0; k < kSlotsPerThread; ++k, s += kThreads) {
    if (s >= slots) break;
    const int64_t run = quotient(s, slots_per_run);
    const int64_t start = (run * layout.channels + channel) * layout.inner;
    const Slot<T> slot(s - run * slots_per_run, misalignment(tensors.inputs[0] + start),
                       layout.inner);
    if (slot.to <= slot.from) continue;  // runs need fewer slots the better they lie
    float in[Op::kInputs][n], out[kRoomForOutputs<Op>][n];
#pragma unroll
    for (int j = 0; j < Op::kInputs; ++j)
      slot.load(tensors.inputs[j] + start, 0.0f, in[j], misalignment(tensors.inputs[j]) == base);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      float lane[Op::kInputs], results[kRoomForOutputs<Op>], terms[Op::kSums];
#pragma unroll
      for (int j = 0; j < Op::kInputs; ++j) lane[j] = in[j][i];
      op(constants, lane, results, terms);
#pragma unroll
      for (int j = 0; j < Op::kOutputs; ++j) out[j][i] = results[j];
#pragma unroll
      for (int j = 0; j < Op::kSums; ++j) own[j] += slot.holds(i) ? terms[j] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < Op::kOutputs; ++j)
      slot.store(tensors.outputs[j] + start, misalignment(tensors.outputs[j]) == base, out[j]);
  }
#pragma unroll
  for (int j = 0; j < Op::kSums; ++j) {
    const double total = reduce_block(static_cast<double>(own[j]), scratch[j], Sum{});
    if (threadIdx.x == 0) sums[static_cast<int64_t>(blockIdx.x) * Op::kSums + j] = total;
  }
}

// Channels last: block (X, Y) takes X * n channels, one of `groups`, n a vector's where rows are
// aligned and else 1, and Y * rows_per_thread rows of a sample, one of `pieces`.
// sums: [pieces][samples * channels][kSums].
template <typename T, int n, typename Op>
__global__ void __launch_bounds__(kThreads, 1)
    sum_rows(Tensors<T, Op> tensors, Op op, int64_t rows, int64_t channels, int64_t samples,
             int64_t groups, int64_t pieces, int rows_per_thread, double* __restrict__ sums) {
  __shared__ double of_warp[kWarps][32 * n];
  const int64_t part = quotient(blockIdx.x, groups);
  const int64_t sample = quotient(part, pieces);
  const int64_t piece = part - sample * pieces;
  const int64_t group = (blockIdx.x - part * groups) * blockDim.x * n;  // its first channel
  const int64_t channel = group + threadIdx.x * n;
  const bool active = channel < channels;

  typename Op::Constants constants[n];
  float own[Op::kSums][n] = {};
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (active) constants[i] = op.constants(sample * channels + channel + i);
  int64_t row = piece * blockDim.y * rows_per_thread + threadIdx.y;
#pragma unroll 1
  for (int k = 0; k < rows_per_thread; ++k, row += blockDim.y) {
    if (!active || row >= rows) break;
    const int64_t first = (sample * rows + row) * channels + channel;
    float in[Op::kInputs][n], out[kRoomForOutputs<Op>][n];
#pragma unroll
    for (int j = 0; j < Op::kInputs; ++j) load<n>(tensors.inputs[j] + first, n > 1, in[j]);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      float lane[Op::kInputs], results[kRoomForOutputs<Op>], terms[Op::kSums];
#pragma unroll
      for (int j = 0; j < Op::kInputs; ++j) lane[j] = in[j][i];
      op(constants[i], lane, results, terms);
#pragma unroll
      for (int j = 0; j < Op::kOutputs; ++j) out[j][i] = results[j];
#pragma unroll
      for (int j = 0; j < Op::kSums; ++j) own[j][i] += terms[j];
    }
#pragma unroll
    for (int j = 0; j < Op::kOutputs; ++j) store<n>(tensors.outputs[j] + first, n > 1, out[j]);
  }

  // Lanes of a warp that share channels are blockDim.x, a power of two, apart.
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int lane = thread % 32;
#pragma unroll
  for (int j = 0; j < Op::kSums; ++j) {
    if (j > 0) __syncthreads();  // the last sum has been read
#pragma unroll
    for (int i = 0; i < n; ++i) {
      double total = own[j][i];
      for (int step = 16; step >= static_cast<int>(blockDim.x); step /= 2)
        total += __shfl_xor_sync(kFullWarp, total, step);
      if (lane < static_cast<int>(blockDim.x)) of_warp[thread / 32][lane * n + i] = total;
    }
    __syncthreads();
    for (int c = thread; c < static_cast<int>(blockDim.x) * n; c += kThreads) {
      if (group + c >= channels) break;
      double total = of_warp[0][c];
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) total += of_warp[warp][c];
      sums[((piece * samples + sample) * channels + group + c) * Op::kSums + j] = total;
    }
  }
}

// A block adds up the pieces of a channel, each thread every blockDim-th, then the threads, and
// calls finish(channel, sums).
template <typename Finish>
__global__ void __launch_bounds__(kThreads, 1)
    finish_sums(const double* __restrict__ sums, int64_t pieces, int64_t channels, Finish finish) {
  __shared__ double scratch[Finish::kSums][kWarps];
  double total[Finish::kSums] = {};
  for (int64_t piece = threadIdx.x; piece < pieces; piece += blockDim.x)
#pragma unroll
    for (int j = 0; j < Finish::kSums; ++j)
      total[j] += sums[(piece * channels + blockIdx.x) * Finish::kSums + j];
#pragma unroll
  for (int j = 0; j < Finish::kSums; ++j) total[j] = reduce_block(total[j], scratch[j], Sum{});
  if (threadIdx.x == 0) finish(static_cast<int64_t>(blockIdx.x), total);
}

template <typename Finish>
cudaError_t launch_finish(const double* sums, int64_t pieces, int64_t channels,
                          const Finish& finish, cudaStream_t stream) {
  unsigned threads = 32;
  while (threads < kThreads && threads < pieces) threads *= 2;
  return launch(finish_sums<Finish>, dim3(static_cast<unsigned>(channels)), dim3(threads), 0,
                stream, sums, pieces, channels, finish);
}

// float64 values of workspace.
inline int64_t sums_workspace(Dtype dtype, Layout layout, int sums, int64_t samples = 1) {
  const int64_t channels = samples * layout.channels;
  layout = split_samples(layout, samples);
  int64_t pieces = 0;
  with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const int64_t aligned = Plan<T>(layout, true, samples).pieces;
    const int64_t other = Plan<T>(layout, false, samples).pieces;
    pieces = aligned > other ? aligned : other;
    return cudaSuccess;
  });
  return pieces * channels * sums;
}

// `finish` gets the sums of each channel (of each sample).
template <typename T, typename Op, typename Finish>
cudaError_t map_and_sum(const Tensors<T, Op>& tensors, const Op& op, Layout layout,
                        double* workspace, const Finish& finish, cudaStream_t stream,
                        int64_t samples = 1) {
  static_assert(Op::kSums == Finish::kSums);
  const int64_t channels = samples * layout.channels;
  layout = split_samples(layout, samples);
  bool aligned = true;
  for (const T* p : tensors.inputs) aligned = aligned && is_aligned(p);
  if (Op::kOutputs > 0)
    for (const T* p : tensors.outputs) aligned = aligned && is_aligned(p);
  const Plan<T> plan(layout, aligned, samples);
  cudaError_t error;
  if (!plan.rows) {
    const dim3 grid(static_cast<unsigned>(plan.pieces * layout.channels));
    error = launch(sum_runs<T, Op>, grid, dim3(kThreads), 0, stream, tensors, op, layout,
                   plan.slots_per_run, workspace);
  } else {
    const dim3 grid(static_cast<unsigned>(samples * plan.pieces * plan.groups));
    const auto kernel = plan.vectors ? sum_rows<T, kVector<T>, Op> : sum_rows<T, 1, Op>;
    error =
        launch(kernel, grid, plan.block, 0, stream, tensors, op, layout.outer / samples,
               layout.channels, samples, plan.groups, plan.pieces, plan.rows_per_thread, workspace);
  }
  if (error != cudaSuccess) return error;
  return launch_finish(workspace, plan.pieces, channels, finish, stream);
}

}  // namespace
}  // namespace gdfq::cuda
