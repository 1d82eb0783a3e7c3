#include "batch_norm_stats.h"

#include "batch_norm_stats.cuh"

namespace gdfq::cuda {
namespace {

// How the work is cut: by shape and dtype alone. Whether x is aligned changes how rows are read,
// not how many pieces there are.
template <typename T>
struct Plan {
  bool rows, vectors;
  dim3 block;
  int rows_per_thread;
  int64_t slots_per_run, pieces, groups;

  Plan(Layout layout, bool aligned) {
    rows = layout.inner == 1;
    vectors = layout.channels % kVector<T> == 0 && aligned;
    if (!rows) {
      slots_per_run = slots_of<T>(layout.inner, false);
      pieces = divide_up(layout.outer * slots_per_run, kThreads * kSlotsPerThread);
      return;
    }
    const int64_t across = vectors ? layout.channels / kVector<T> : layout.channels;
    block = rows_block(across);
    groups = divide_up(across, block.x);
    // Some 512 blocks if there are rows for it; 32 rows bound the error of float32 sums.
    const int64_t wanted = divide_up(layout.outer * groups, 512 * static_cast<int64_t>(block.y));
    rows_per_thread = static_cast<int>(wanted < 8 ? 8 : wanted > 32 ? 32 : wanted);
    pieces = divide_up(layout.outer, static_cast<int64_t>(block.y) * rows_per_thread);
  }
};

template <typename T>
bool is_aligned(const T* p) {
  return misalignment(p) == 0;
}

}  // namespace

int64_t batch_norm_stats_workspace(Dtype dtype, Layout layout) {
  int64_t pieces = 0;
  with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const int64_t aligned = Plan<T>(layout, true).pieces, other = Plan<T>(layout, false).pieces;
    pieces = aligned > other ? aligned : other;
    return cudaSuccess;
  });
  return 2 * pieces * layout.channels;
}

cudaError_t launch_batch_norm_stats(Dtype dtype, const void* x, void* y, float* mean, float* var,
                                    const float* running_mean, const float* running_var,
                                    const float* weight, const float* bias, float eps,
                                    Layout layout, double* workspace, cudaStream_t stream) {
  const FrozenNorm norm{running_mean, running_var, weight, bias, eps};
  ChannelSums* sums = reinterpret_cast<ChannelSums*>(workspace);
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T* in = static_cast<const T*>(x);
    T* out = static_cast<T*>(y);
    const Plan<T> plan(layout, is_aligned(in) && is_aligned(out));
    cudaError_t error;
    if (!plan.rows) {
      const dim3 grid(static_cast<unsigned>(plan.pieces * layout.channels));
      error = launch(batch_norm_stats_runs<T>, grid, dim3(kThreads), 0, stream, in, out, norm,
                     layout, plan.slots_per_run, sums);
    } else {
      const dim3 grid(static_cast<unsigned>(plan.pieces * plan.groups));
      const auto kernel = plan.vectors ? batch_norm_stats_rows<T, kVector<T>>
                                       : batch_norm_stats_rows<T, 1>;
      error = launch(kernel, grid, plan.block, 0, stream, in, out, norm, layout.outer,
                     layout.channels, plan.groups, plan.rows_per_thread, sums);
    }
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(divide_up(layout.channels, kWarps)));
    return launch(finish_statistics, grid, dim3(kThreads), 0, stream, sums, mean, var, plan.pieces,
                  layout.channels, static_cast<double>(layout.outer * layout.inner));
  });
}

cudaError_t launch_batch_norm_stats_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                             const float* grad_mean, const float* grad_var,
                                             const float* mean, const float* running_var,
                                             const float* weight, float eps, Layout layout,
                                             cudaStream_t stream) {
  const BatchNormStatsGradient gradient{
      {nullptr, running_var, weight, nullptr, eps},
      mean,
      grad_mean,
      grad_var,
      static_cast<float>(layout.outer * layout.inner)};
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const Inputs<T, 2> inputs{{static_cast<const T*>(dy), static_cast<const T*>(x)}};
    return map(inputs, static_cast<T*>(dx), gradient, layout, stream);
  });
}

}  // namespace gdfq::cuda
