// Reciprocal of the step size and zero point of every range of a quantizer.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../quantizer.h"
#include "layout.h"

namespace gdfq::cpu {

struct Grids {
  std::vector<Grid> per_channel;
  std::vector<float> inv_scale, zero;  // over one period, where runs are short

  Grids(const at::Tensor& lo, const at::Tensor& hi, int64_t bits, const Layout& layout) {
    const at::Tensor float_lo = floats(lo);
    const at::Tensor float_hi = floats(hi);
    std::vector<float> inv_scales, zeros;
    for (int64_t c = 0; c < layout.channels; ++c) {
      const Grid grid = make_grid(float_lo.const_data_ptr<float>()[c],
                                  float_hi.const_data_ptr<float>()[c], static_cast<int>(bits));
      per_channel.push_back(grid);
      inv_scales.push_back(grid.inv_scale);
      zeros.push_back(grid.zero);
    }
    if (has_short_runs(layout) || layout.inner == 1) {
      inv_scale = spread(inv_scales, layout.inner);
      zero = spread(zeros, layout.inner);
    }
  }
};

}  // namespace gdfq::cpu
