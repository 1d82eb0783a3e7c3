"""Evaluation-mode batch normalization with its input's statistics, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops._outputs import empty_like, walkable
from gdfq.ops.triton._language import (
    band_channel,
    band_of,
    band_tile,
    load,
    load_factor,
    load_norm,
    load_vector,
    merge_statistics,
    multiply,
    multiply_add,
    store,
    tile,
)
from gdfq.ops.triton._launch import (
    contiguous,
    in_layout_of,
    launch,
    layout_of,
    merging,
    sweep,
    tiling,
)


@triton.jit
def _forward(
    x_ptr,  # [outer, channels, inner]
    running_mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    bias_ptr,  # [channels] or None
    y_ptr,  # [outer, channels, inner]
    partial_ptr,  # [3, splits, channels]: count, mean, sum of squares about the mean
    eps,
    outer,
    channels,
    inner,
    per_split,
    splits,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute y = (x - running_mean) * a + bias, and partial statistics of a split of a band.

    A program walks its tiles in order; each tile's mean and squares about that mean are taken
    from registers and merged into the program's by Chan's formula, so a large mean costs no
    accuracy. Reads x and writes y once. No atomics: partials lie apart and are merged in order.
    """
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    entry = tl.where(exists, channel, 0)
    running_mean, factor, bias = load_norm(
        running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, entry, eps
    )
    count = tl.zeros(running_mean.shape, tl.float32)
    mean = tl.zeros(running_mean.shape, tl.float32)
    squares = tl.zeros(running_mean.shape, tl.float32)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        x = load(x_ptr + offsets, mask)
        store(y_ptr + offsets, multiply_add(x - running_mean, factor, bias), mask)
        count, mean, squares = merge_statistics(count, mean, squares, x, mask, CHANNEL_IS_COLUMN)
    partial = partial_ptr + split * channels + channel
    tl.store(partial, count, mask=exists)
    tl.store(partial + splits * channels, mean, mask=exists)
    tl.store(partial + 2 * splits * channels, squares, mask=exists)


@triton.jit
def _merge(
    partial_ptr,  # [3, splits, channels]
    mean_ptr,  # [channels]
    var_ptr,  # [channels]
    splits,
    channels,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Merge each channel's partial statistics into its mean and biased variance.

    A program takes COLS channels and all their splits at once, in an order set by the shape.
    """
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    mask = (split < splits) & (channel < channels)
    partial = partial_ptr + split * channels + channel
    count = tl.load(partial, mask=mask, other=0.0)
    means = tl.load(partial + splits * channels, mask=mask, other=0.0)
    squares = tl.load(partial + 2 * splits * channels, mask=mask, other=0.0)
    total = tl.maximum(tl.sum(count, 0), 1.0)[None, :]
    share = tl.div_rn(count, tl.broadcast_to(total, count.shape))
    # A first mean, then its correction: the shares add up to 1 only up to rounding.
    pivot = tl.sum(means * share, 0)[None, :]
    centered = tl.where(mask, means - pivot, 0.0)
    correction = tl.sum(centered * share, 0)[None, :]
    centered = tl.where(mask, centered - correction, 0.0)
    var = (
        tl.div_rn(tl.sum(squares, 0)[None, :], total)
        + tl.sum(centered * centered * share, 0)[None, :]
    )
    tl.store(mean_ptr + channel, pivot + correction, mask=channel < channels)
    tl.store(var_ptr + channel, var, mask=channel < channels)


@triton.jit
def _backward(
    grad_y_ptr,  # [rows, cols]
    grad_mean_ptr,  # [channels]
    grad_var_ptr,  # [channels]
    x_ptr,  # [rows, cols]
    mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    dx_ptr,  # [rows, cols]
    eps,
    count,  # elements of a channel
    rows,
    cols,
    channels,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute dx = dy * a + (x - mean) * (2 * dvar / M) + dmean / M.

    A program takes one tile; the constants are computed once per row or column of it. Reads dy
    and x and writes dx once. Elements are independent.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    factor = load_factor(running_var_ptr, weight_ptr, channel, eps)
    mean = load_vector(mean_ptr, channel)
    elements = tl.zeros(mean.shape, tl.float32) + count
    slope = tl.div_rn(load_vector(grad_var_ptr, channel) * 2, elements)
    offset = tl.div_rn(load_vector(grad_mean_ptr, channel), elements)
    centered = load(x_ptr + offsets, mask) - mean
    dx = multiply(load(grad_y_ptr + offsets, mask), factor)
    store(dx_ptr + offsets, multiply_add(centered, slope, dx) + offset, mask)


def merge_partials(partial: Tensor) -> tuple[Tensor, Tensor]:
    """Merge ``[3, splits, channels]`` partial statistics into mean and variance, in one launch."""
    _, splits, channels = partial.shape
    mean = partial.new_empty((channels,))
    var = torch.empty_like(mean)
    programs, constants = merging(splits, channels)
    launch(_merge, programs, partial, mean, var, splits, channels, **constants)
    return mean, var


def batch_norm_stats(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch output and partial statistics, then their merge."""
    x = walkable(x)
    y = empty_like(x)
    layout = layout_of(x, 1)
    cut = sweep(layout)
    partial = x.new_empty((3, cut.splits, layout.channels), dtype=torch.float32)
    launch(
        _forward,
        cut.bands * cut.splits,
        x,
        *contiguous(running_mean, running_var, weight, bias),
        y,
        partial,
        eps,
        *cut.sizes,
        cut.splits,
        **cut.constants,
    )
    mean, var = merge_partials(partial)
    return y, mean, var


def batch_norm_stats_backward(
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    x: Tensor,
    mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    """Launch one kernel."""
    x = walkable(x)
    dx = empty_like(x)
    layout = layout_of(x, 1)
    tiles = tiling(layout)
    launch(
        _backward,
        tiles.programs,
        in_layout_of(grad_y, x),
        *contiguous(grad_mean, grad_var),
        x,
        *contiguous(mean, running_var, weight),
        dx,
        eps,
        float(x.numel() // x.shape[1]),
        *tiles.sizes,
        **tiles.constants,
    )
    return dx
