"""Fake quantization over a given range, in Triton. Never run on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton._language import (
    band_channel,
    band_of,
    band_tile,
    clip_gradient,
    load,
    load_grid,
    multiply,
    position,
    quantize_value,
    round_half_even,
    store,
    sum_rows,
    tile,
)
from gdfq.ops.triton._launch import (
    dense,
    in_layout_of,
    launch,
    layout_of,
    merging,
    sweep,
    tiling,
)


@triton.jit
def _forward(
    x_ptr,  # [rows, cols]
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    y_ptr,  # [rows, cols]
    rows,
    cols,
    channels,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute y = (clamp(round(inv_scale * x - zero)) + zero) / inv_scale.

    A program takes one tile; inv_scale and zero are computed once per row or column of it. Reads x
    and writes y once. Elements are independent, so nothing depends on the order of programs.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, channel, BITS)
    store(y_ptr + offsets, quantize_value(load(x_ptr + offsets, mask), inv_scale, zero, BITS), mask)


@triton.jit
def _backward(
    grad_ptr,  # [rows, cols]
    x_ptr,  # [rows, cols]
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    dx_ptr,  # [rows, cols]
    rows,
    cols,
    channels,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute dx = dy where the code before clamping lies in range, else 0.

    Tiles as in the forward kernel. Reads dy and x and writes dx once.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, channel, BITS)
    grad, x = load(grad_ptr + offsets, mask), load(x_ptr + offsets, mask)
    store(dx_ptr + offsets, clip_gradient(grad, x, inv_scale, zero, BITS), mask)


@triton.jit
def _learned_backward(
    grad_ptr,  # [outer, channels, inner]
    x_ptr,  # [outer, channels, inner]
    lo_ptr,  # [channels]
    hi_ptr,  # [channels]
    dx_ptr,  # [outer, channels, inner]
    partial_ptr,  # [3, splits, channels]: sums of dy below, above, and dy * (code - v), float64
    outer,
    channels,
    inner,
    per_split,
    splits,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute dx as the clip estimator does, and the sums for the gradients to lo and hi.

    A program walks the tiles of a split of a band in order: a tile is summed in float32, tiles in
    float64. Reads dy and x and writes dx once. No atomics: partial sums lie apart and are merged
    in order.
    """
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, tl.where(exists, channel, 0), BITS)
    sum_below = tl.zeros(inv_scale.shape, tl.float64)
    sum_above = tl.zeros(inv_scale.shape, tl.float64)
    sum_inside = tl.zeros(inv_scale.shape, tl.float64)
    code_lo: tl.constexpr = -(2.0 ** (BITS - 1))
    code_hi: tl.constexpr = 2.0 ** (BITS - 1) - 1
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        grad = load(grad_ptr + offsets, mask)
        v = position(load(x_ptr + offsets, mask), inv_scale, zero)
        below = v < code_lo - 0.5
        above = v >= code_hi + 0.5
        inside = (v >= code_lo - 0.5) & (v < code_hi + 0.5)  # not NaN
        store(dx_ptr + offsets, tl.where(inside, grad, 0.0), mask)
        rounding = tl.where(inside, multiply(grad, round_half_even(v) - v), 0.0)
        sum_below += sum_rows(tl.where(below, grad, 0.0), CHANNEL_IS_COLUMN)
        sum_above += sum_rows(tl.where(above, grad, 0.0), CHANNEL_IS_COLUMN)
        sum_inside += sum_rows(rounding, CHANNEL_IS_COLUMN)
    partial = partial_ptr + split * channels + channel
    tl.store(partial, sum_below, mask=exists)
    tl.store(partial + splits * channels, sum_above, mask=exists)
    tl.store(partial + 2 * splits * channels, sum_inside, mask=exists)


@triton.jit
def _learned_merge(
    partial_ptr,  # [3, splits, channels]
    dlo_ptr,  # [channels]
    dhi_ptr,  # [channels]
    elements,  # of a channel
    splits,
    channels,
    BITS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute dlo = (below - e) / sqrt(n * levels), dhi = (above + e) / sqrt(n * levels).

    Here e = inside / levels. A program takes COLS channels and all their splits at once, in an
    order set by the shape.
    """
    levels: tl.constexpr = 2.0**BITS - 1
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    exists = channel < channels
    mask = (split < splits) & exists
    partial = partial_ptr + split * channels + channel
    below = tl.sum(tl.load(partial, mask=mask, other=0.0), 0)[None, :]
    above = tl.sum(tl.load(partial + splits * channels, mask=mask, other=0.0), 0)[None, :]
    inside = tl.sum(tl.load(partial + 2 * splits * channels, mask=mask, other=0.0), 0)[None, :]
    root = tl.sqrt((tl.zeros((1, 1), tl.float64) + elements) * levels)
    error = inside / levels
    tl.store(dlo_ptr + channel, ((below - error) / root).to(tl.float32), mask=exists)
    tl.store(dhi_ptr + channel, ((above + error) / root).to(tl.float32), mask=exists)


def fake_quantize(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None, ste: str
) -> Tensor:
    """Launch the forward kernel."""
    x = dense(x)
    y = torch.empty_like(x)
    tiles = tiling(layout_of(x, axis))
    bounds = lo.contiguous(), hi.contiguous()
    launch(_forward, tiles.programs, x, *bounds, y, *tiles.sizes, BITS=bits, **tiles.constants)
    return y


def fake_quantize_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> Tensor:
    """Launch the clip estimator's kernel."""
    x = dense(x)
    grad = in_layout_of(grad, x)
    dx = torch.empty_like(x)
    tiles = tiling(layout_of(x, axis))
    bounds = lo.contiguous(), hi.contiguous()
    arguments = (grad, x, *bounds, dx, *tiles.sizes)
    launch(_backward, tiles.programs, *arguments, BITS=bits, **tiles.constants)
    return dx


def fake_quantize_learned_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the pass, then the merge of its partial sums."""
    x = dense(x)
    dx = torch.empty_like(x)
    layout = layout_of(x, axis)
    cut = sweep(layout)
    partial = x.new_empty((3, cut.splits, layout.channels), dtype=torch.float64)
    dlo = lo.new_empty(lo.shape, dtype=torch.float32)
    dhi = torch.empty_like(dlo)
    launch(
        _learned_backward,
        cut.bands * cut.splits,
        in_layout_of(grad, x),
        x,
        lo.contiguous(),
        hi.contiguous(),
        dx,
        partial,
        *cut.sizes,
        cut.splits,
        BITS=bits,
        **cut.constants,
    )
    programs, constants = merging(cut.splits, layout.channels)
    launch(
        _learned_merge,
        programs,
        partial,
        dlo,
        dhi,
        x.numel() // layout.channels,
        cut.splits,
        layout.channels,
        BITS=bits,
        **constants,
    )
    return dx, dlo, dhi
