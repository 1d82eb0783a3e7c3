"""Codes of 2 to 7 bits as a dense stream of bits, and back, in Triton. Never run on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.pack_codes import check_codes
from gdfq.ops.triton import _launch
from gdfq.ops.triton._launch import launch


@triton.jit
def _pack(
    codes_ptr,  # [numel], int8
    packed_ptr,  # [bytes], uint8
    numel,
    bytes,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Pack eight codes, with 2^(bits - 1) added, into BITS bytes, the first code least significant.

    A program takes GROUPS times eight codes. Reads each code and writes each byte once. Bytes are
    independent.
    """
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    place = tl.arange(0, 8)[None, :]
    index = group[:, None] * 8 + place
    mask = index < numel
    code = tl.load(codes_ptr + index, mask=mask, other=0).to(tl.int64) + (1 << (BITS - 1))
    code = tl.where(mask, code & ((1 << BITS) - 1), 0)
    word = tl.sum(code << (place * BITS).to(tl.int64), 1)
    for byte in tl.static_range(BITS):
        at = group * BITS + byte
        tl.store(packed_ptr + at, ((word >> (8 * byte)) & 255).to(tl.uint8), mask=at < bytes)


@triton.jit
def _unpack(
    packed_ptr,  # [bytes], uint8
    codes_ptr,  # [numel], int8
    numel,
    bytes,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute code = BITS bits of the stream - 2^(bits - 1).

    A program takes a block of codes; a code lies in one byte or two neighbours, which come from
    cache if more codes share them. Writes each code once. Codes are independent.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < numel
    bit = index * BITS
    byte = bit // 8
    low = tl.load(packed_ptr + byte, mask=mask, other=0).to(tl.int32)
    high = tl.load(packed_ptr + byte + 1, mask=mask & (byte + 1 < bytes), other=0).to(tl.int32)
    word = (low | (high << 8)) >> (bit % 8).to(tl.int32)
    code = (word & ((1 << BITS) - 1)) - (1 << (BITS - 1))
    tl.store(codes_ptr + index, code.to(tl.int8), mask=mask)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Launch one kernel."""
    check_codes(codes, bits)
    codes = codes.contiguous()
    packed = codes.new_empty(((codes.numel() * bits + 7) // 8,), dtype=torch.uint8)
    if codes.numel() > 0:
        groups = min(triton.next_power_of_2(triton.cdiv(codes.numel(), 8)), _launch.block // 8)
        programs = triton.cdiv(codes.numel(), 8 * groups)
        sizes = codes.numel(), packed.numel()
        launch(_pack, programs, codes, packed, *sizes, BITS=bits, GROUPS=groups)
    return packed


def unpack_codes(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Launch one kernel."""
    codes = packed.new_empty(shape, dtype=torch.int8)
    if math.prod(shape) > 0:
        block = min(triton.next_power_of_2(codes.numel()), _launch.block)
        programs = triton.cdiv(codes.numel(), block)
        sizes = codes.numel(), packed.numel()
        launch(_unpack, programs, packed.contiguous(), codes, *sizes, BITS=bits, BLOCK=block)
    return codes
