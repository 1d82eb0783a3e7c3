#include "batch_norm_stats.h"

#include "batch_norm_stats.cuh"

namespace gdfq::cuda {
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

namespace {

template <bool kOutput>
cudaError_t launch_statistics(Dtype dtype, const void* x, void* y, float* mean, float* var,
                              FrozenNorm norm, Layout layout, double* workspace,
                              cudaStream_t stream) {
  ChannelSums* sums = reinterpret_cast<ChannelSums*>(workspace);
  return with_type(dtype, [&](auto value) {
    using T = decltype(value);
    const T* in = static_cast<const T*>(x);
    T* out = static_cast<T*>(y);
    const Plan<T> plan(layout, is_aligned(in) && is_aligned(out));
    cudaError_t error;
    if (!plan.rows) {
      const dim3 grid(static_cast<unsigned>(plan.pieces * layout.channels));
      error = launch(batch_norm_stats_runs<T, kOutput>, grid, dim3(kThreads), 0, stream, in, out,
                     norm, layout, plan.slots_per_run, sums);
    } else {
      const dim3 grid(static_cast<unsigned>(plan.pieces * plan.groups));
      const auto kernel = plan.vectors ? batch_norm_stats_rows<T, kVector<T>, kOutput>
                                       : batch_norm_stats_rows<T, 1, kOutput>;
      error = launch(kernel, grid, plan.block, 0, stream, in, out, norm, layout.outer,
                     layout.channels, plan.groups, plan.rows_per_thread, sums);
    }
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(divide_up(layout.channels, kWarps)));
    return launch(finish_statistics, grid, dim3(kThreads), 0, stream, sums, mean, var, plan.pieces,
                  layout.channels, static_cast<double>(layout.outer * layout.inner));
  });
}

}  // namespace

cudaError_t launch_batch_norm_stats(Dtype dtype, const void* x, void* y, float* mean, float* var,
                                    const float* running_mean, const float* running_var,
                                    const float* weight, const float* bias, float eps,
                                    Layout layout, double* workspace, cudaStream_t stream) {
  const FrozenNorm norm{running_mean, running_var, weight, bias, eps};
  return launch_statistics<true>(dtype, x, y, mean, var, norm, layout, workspace, stream);
}

cudaError_t launch_channel_statistics(Dtype dtype, const void* x, float* mean, float* var,
                                      Layout layout, double* workspace, cudaStream_t stream) {
  return launch_statistics<false>(dtype, x, nullptr, mean, var, FrozenNorm{}, layout, workspace,
                                  stream);
}

cudaError_t launch_batch_norm_stats_backward(Dtype dtype, const void* dy, const void* x, void* dx,
                                             const float* grad_mean, const float* grad_var,
                                             const float* mean, const float* running_var,
                                             const float* weight, float eps, Layout layout,
                                             cudaStream_t stream) {
  const BatchNormStatsGradient gradient{{nullptr, running_var, weight, nullptr, eps},
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
