// pack_codes, unpack_codes: codes of `bits` bits each as a stream of bits, least
// significant first, and back.
// Code i, with 2^(bits - 1) added, takes bits i * bits to (i + 1) * bits - 1 of the stream.
//
// Eight codes are eight bytes of a 64-bit word, which is squeezed to `bits` bytes in three steps:
// neighbouring bytes, then halves, then words move together. Bytes: one byte a code and bits / 8
// packed, each read or written once. A thread takes whole groups of eight codes, which end on
// whole bytes, so the result does not depend on the number of threads.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <type_traits>

#include "../checks.h"
#include "layout.h"

namespace gdfq::cpu {
namespace {

static_assert(std::endian::native == std::endian::little, "the stream is built in words");

constexpr uint64_t repeated(uint64_t pattern, int width) {
  uint64_t word = 0;
  for (int shift = 0; shift < 64; shift += width) word |= pattern << shift;
  return word;
}

template <int kBits>
uint64_t squeeze(uint64_t codes) {
  constexpr uint64_t bytes = repeated(0xff, 16), halves = repeated(0xffff, 32);
  codes = (codes & bytes) | ((codes >> 8 & bytes) << kBits);
  codes = (codes & halves) | ((codes >> 16 & halves) << (2 * kBits));
  return (codes & 0xffffffff) | (codes >> 32) << (4 * kBits);
}

template <int kBits>
uint64_t spread_out(uint64_t stream) {
  constexpr uint64_t one = (1u << kBits) - 1, two = (1u << 2 * kBits) - 1;
  constexpr uint64_t four = (uint64_t{1} << 4 * kBits) - 1;
  stream = (stream & four) | ((stream >> 4 * kBits & four) << 32);
  stream = (stream & repeated(two, 32)) | ((stream >> 2 * kBits & repeated(two, 32)) << 16);
  return (stream & repeated(one, 16)) | ((stream >> kBits & repeated(one, 16)) << 8);
}

// Codes are in range where their bits from kBits - 1 up are all the same; strays collects others.
template <int kBits>
uint64_t pack_group(uint64_t codes, uint64_t* strays) {
  constexpr uint64_t half = repeated(1u << (kBits - 1), 8);
  constexpr uint64_t low = repeated((1u << kBits) - 1, 8);
  constexpr uint64_t equal = repeated(0x7fu & ~((1u << (kBits - 1)) - 1), 8);
  *strays |= (codes ^ codes >> 1) & equal;
  return squeeze<kBits>((codes ^ half) & low);  // adding half flips the sign bit
}

template <int kBits>
uint64_t unpack_group(uint64_t stream) {
  constexpr uint64_t half = repeated(1u << (kBits - 1), 8), top = repeated(0x80, 8);
  return ((spread_out<kBits>(stream) | top) - half) ^ top;  // no byte borrows from the next
}

template <int kBits>
bool pack(const int8_t* codes, uint8_t* packed, int64_t numel) {
  uint64_t strays = 0, word = 0;
  const int64_t whole = numel / 8;
  for (int64_t i = 0; i < whole; ++i) {
    std::memcpy(&word, codes + i * 8, 8);
    word = pack_group<kBits>(word, &strays);
    std::memcpy(packed + i * kBits, &word, kBits);
  }
  if (const int64_t rest = numel % 8) {
    word = repeated(0x100 - (1u << (kBits - 1)), 8);  // the lower bound, which packs to zeros
    std::memcpy(&word, codes + whole * 8, rest);
    word = pack_group<kBits>(word, &strays);
    std::memcpy(packed + whole * kBits, &word, (rest * kBits + 7) / 8);
  }
  return strays == 0;
}

template <int kBits>
void unpack(const uint8_t* packed, int8_t* codes, int64_t numel) {
  const int64_t whole = numel / 8;
  int64_t i = 0;
  // A whole word if the stream has one: the bits after the group are masked away.
  for (; (i * kBits + 8) * 8 <= numel * kBits; ++i) {
    uint64_t word;
    std::memcpy(&word, packed + i * kBits, 8);
    word = unpack_group<kBits>(word);
    std::memcpy(codes + i * 8, &word, 8);
  }
  for (; i < whole; ++i) {
    uint64_t word = 0;
    std::memcpy(&word, packed + i * kBits, kBits);
    word = unpack_group<kBits>(word);
    std::memcpy(codes + i * 8, &word, 8);
  }
  if (const int64_t rest = numel % 8) {
    uint64_t word = 0;
    std::memcpy(&word, packed + whole * kBits, (rest * kBits + 7) / 8);
    word = unpack_group<kBits>(word);
    std::memcpy(codes + whole * 8, &word, rest);
  }
}

// Calls f with the number of bits as a constant.
template <typename F>
void with_bits(int64_t bits, const F& f) {
  if (bits == 2) f(std::integral_constant<int, 2>{});
  if (bits == 3) f(std::integral_constant<int, 3>{});
  if (bits == 4) f(std::integral_constant<int, 4>{});
  if (bits == 5) f(std::integral_constant<int, 5>{});
  if (bits == 6) f(std::integral_constant<int, 6>{});
  if (bits == 7) f(std::integral_constant<int, 7>{});
}

// Calls f(begin, end) on stretches of whole groups.
template <typename F>
void for_each_stretch(int64_t numel, const F& f) {
  at::parallel_for(0, (numel + 7) / 8, kGrain / 8,
                   [&](int64_t begin, int64_t end) { f(begin * 8, std::min(numel, end * 8)); });
}

at::Tensor pack_codes(const at::Tensor& codes, int64_t bits) {
  check_codes(codes, bits);
  const at::Tensor input = codes.contiguous();
  const int64_t numel = input.numel();
  at::Tensor packed = at::empty({(numel * bits + 7) / 8}, input.options().dtype(at::kByte));
  std::atomic<bool> sound = true;
  with_bits(bits, [&](auto constant) {
    constexpr int kBits = decltype(constant)::value;
    const int8_t* in = input.const_data_ptr<int8_t>();
    uint8_t* out = packed.mutable_data_ptr<uint8_t>();
    for_each_stretch(numel, [&](int64_t begin, int64_t end) {
      if (!pack<kBits>(in + begin, out + begin / 8 * kBits, end - begin)) sound = false;
    });
  });
  TORCH_CHECK_VALUE(sound, "codes: must be from ", -(1 << (bits - 1)), " to ",
                    (1 << (bits - 1)) - 1, " for ", bits, " bits; some are not");
  return packed;
}

at::Tensor unpack_codes(const at::Tensor& packed, int64_t bits, at::IntArrayRef shape) {
  check_packed(packed, bits, shape);
  const at::Tensor input = packed.contiguous();
  at::Tensor codes = at::empty(shape, input.options().dtype(at::kChar));
  const int64_t numel = codes.numel();
  with_bits(bits, [&](auto constant) {
    constexpr int kBits = decltype(constant)::value;
    const uint8_t* in = input.const_data_ptr<uint8_t>();
    int8_t* out = codes.mutable_data_ptr<int8_t>();
    for_each_stretch(numel, [&](int64_t begin, int64_t end) {
      unpack<kBits>(in + begin / 8 * kBits, out + begin, end - begin);
    });
  });
  return codes;
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, CPU, m) {
  m.impl("pack_codes", pack_codes);
  m.impl("unpack_codes", unpack_codes);
}

}  // namespace gdfq::cpu
