// kd_ce_loss on the GPU: mean over the batch of -sum_k y_k log softmax(s)_k, plus alpha * T^2 times
// the mean over batch and classes of p_t (log p_t - log p_s), p = softmax(logits / T); and its
// gradient
//   [softmax(s) * sum_k y_k - y] / B + alpha * T / (B * K) * (softmax(s / T) - softmax(t / T)).
//
// A block takes a row in three walks, a thread every blockDim-th class: both maxima; the sums of
// exponentials; the gradient. Where they fit, logits stay in dynamic shared memory between the
// walks, so they are read once; else they are read again, from cache. Soft labels are read twice.
// Bytes per class: both logits, soft labels, and the gradient written. Arithmetic in float64: at
// high temperatures the two distributions nearly agree, and float32 would lose the divergence in
// its own rounding. Deterministic: a row is one block, with its sums in a fixed order, and a last
// launch adds the rows in order. A class out of range makes its row's loss NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include "kd_ce_loss.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace gdfq::cuda {

constexpr int kLogitThreads = 256;
constexpr int64_t kLogitBytesOnChip = 46 * 1024;  // with static memory, below 48 KiB

struct Larger {
  __device__ __forceinline__ double operator()(double a, double b) const {
    return b > a || b != b ? b : a;  // NaN wins
  }
};

// Factors of all rows, computed by the host: the kernel has few registers to spare around a
// division of float64.
struct Factors {
  double coolness;  // 1 / T
  double hard;      // 1 / B
  double soft;      // alpha * T / (B * K)
};

// The dtype of loss and gradient.
template <typename T>
struct LossOf {
  using type = float;
};
template <>
struct LossOf<double> {
  using type = double;
};

__device__ __forceinline__ double to_double(double v) { return v; }
template <typename T>
__device__ __forceinline__ double to_double(T v) {
  return to_float(v);
}

namespace {

// rows: [2][gridDim.x], cross-entropy and divergence of each row.
template <typename T, bool kOnChip>
__global__ void __launch_bounds__(kLogitThreads, 1)
    kd_ce_loss_rows(const T* __restrict__ student, const T* __restrict__ teacher, Labels labels,
                    Factors factors, typename LossOf<T>::type* __restrict__ gradient,
                    int64_t classes, double* __restrict__ rows) {
  GDFQ_DYNAMIC_SHARED(T, chip);
  __shared__ double scratch[8][kLogitThreads / 32];
  const int64_t row = blockIdx.x, first = row * classes;
  const double coolness = factors.coolness;
  const int64_t label = labels.classes ? labels.classes[row] : 0;
  const auto probability = [&](int64_t k) -> double {
    if (labels.classes) return k == label ? 1.0 : 0.0;
    if constexpr (sizeof(T) == 8) return labels.wide_probabilities[first + k];
    return labels.probabilities[first + k];
  };
  // A thread reads what it wrote itself.
  const auto logits = [&](int64_t k, double& s, double& t) {
    s = to_double(kOnChip ? chip[k] : student[first + k]);
    t = to_double(kOnChip ? chip[classes + k] : teacher[first + k]);
  };

  const Larger larger;
  double max_s = to_double(student[first]), max_t = to_double(teacher[first]);
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    const T s = student[first + k], t = teacher[first + k];
    if constexpr (kOnChip) {
      chip[k] = s;
      chip[classes + k] = t;
    }
    max_s = larger(max_s, to_double(s));
    max_t = larger(max_t, to_double(t));
  }
  max_s = reduce_block(max_s, scratch[0], larger);
  max_t = reduce_block(max_t, scratch[1], larger);

  double z = 0, z_s = 0, z_t = 0, gap = 0, agreement = 0, label_sum = 0;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    double s, t;
    logits(k, s, t);
    s -= max_s;
    t -= max_t;
    const double y = probability(k), soft_t = exp(t * coolness);
    z += exp(s);
    z_s += exp(s * coolness);
    z_t += soft_t;
    gap += soft_t * (t - s);
    agreement += y * s;
    label_sum += y;
  }
  z = reduce_block(z, scratch[2], Sum{});
  z_s = reduce_block(z_s, scratch[3], Sum{});
  z_t = reduce_block(z_t, scratch[4], Sum{});
  gap = reduce_block(gap, scratch[5], Sum{});
  agreement = reduce_block(agreement, scratch[6], Sum{});
  label_sum = reduce_block(label_sum, scratch[7], Sum{});

  if (threadIdx.x == 0) {
    const bool exists = label >= 0 && label < classes;
    rows[row] =
        exists ? label_sum * log(z) - agreement : __longlong_as_double(0x7ff8000000000000ll);
    rows[gridDim.x + row] = gap * coolness / z_t + log(z_s) - log(z_t);
  }
  const double hard = factors.hard * label_sum / z;
  const double soft_s = factors.soft / z_s, soft_t = factors.soft / z_t;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    double s, t;
    logits(k, s, t);
    s -= max_s;
    t -= max_t;
    gradient[first + k] = static_cast<typename LossOf<T>::type>(
        exp(s) * hard - probability(k) * factors.hard +
        (exp(s * coolness) * soft_s - exp(t * coolness) * soft_t));
  }
}

// One block: each thread adds every kLogitThreads-th row, then the threads are added.
template <typename Loss>
__global__ void __launch_bounds__(kLogitThreads, 1)
    kd_ce_loss_sum(const double* __restrict__ rows, int64_t batch, double factor,
                   Loss* __restrict__ loss) {
  __shared__ double scratch[2][kLogitThreads / 32];
  double cross_entropy = 0, divergence = 0;
  for (int64_t row = threadIdx.x; row < batch; row += kLogitThreads) {
    cross_entropy += rows[row];
    divergence += rows[batch + row];
  }
  cross_entropy = reduce_block(cross_entropy, scratch[0], Sum{});
  divergence = reduce_block(divergence, scratch[1], Sum{});
  if (threadIdx.x == 0)
    *loss = static_cast<Loss>(cross_entropy / static_cast<double>(batch) + factor * divergence);
}

}  // namespace
}  // namespace gdfq::cuda
