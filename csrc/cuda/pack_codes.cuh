// pack_codes and unpack_codes on the GPU: codes of `bits` bits each as a stream of bits, least
// significant first, and back. Code i, with 2^(bits - 1) added, takes bits i * bits to (i + 1) *
// bits - 1 of the stream; a code that is out of range gives its low bits.
//
// A thread takes 32 codes, which are `bits` words of the stream; four codes are a word of four
// bytes, which is squeezed in two steps: neighbouring bytes, then halves move together. Bytes: one
// a code and bits / 8 packed, each read or written once. Deterministic, because every word is
// computed alone.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "pack_codes.h"

namespace gdfq::cuda {

constexpr int kPackThreads = 256;
constexpr int kGroup = 32;  // codes of a thread

// The value 2^(bits - 1) in each byte.
template <int kBits>
constexpr uint32_t kHalves = 0x01010101u << (kBits - 1);

// Four bytes of kBits bits each, to and from 4 * kBits bits.
template <int kBits>
__device__ __forceinline__ uint32_t squeeze(uint32_t codes) {
  constexpr uint32_t one = (1u << kBits) - 1, two = (1u << 2 * kBits) - 1;
  codes = (codes & (one << 16 | one)) | (codes >> 8 & (one << 16 | one)) << kBits;
  return (codes & two) | (codes >> 16 & two) << (2 * kBits);
}

template <int kBits>
__device__ __forceinline__ uint32_t spread_out(uint32_t stream) {
  constexpr uint32_t one = (1u << kBits) - 1, two = (1u << 2 * kBits) - 1;
  stream = (stream & two) | (stream >> 2 * kBits & two) << 16;
  return (stream & (one << 16 | one)) | (stream >> kBits & (one << 16 | one)) << 8;
}

// Adds 2^(bits - 1) to each byte. The top bit is cleared first, so that no byte carries into the
// next; it is not among the bits that are kept.
template <int kBits>
__device__ __forceinline__ uint32_t shift_up(uint32_t codes) {
  return (codes & 0x7f7f7f7fu) + kHalves<kBits>;
}

namespace {

template <int kBits>
__global__ void __launch_bounds__(kPackThreads)
    pack_codes_flat(const int8_t* __restrict__ codes, uint8_t* __restrict__ packed, int64_t numel,
                    bool aligned) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  const int64_t first = group * kGroup;
  if (first >= numel) return;
  const bool whole = first + kGroup <= numel;
  uint32_t fours[kGroup / 4];
  if (whole && aligned) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(codes + first) + k);
      fours[4 * k] = raw.x;
      fours[4 * k + 1] = raw.y;
      fours[4 * k + 2] = raw.z;
      fours[4 * k + 3] = raw.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      // Past the end: code + 2^(bits - 1) is 0.
      const int code = first + i < numel ? codes[first + i] : -(1 << (kBits - 1));
      if (i % 4 == 0) fours[i / 4] = 0;
      fours[i / 4] |= (static_cast<uint32_t>(code) & 0xffu) << 8 * (i % 4);
    }
  }
  uint32_t words[kBits] = {};
#pragma unroll
  for (int k = 0; k < kGroup / 4; ++k) {
    const int at = k * 4 * kBits;  // its first bit among the group's
    const uint64_t wide = static_cast<uint64_t>(squeeze<kBits>(shift_up<kBits>(fours[k])))
                          << at % 32;
    words[at / 32] |= static_cast<uint32_t>(wide);
    if (at % 32 + 4 * kBits > 32) words[at / 32 + 1] |= static_cast<uint32_t>(wide >> 32);
  }
  if (whole) {
    uint32_t* out = reinterpret_cast<uint32_t*>(packed) + group * kBits;
    if constexpr (kBits == 4) {
      __stwb(reinterpret_cast<uint4*>(out), make_uint4(words[0], words[1], words[2], words[3]));
    } else {
#pragma unroll
      for (int w = 0; w < kBits; ++w) out[w] = words[w];
    }
    return;
  }
  const int64_t left = ((numel - first) * kBits + 7) / 8;
#pragma unroll
  for (int b = 0; b < 4 * kBits; ++b)
    if (b < left) packed[group * 4 * kBits + b] = static_cast<uint8_t>(words[b / 4] >> 8 * (b % 4));
}

template <int kBits>
__global__ void __launch_bounds__(kPackThreads)
    unpack_codes_flat(const uint8_t* __restrict__ packed, int8_t* __restrict__ codes, int64_t numel,
                      bool aligned) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  const int64_t first = group * kGroup;
  if (first >= numel) return;
  const bool whole = first + kGroup <= numel;
  uint32_t words[kBits];
  if (whole && aligned) {
    const uint32_t* in = reinterpret_cast<const uint32_t*>(packed) + group * kBits;
    if constexpr (kBits == 4) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(in));
      words[0] = raw.x;
      words[1] = raw.y;
      words[2] = raw.z;
      words[3] = raw.w;
    } else {
#pragma unroll
      for (int w = 0; w < kBits; ++w) words[w] = __ldg(in + w);
    }
  } else {
    const int64_t left = whole ? 4 * kBits : ((numel - first) * kBits + 7) / 8;
#pragma unroll
    for (int b = 0; b < 4 * kBits; ++b) {
      if (b % 4 == 0) words[b / 4] = 0;
      if (b < left)
        words[b / 4] |= static_cast<uint32_t>(packed[group * 4 * kBits + b]) << 8 * (b % 4);
    }
  }
  uint32_t fours[kGroup / 4];
#pragma unroll
  for (int k = 0; k < kGroup / 4; ++k) {
    const int at = k * 4 * kBits;
    uint32_t stream = words[at / 32] >> at % 32;
    if (at % 32 + 4 * kBits > 32) stream |= words[at / 32 + 1] << (32 - at % 32);
    // Subtracting 2^(bits - 1) from each byte, none borrowing from the next: the top bit is set
    // meanwhile.
    fours[k] = ((spread_out<kBits>(stream) | 0x80808080u) - kHalves<kBits>)^0x80808080u;
  }
  if (whole) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
      __stwb(reinterpret_cast<uint4*>(codes + first) + k,
             make_uint4(fours[4 * k], fours[4 * k + 1], fours[4 * k + 2], fours[4 * k + 3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (first + i < numel) codes[first + i] = static_cast<int8_t>(fours[i / 4] >> 8 * (i % 4));
}

}  // namespace
}  // namespace gdfq::cuda
