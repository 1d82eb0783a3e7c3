// Included before ATen/Parallel.h, for a build without OpenMP: at::parallel_for, by the race
// checker.
#pragma once

#include <cstdint>

#define INTRA_OP_PARALLEL

namespace gdfq::races {

// Calls call(f, begin, end) for each of several tasks; checker.cpp.
void run(void (*call)(const void* f, int64_t begin, int64_t end), const void* f, int64_t begin,
         int64_t end, int64_t grain);

}  // namespace gdfq::races

namespace at::internal {

template <typename F>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  gdfq::races::run(
      [](const void* f, int64_t from, int64_t to) { (*static_cast<const F*>(f))(from, to); }, &f,
      begin, end, grain_size);
}

}  // namespace at::internal
