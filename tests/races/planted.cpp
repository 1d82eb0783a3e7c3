// Loops with a race and without, for the test of the checker.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <vector>

namespace {

// Each of the loops adds 1 to the first element of `counts` from several tasks.
void lost_update(const at::Tensor& counts) {
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t, int64_t) { ++*count; });
}

void kept_update(const at::Tensor& counts) {
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t, int64_t) { std::atomic_ref<int64_t>(*count) += 1; });
}

void plain_and_atomic(const at::Tensor& counts) {
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t begin, int64_t) {
    if (begin == 5)
      ++*count;
    else
      std::atomic_ref<int64_t>(*count) += 1;
  });
}

void shared_scratch(const at::Tensor& counts) {
  std::vector<int64_t> scratch(8);
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t begin, int64_t end) {
    std::copy(count + begin, count + end, scratch.begin());
  });
}

void shared_copy(const at::Tensor& counts) {
  int64_t scratch[8];
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t begin, int64_t end) {
    std::memcpy(scratch, count + begin, (end - begin) * sizeof(int64_t));
  });
}

void own_scratch(const at::Tensor& counts) {
  auto* count = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, 8, 1, [&](int64_t begin, int64_t end) {
    int64_t local[8];
    std::vector<int64_t> scratch(8);
    std::memcpy(local, count + begin, (end - begin) * sizeof(int64_t));
    std::copy(local, local + (end - begin), scratch.begin());
    std::copy(scratch.begin(), scratch.begin() + (end - begin), count + begin);
  });
}

}  // namespace

TORCH_LIBRARY(gdfq_races, m) {
  m.def("lost_update(Tensor(a!) counts) -> ()", lost_update);
  m.def("kept_update(Tensor(a!) counts) -> ()", kept_update);
  m.def("plain_and_atomic(Tensor(a!) counts) -> ()", plain_and_atomic);
  m.def("shared_scratch(Tensor(a!) counts) -> ()", shared_scratch);
  m.def("shared_copy(Tensor(a!) counts) -> ()", shared_copy);
  m.def("own_scratch(Tensor(a!) counts) -> ()", own_scratch);
}
