#include "bns_loss.h"

#include "bns_loss.cuh"

namespace gdfq::cuda {
namespace {

// Calls body(layers, whether they are the first, whether they are the last).
template <typename Body>
cudaError_t for_each_part(const LayerStatistics* layers, int64_t count, const Body& body) {
  for (int64_t begin = 0; begin < count; begin += kMaxLayers) {
    Layers part;
    part.count = static_cast<int>(count - begin < kMaxLayers ? count - begin : kMaxLayers);
    for (int l = 0; l < part.count; ++l) part.layer[l] = layers[begin + l];
    const cudaError_t error = body(part, begin == 0, begin + part.count == count);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_bns_loss(const LayerStatistics* layers, int64_t count, float* loss,
                            double* workspace, cudaStream_t stream) {
  return for_each_part(layers, count, [&](const Layers& part, bool first, bool last) {
    return launch(bns_loss_sum, dim3(1), dim3(kLossThreads), 0, stream, part,
                  first ? nullptr : workspace, workspace, last ? loss : nullptr,
                  1.0 / static_cast<double>(count));
  });
}

cudaError_t launch_bns_loss_backward(const float* grad, const LayerStatistics* layers,
                                     int64_t count, cudaStream_t stream) {
  return for_each_part(layers, count, [&](const Layers& part, bool, bool) {
    int64_t widest = 1;
    for (int l = 0; l < part.count; ++l)
      widest = part.layer[l].channels > widest ? part.layer[l].channels : widest;
    const dim3 grid(static_cast<unsigned>(divide_up(widest, kGradientThreads)),
                    static_cast<unsigned>(part.count));
    return launch(bns_loss_gradient, grid, dim3(kGradientThreads), 0, stream, grad, part,
                  2.0 / static_cast<double>(count));
  });
}

}  // namespace gdfq::cuda
