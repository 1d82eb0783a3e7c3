// The rows of several tensors as the blocks of one launch: descriptions of up to kMaxTensors
// tensors are an argument of the kernel; more tensors take another launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace gdfq::cuda {

constexpr int kMaxTensors = 48;  // kernel arguments are at most 4 KiB
constexpr int kListThreads = 128;

template <typename Rows>
struct RowList {
  Rows tensor[kMaxTensors];
  int64_t start[kMaxTensors];  // of its rows among all
  int count;

  // The tensor that has a row.
  __device__ __forceinline__ int find(int64_t row) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (start[middle] <= row) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// A block for each row; `Rows` has the number of a tensor's rows in `rows`.
template <typename Rows>
cudaError_t launch_list(void (*kernel)(RowList<Rows>), const Rows* tensors, int64_t count,
                        cudaStream_t stream) {
  static_assert(sizeof(RowList<Rows>) <= 4096);
  for (int64_t begin = 0; begin < count; begin += kMaxTensors) {
    RowList<Rows> list;
    list.count = static_cast<int>(count - begin < kMaxTensors ? count - begin : kMaxTensors);
    int64_t rows = 0;
    for (int t = 0; t < list.count; ++t) {
      list.tensor[t] = tensors[begin + t];
      list.start[t] = rows;
      rows += list.tensor[t].rows;
    }
    const cudaError_t error =
        launch(kernel, dim3(static_cast<unsigned>(rows)), dim3(kListThreads), 0, stream, list);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace gdfq::cuda
