// The rows of several tensors, entries of their dimension 0, as one list that threads share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "layout.h"

namespace gdfq::cpu {

struct Row {
  int64_t tensor;
  int64_t index;  // along dimension 0
};

// Rows in an order that fits memory, cut into groups of at least kGrain elements or one row.
struct Rows {
  std::vector<Row> rows;
  std::vector<int64_t> group_starts;

  explicit Rows(const std::vector<at::Tensor>& tensors) {
    int64_t elements = kGrain;  // opens the first group
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (!tensors[t].defined()) continue;
      const int64_t inner = tensors[t].numel() / tensors[t].size(0);
      for (int64_t r = 0; r < tensors[t].size(0); ++r) {
        if (elements >= kGrain) {
          group_starts.push_back(static_cast<int64_t>(rows.size()));
          elements = 0;
        }
        rows.push_back({static_cast<int64_t>(t), r});
        elements += inner;
      }
    }
    group_starts.push_back(static_cast<int64_t>(rows.size()));
  }

  template <typename F>
  void for_each(const F& f) const {
    at::parallel_for(0, static_cast<int64_t>(group_starts.size()) - 1, 1,
                     [&](int64_t from, int64_t to) {
                       for (int64_t i = group_starts[from]; i < group_starts[to]; ++i) f(rows[i]);
                     });
  }
};

}  // namespace gdfq::cpu
