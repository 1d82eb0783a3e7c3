// Mean and biased variance per channel, from one read of memory that may compute something else
// too.
//
// Memory is walked in chunks that stay in the first-level cache: one sweep over the chunk sums it,
// the next takes sum(x - pivot) and sum((x - pivot)^2) about the chunk's own mean. From a pivot and
// those two sums, sum(x) and sum(x^2) follow exactly, and they are accumulated in float64, so a
// mean a thousand times the standard deviation costs no accuracy.
#pragma once

#include <vector>

#include "channels.h"
#include "simd.h"

namespace gdfq::cpu {

// sum(x) and sum(x^2) of every channel for each part of memory.
class Moments {
 public:
  Moments(int64_t parts, int64_t channels)
      : parts_(parts), channels_(channels), sums_(2 * parts * channels) {}

  double* first(int64_t part) { return sums_.data() + 2 * part * channels_; }
  double* second(int64_t part) { return first(part) + channels_; }

  void finish(int64_t elements, float* mean, float* var) {
    for (int64_t part = 1; part < parts_; ++part)
      for (int64_t i = 0; i < 2 * channels_; ++i) sums_[i] += first(part)[i];
    const double count = static_cast<double>(elements);
    for (int64_t c = 0; c < channels_; ++c)
      write_statistics(first(0)[c], second(0)[c], count, mean + c, var + c);
  }

 private:
  int64_t parts_, channels_;
  std::vector<double> sums_;
};

template <typename T>
GDFQ_INLINE void add_moments(T& first, T& second, T pivot, double count, T sum, T square) {
  first += count * pivot + sum;
  second += square + 2.0 * pivot * sum + count * pivot * pivot;
}

// Adds a run of one channel. Calls visit(i, v, lanes) with v = x[i, i + lanes), for some elements
// twice.
template <typename scalar_t, typename Visit>
GDFQ_INLINE void add_run(const scalar_t* x, int64_t n, double* first, double* second,
                         const Visit& visit) {
  // The last vector overlaps its neighbour, if it has one, whose lanes are masked.
  const int64_t rest = n % kLanes;
  const int64_t tail = n < kLanes ? 0 : n - kLanes, tail_lanes = std::min(n, kLanes);
  const i32x16 tail_mask = n < kLanes ? lane_mask(n) : ~lane_mask(kLanes - rest);
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t count = std::min(kChunk, n - start);
    const int64_t end = start + count / kLanes * kLanes;
    const bool has_tail = end < start + count;
    f32x16 total[4] = {};
    int64_t i = start;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
      for (int k = 0; k < 4; ++k) total[k] += load(x + i + k * kLanes);
    for (; i < end; i += kLanes) total[0] += load(x + i);
    if (has_tail) total[1] += keep(tail_mask, load(x + tail, tail_lanes));
    const float pivot =
        sum((total[0] + total[1]) + (total[2] + total[3])) / static_cast<float>(count);

    const f32x16 vpivot = splat(pivot);
    f32x16 sums[2] = {}, squares[2] = {};
    const auto take = [&](int k, f32x16 v, i32x16 mask) __attribute__((always_inline)) {
      const f32x16 d = keep(mask, v - vpivot);
      sums[k] += d;
      squares[k] += d * d;
    };
    for (i = start; i + 2 * kLanes <= end; i += 2 * kLanes)
      for (int k = 0; k < 2; ++k) {
        const f32x16 v = load(x + i + k * kLanes);
        take(k, v, ~i32x16{});
        visit(i + k * kLanes, v, kLanes);
      }
    for (; i < end; i += kLanes) {
      const f32x16 v = load(x + i);
      take(0, v, ~i32x16{});
      visit(i, v, kLanes);
    }
    if (has_tail) {
      const f32x16 v = load(x + tail, tail_lanes);
      take(1, v, tail_mask);
      visit(tail, v, tail_lanes);
    }
    add_moments<double>(*first, *second, pivot, static_cast<double>(count), sum(sums[0] + sums[1]),
                        sum(squares[0] + squares[1]));
  }
}

