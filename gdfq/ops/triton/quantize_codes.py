"""Integer codes, inverse scale and zero point, in Triton. Never run on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton import _launch
from gdfq.ops.triton._language import code_of, load, load_grid, make_grid, tile
from gdfq.ops.triton._launch import dense, launch, layout_of, tiling


@triton.jit
def _codes(
    x_ptr,  # [rows, cols]
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    codes_ptr,  # [rows, cols], int8
    rows,
    cols,
    channels,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute code = clamp(round(inv_scale * x - zero)); NaN gets the lower bound.

    A program takes one tile; inv_scale and zero are computed once per row or column of it. Reads x
    and writes codes once. Elements are independent.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, channel, BITS)
    code = code_of(load(x_ptr + offsets, mask), inv_scale, zero, BITS)
    tl.store(codes_ptr + offsets, code.to(tl.int8), mask=mask)


@triton.jit
def _grids(
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    scale_ptr,  # [channels]
    zero_ptr,  # [channels]
    channels,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute inv_scale = levels / (hi - lo), zero = round(inv_scale * lo) + 2^(bits - 1)."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    inv_scale, zero = make_grid(load(lo_ptr + channel, mask), load(hi_ptr + channel, mask), BITS)
    tl.store(scale_ptr + channel, inv_scale, mask=mask)
    tl.store(zero_ptr + channel, zero, mask=mask)


def quantize_codes(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the codes, then inverse scale and zero."""
    x = dense(x)
    codes = torch.empty_like(x, dtype=torch.int8)
    inv_scale = lo.new_empty(lo.shape, dtype=torch.float32)
    zero = torch.empty_like(inv_scale)
    bounds = lo.contiguous(), hi.contiguous()
    tiles = tiling(layout_of(x, axis))
    launch(_codes, tiles.programs, x, *bounds, codes, *tiles.sizes, BITS=bits, **tiles.constants)
    channels = inv_scale.numel()
    block = min(triton.next_power_of_2(channels), _launch.block)
    programs = triton.cdiv(channels, block)
    launch(_grids, programs, *bounds, inv_scale, zero, channels, BITS=bits, BLOCK=block)
    return codes, inv_scale, zero
