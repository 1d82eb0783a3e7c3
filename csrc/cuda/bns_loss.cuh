// bns_loss on the GPU: mean over layers of [MSE(mean, running_mean) + MSE(var, running_var)], each
// MSE over the layer's channels; and its gradients, 2 / (L * C) * (mean - running_mean), the same
// for var.
//
// Pointers of up to kMaxLayers layers are an argument of the kernel, so that a network is one
// launch; more layers take another, which continues the sum. Forward: one block; a network has some
// thousand channels. Its warps take stretches of kStretch channels of a layer in
// turn. Backward: block (i, l) takes 256 channels of layer l. Each statistic is read once and each
// gradient written once, the arithmetic is in float64. Deterministic: the shapes decide who adds
// what, and sums are added in a fixed order.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "bns_loss.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace gdfq::cuda {

constexpr int kMaxLayers = 64;  // kernel arguments are at most 4 KiB
constexpr int kLossThreads = 1024;
constexpr int kStretch = 128;
constexpr int kGradientThreads = 256;

struct Layers {
  LayerStatistics layer[kMaxLayers];
  int count;
};

namespace {

// so_far: the sum of earlier launches, null in the first. loss is null in all but the last.
__global__ void __launch_bounds__(kLossThreads)
    bns_loss_sum(Layers layers, const double* so_far, double* sum, float* loss, double factor) {
  __shared__ double scratch[kLossThreads / 32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  double own = 0;
  int turn = 0;
  for (int l = 0; l < layers.count; ++l) {
    const LayerStatistics& layer = layers.layer[l];
    const double weight = 1.0 / static_cast<double>(layer.channels);
    for (int64_t begin = 0; begin < layer.channels; begin += kStretch, ++turn) {
      if (turn % (kLossThreads / 32) != warp) continue;
      double squares = 0;
#pragma unroll
      for (int k = 0; k < kStretch / 32; ++k) {
        const int64_t c = begin + k * 32 + lane;
        if (c >= layer.channels) break;
        const double m = static_cast<double>(__ldg(layer.mean + c)) - __ldg(layer.running_mean + c);
        const double v = static_cast<double>(__ldg(layer.var + c)) - __ldg(layer.running_var + c);
        squares += m * m + v * v;
      }
      own += squares * weight;
    }
  }
  double total = reduce_block(own, scratch, Sum{});
  if (threadIdx.x != 0) return;
  if (so_far) total += *so_far;
  *sum = total;
  if (loss) *loss = static_cast<float>(total * factor);
}

__global__ void __launch_bounds__(kGradientThreads)
    bns_loss_gradient(const float* __restrict__ grad, Layers layers, double factor) {
  const LayerStatistics& layer = layers.layer[blockIdx.y];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kGradientThreads + threadIdx.x;
  if (c >= layer.channels) return;
  const double weight = factor * __ldg(grad) / static_cast<double>(layer.channels);
  const double m = static_cast<double>(__ldg(layer.mean + c)) - __ldg(layer.running_mean + c);
  const double v = static_cast<double>(__ldg(layer.var + c)) - __ldg(layer.running_var + c);
  layer.grad_mean[c] = static_cast<float>(weight * m);
  layer.grad_var[c] = static_cast<float>(weight * v);
}

}  // namespace
}  // namespace gdfq::cuda
