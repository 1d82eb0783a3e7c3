// Scale and zero point of every range of a quantizer.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../quantizer.h"
#include "layout.h"

namespace gdfq::cpu {

struct Grids {
  std::vector<Grid> per_channel;
  std::vector<float> scale, zero;  // over one period, where runs are short

  Grids(const at::Tensor& lo, const at::Tensor& hi, int64_t bits, const Layout& layout) {
    const at::Tensor lows = lo.to(at::kFloat).contiguous();
    const at::Tensor highs = hi.to(at::kFloat).contiguous();
    std::vector<float> scales, zeros;
    for (int64_t c = 0; c < layout.channels; ++c) {
      const Grid grid = make_grid(lows.const_data_ptr<float>()[c], highs.const_data_ptr<float>()[c],
                                  static_cast<int>(bits));
      per_channel.push_back(grid);
      scales.push_back(grid.scale);
      zeros.push_back(grid.zero);
    }
    if (has_short_runs(layout) || layout.inner == 1) {
      scale = spread(scales, layout.inner);
      zero = spread(zeros, layout.inner);
    }
  }
};

}  // namespace gdfq::cpu