// Adds kVectors vectors of channels from c on, kRows rows at a time to hide the additions' latency.
// Calls visit(i, constants(c, lanes), v, lanes) with v = x[i, i + lanes): constants are loaded
// once, which the compiler can't do itself across stores.
template <int kVectors, int kRows, typename scalar_t, typename Constants, typename Visit>
GDFQ_INLINE void add_columns(const scalar_t* x, int64_t rows, int64_t channels, int64_t c,
                             int64_t lanes, double* first, double* second,
                             const Constants& constants, const Visit& visit) {
  f32x16 pivot[kVectors] = {}, sums[kRows][kVectors] = {}, squares[kRows][kVectors] = {};
  decltype(constants(c, lanes)) own_constants[kVectors];
  for (int k = 0; k < kVectors; ++k) own_constants[k] = constants(c + k * kLanes, lanes);
  const auto for_each_vector = [&](const auto& f) __attribute__((always_inline)) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows)
      for (int j = 0; j < kRows; ++j)
        for (int k = 0; k < kVectors; ++k) f(j, k, (r + j) * channels + c + k * kLanes);
    for (; r < rows; ++r)
      for (int k = 0; k < kVectors; ++k) f(0, k, r * channels + c + k * kLanes);
  };
  for_each_vector([&](int j, int k, int64_t i)
                      __attribute__((always_inline)) { sums[j][k] += load(x + i, lanes); });
  for (int k = 0; k < kVectors; ++k) {
    for (int j = 0; j < kRows; ++j) {
      pivot[k] += sums[j][k];
      sums[j][k] = f32x16{};
    }
    pivot[k] /= static_cast<float>(rows);
  }
  for_each_vector([&](int j, int k, int64_t i) __attribute__((always_inline)) {
    const f32x16 v = load(x + i, lanes), d = v - pivot[k];
    sums[j][k] += d;
    squares[j][k] += d * d;
    visit(i, own_constants[k], v, lanes);
  });
  for (int k = 0; k < kVectors; ++k)
    for (int j = 1; j < kRows; ++j) {
      sums[0][k] += sums[j][k];
      squares[0][k] += squares[j][k];
    }
  const double count = static_cast<double>(rows);
  for (int k = 0; k < kVectors; ++k) {
    double *own = first + c + k * kLanes, *own_second = second + c + k * kLanes;
    if (lanes == kLanes) {
      f64x16 a = load_double(own), b = load_double(own_second);
      add_moments(a, b, widen(pivot[k]), count, widen(sums[0][k]), widen(squares[0][k]));
      store_double(own, a);
      store_double(own_second, b);
      continue;
    }
    for (int64_t lane = 0; lane < lanes; ++lane)
      add_moments<double>(own[lane], own_second[lane], pivot[k][lane], count, sums[0][k][lane],
                          squares[0][k][lane]);
  }
}

// Adds rows of all channels.
template <typename scalar_t, typename Constants, typename Visit>
GDFQ_INLINE void add_rows(const scalar_t* x, int64_t rows, int64_t channels, double* first,
                          double* second, const Constants& constants, const Visit& visit) {
  const int64_t chunk = rows_per_chunk(channels);
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t count = std::min(chunk, rows - start);
    const scalar_t* in = x + start * channels;
    const auto at =
        [&](int64_t i, const auto& own, f32x16 v, int64_t lanes)
            __attribute__((always_inline)) { visit(start * channels + i, own, v, lanes); };
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
      add_columns<4, 1>(in, count, channels, c, kLanes, first, second, constants, at);
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes)
      add_columns<2, 2>(in, count, channels, c, kLanes, first, second, constants, at);
    for (; c + kLanes <= channels; c += kLanes)
      add_columns<1, 4>(in, count, channels, c, kLanes, first, second, constants, at);
    if (c < channels)
      add_columns<1, 1>(in, count, channels, c, channels - c, first, second, constants, at);
  }
}

}  // namespace gdfq::cpu
