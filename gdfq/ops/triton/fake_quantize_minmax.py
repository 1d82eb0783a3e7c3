"""Fake quantization of each channel over its own minimum and maximum, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton._language import (
    band_channel,
    band_of,
    band_tile,
    contain_zero,
    extend,
    make_grid,
    maximum,
    minimum,
    quantize_value,
    store,
)
from gdfq.ops.triton._launch import Layout, dense, launch, layout_of, merging, sweep
from gdfq.ops.triton.fake_quantize import fake_quantize

# The longest row that a program keeps in registers, 32 elements a thread.
LONGEST_ROW = 16384


@triton.jit
def _rows(
    w_ptr,  # [rows, cols]
    y_ptr,  # [rows, cols]
    lo_ptr,  # [rows]
    hi_ptr,  # [rows]
    cols,
    BITS: tl.constexpr,
    ZERO_IN_RANGE: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute lo, hi = min(w), max(w) of a row (and 0), and y = w quantized over them.

    A program takes one row and keeps it in registers. Reads w and writes y once. Minimum and
    maximum do not depend on order.
    """
    row = tl.program_id(0)
    col = tl.arange(0, COLS)[None, :]
    mask = col < cols
    offsets = row.to(tl.int64) * cols + col
    w = tl.load(w_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    lo = minimum(tl.where(mask, w, float("inf")), 1)[:, None]
    hi = maximum(tl.where(mask, w, -float("inf")), 1)[:, None]
    if ZERO_IN_RANGE:
        lo, hi = contain_zero(lo, hi)
    entry = row + tl.arange(0, 1)[:, None]
    tl.store(lo_ptr + entry, lo)
    tl.store(hi_ptr + entry, hi)
    inv_scale, zero = make_grid(lo, hi, BITS)
    store(y_ptr + offsets, quantize_value(w, inv_scale, zero, BITS), mask)


@triton.jit
def _partial(
    w_ptr,  # [outer, channels, inner]
    lo_ptr,  # [splits, channels]
    hi_ptr,  # [splits, channels]
    outer,
    channels,
    inner,
    per_split,
    splits,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute lo, hi = min(w), max(w) of a split of a band of channels. Reads w once."""
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    lo = tl.full((ROWS, COLS), float("inf"), tl.float32)
    hi = tl.full((ROWS, COLS), -float("inf"), tl.float32)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        w = tl.load(w_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        lo, hi = extend(lo, hi, w, mask)
    lo, hi = minimum(lo, 0)[None, :], maximum(hi, 0)[None, :]
    if not CHANNEL_IS_COLUMN:
        lo, hi = minimum(lo, 1)[:, None], maximum(hi, 1)[:, None]
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    tl.store(lo_ptr + split * channels + channel, lo, mask=exists)
    tl.store(hi_ptr + split * channels + channel, hi, mask=exists)


@triton.jit
def _merge(
    partial_lo_ptr,  # [splits, channels]
    partial_hi_ptr,  # [splits, channels]
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    splits,
    channels,
    ZERO_IN_RANGE: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute lo, hi = min, max over a channel's splits (and 0); a program takes COLS channels."""
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    mask = (split < splits) & (channel < channels)
    offsets = split * channels + channel
    lo = tl.load(partial_lo_ptr + offsets, mask=mask, other=float("inf"))
    hi = tl.load(partial_hi_ptr + offsets, mask=mask, other=-float("inf"))
    lo, hi = minimum(lo, 0)[None, :], maximum(hi, 0)[None, :]
    if ZERO_IN_RANGE:
        lo, hi = contain_zero(lo, hi)
    tl.store(lo_ptr + channel, lo, mask=channel < channels)
    tl.store(hi_ptr + channel, hi, mask=channel < channels)


def partial_minmax(w: Tensor, layout: Layout) -> Tensor:
    """Compute minima and maxima of dense ``w`` per channel and split, ``[2, splits, channels]``."""
    cut = sweep(layout)
    partials = w.new_empty((2, cut.splits, layout.channels), dtype=torch.float32)
    programs = cut.bands * cut.splits
    launch(_partial, programs, w, *partials, *cut.sizes, cut.splits, **cut.constants)
    return partials


def _minmax(w: Tensor, layout: Layout, lo: Tensor, hi: Tensor, zero_in_range: bool) -> None:
    """Compute minimum and maximum of dense ``w`` per channel, in two launches."""
    partials = partial_minmax(w, layout)
    _, splits, channels = partials.shape
    programs, constants = merging(splits, channels)
    constants |= {"ZERO_IN_RANGE": zero_in_range}
    launch(_merge, programs, *partials, lo, hi, splits, channels, **constants)


def fake_quantize_minmax(
    w: Tensor, bits: int, axis: int | None, ste: str, zero_in_range: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one kernel if rows fit on chip, else minima and maxima, their merge, the quantizer."""
    w = dense(w)
    layout = layout_of(w, axis)
    lo = w.new_empty(() if axis is None else (w.shape[axis],), dtype=torch.float32)
    hi = torch.empty_like(lo)
    if layout.outer > 1 or layout.inner > LONGEST_ROW:
        _minmax(w, layout, lo, hi, zero_in_range)
        return fake_quantize(w, lo, hi, bits, axis, ste), lo, hi
    y = torch.empty_like(w)
    cols = triton.next_power_of_2(layout.inner)
    constants = {"BITS": bits, "ZERO_IN_RANGE": zero_in_range, "COLS": cols}
    launch(_rows, layout.channels, w, y, lo, hi, layout.inner, **constants)
    return y, lo, hi
