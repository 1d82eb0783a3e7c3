"""Training-mode batch normalization and a leaky ReLU, in Triton. Never run on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops._outputs import empty_like, walkable
from gdfq.ops.triton._language import (
    band_channel,
    band_of,
    band_tile,
    factor_of,
    load,
    load_vector,
    merge_statistics,
    multiply,
    store,
    sum_rows,
    tile,
    tile_row,
)
from gdfq.ops.triton._launch import (
    Layout,
    in_layout_of,
    launch,
    layout_of,
    merging,
    sweep,
    tiling,
)
from gdfq.ops.triton.batch_norm_stats import merge_partials


@triton.jit
def parameter_of(
    pointer, sample, channel, channels, PRESENT: tl.constexpr, BY_SAMPLE: tl.constexpr
):
    """Load weight or bias of a channel, or of a sample's channel; 1 if absent."""
    if BY_SAMPLE:
        value = load_vector(pointer, sample * channels + channel)
    elif PRESENT:
        value = load_vector(pointer, channel)
    else:
        value = tl.full(channel.shape, 1.0, tl.float32)
    return value


@triton.jit
def _statistics(
    x_ptr,  # [outer, channels, inner]
    partial_ptr,  # [3, splits, channels]: count, mean, sum of squares about the mean
    outer,
    channels,
    inner,
    per_split,
    splits,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute partial statistics of a split of a band, as in batch_norm_stats. Reads x once."""
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    count = tl.zeros(channel.shape, tl.float32)
    mean = tl.zeros(channel.shape, tl.float32)
    squares = tl.zeros(channel.shape, tl.float32)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        x = load(x_ptr + offsets, mask)
        count, mean, squares = merge_statistics(count, mean, squares, x, mask, CHANNEL_IS_COLUMN)
    partial = partial_ptr + split * channels + channel
    tl.store(partial, count, mask=exists)
    tl.store(partial + splits * channels, mean, mask=exists)
    tl.store(partial + 2 * splits * channels, squares, mask=exists)


@triton.jit
def _forward(
    x_ptr,  # [rows, cols]
    mean_ptr,  # [channels]
    var_ptr,  # [channels]
    weight_ptr,  # [channels] or [samples, channels], unused without HAS_WEIGHT
    bias_ptr,  # [channels] or [samples, channels], unused without HAS_BIAS
    y_ptr,  # [rows, cols]
    eps,
    negative_slope,
    rows_per_sample,
    rows,
    cols,
    channels,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_BY_SAMPLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute v = (x - mean) * a + bias and y = v where v > 0, else negative_slope * v.

    A program takes one tile. Reads x and writes y once. Elements are independent.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    row = tile_row(rows, cols, ROWS, COLS)
    sample = row // rows_per_sample
    weight = parameter_of(weight_ptr, sample, channel, channels, HAS_WEIGHT, WEIGHT_BY_SAMPLE)
    bias = parameter_of(bias_ptr, sample, channel, channels, HAS_BIAS, BIAS_BY_SAMPLE)
    factor = factor_of(weight, load_vector(var_ptr, channel), eps)
    v = multiply(load(x_ptr + offsets, mask) - load_vector(mean_ptr, channel), factor)
    if HAS_BIAS:
        v = v + bias
    store(y_ptr + offsets, tl.where(v > 0.0, v, v * negative_slope), mask)


@triton.jit
def _reduce(
    grad_ptr,  # [samples, outer, channels, inner]
    x_ptr,  # [samples, outer, channels, inner]
    mean_ptr,  # [channels]
    var_ptr,  # [channels]
    weight_ptr,  # [channels] or [samples, channels], unused without HAS_WEIGHT
    bias_ptr,  # [channels] or [samples, channels], unused without HAS_BIAS
    partial_ptr,  # [2, samples, splits, channels]: sum of g, of g * (x - mean), float64
    eps,
    negative_slope,
    samples,
    outer,
    channels,
    inner,
    per_split,
    splits,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_BY_SAMPLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute partial sums of g = dy * (the leaky ReLU's slope) and of g * (x - mean).

    A program walks the tiles of a split of a band of one sample (of the whole batch if no
    parameter is per sample) in order: a tile is summed in float32, tiles in float64. Reads
    dy and x once. No atomics: partial sums lie apart and are merged in order.
    """
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    sample = tl.program_id(1)
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    entry = tl.where(exists, channel, 0)
    weight = parameter_of(weight_ptr, sample, entry, channels, HAS_WEIGHT, WEIGHT_BY_SAMPLE)
    bias = parameter_of(bias_ptr, sample, entry, channels, HAS_BIAS, BIAS_BY_SAMPLE)
    mean = load_vector(mean_ptr, entry)
    factor = factor_of(weight, load_vector(var_ptr, entry), eps)
    start = sample.to(tl.int64) * outer * channels * inner
    sum_g = tl.zeros(mean.shape, tl.float64)
    sum_gx = tl.zeros(mean.shape, tl.float64)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        centered = load(x_ptr + start + offsets, mask) - mean
        v = multiply(centered, factor)
        if HAS_BIAS:
            v = v + bias
        g = load(grad_ptr + start + offsets, mask)
        g = tl.where(v > 0.0, g, g * negative_slope)
        sum_g += sum_rows(g, CHANNEL_IS_COLUMN)
        sum_gx += sum_rows(tl.where(mask, g * centered, 0.0), CHANNEL_IS_COLUMN)
    partial = partial_ptr + (sample * splits + split) * channels + channel
    tl.store(partial, sum_g, mask=exists)
    tl.store(partial + samples * splits * channels, sum_gx, mask=exists)


@triton.jit
def _merge(
    partial_ptr,  # [2, samples, splits, channels]
    var_ptr,  # [channels]
    weight_ptr,  # [channels] or [samples, channels], unused without HAS_WEIGHT
    dweight_ptr,  # [samples, channels]
    dbias_ptr,  # [samples, channels]
    offset_ptr,  # [channels]
    slope_ptr,  # [channels]
    eps,
    count,  # elements of a channel
    samples,
    splits,
    channels,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_BY_SAMPLE: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute dbias = sum(g), dweight = sum(g * (x - mean)) / std, offset and slope.

    dx = g * a - (offset + slope * (x - mean)), with offset = mean(a * g) and
    slope = mean(a * g * (x - mean)) / (var + eps). A program takes COLS channels, samples one
    after another and all their splits at once.
    """
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    exists = channel < channels
    mask = (split < splits) & exists
    var = tl.load(var_ptr + channel, mask=exists, other=1.0).to(tl.float64) + eps
    std = tl.sqrt(var)
    offset = tl.zeros((1, COLS), tl.float64)
    slope = tl.zeros((1, COLS), tl.float64)
    for sample in range(0, samples):
        partial = partial_ptr + (sample * splits + split) * channels + channel
        sum_g = tl.sum(tl.load(partial, mask=mask, other=0.0), 0)[None, :]
        partial += samples * splits * channels
        sum_gx = tl.sum(tl.load(partial, mask=mask, other=0.0), 0)[None, :]
        entry = sample * channels + channel
        tl.store(dbias_ptr + entry, sum_g.to(tl.float32), mask=exists)
        tl.store(dweight_ptr + entry, (sum_gx / std).to(tl.float32), mask=exists)
        factor = 1.0 / std
        if HAS_WEIGHT:
            own = entry if WEIGHT_BY_SAMPLE else channel
            factor = tl.load(weight_ptr + own, mask=exists, other=0.0).to(tl.float64) / std
        offset += factor * sum_g
        slope += factor * sum_gx
    tl.store(offset_ptr + channel, (offset / count).to(tl.float32), mask=exists)
    tl.store(slope_ptr + channel, (slope / var / count).to(tl.float32), mask=exists)


@triton.jit
def _backward(
    grad_ptr,  # [rows, cols]
    x_ptr,  # [rows, cols]
    mean_ptr,  # [channels]
    var_ptr,  # [channels]
    weight_ptr,  # [channels] or [samples, channels], unused without HAS_WEIGHT
    bias_ptr,  # [channels] or [samples, channels], unused without HAS_BIAS
    offset_ptr,  # [channels]
    slope_ptr,  # [channels]
    dx_ptr,  # [rows, cols]
    eps,
    negative_slope,
    rows_per_sample,
    rows,
    cols,
    channels,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_BY_SAMPLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_SAMPLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute dx = g * a - (offset + slope * (x - mean)).

    A program takes one tile. Reads dy and x and writes dx once. Elements are independent.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    row = tile_row(rows, cols, ROWS, COLS)
    sample = row // rows_per_sample
    weight = parameter_of(weight_ptr, sample, channel, channels, HAS_WEIGHT, WEIGHT_BY_SAMPLE)
    bias = parameter_of(bias_ptr, sample, channel, channels, HAS_BIAS, BIAS_BY_SAMPLE)
    factor = factor_of(weight, load_vector(var_ptr, channel), eps)
    centered = load(x_ptr + offsets, mask) - load_vector(mean_ptr, channel)
    v = multiply(centered, factor)
    if HAS_BIAS:
        v = v + bias
    g = load(grad_ptr + offsets, mask)
    g = tl.where(v > 0.0, g, g * negative_slope)
    taken = load_vector(offset_ptr, channel) + load_vector(slope_ptr, channel) * centered
    store(dx_ptr + offsets, multiply(g, factor) - taken, mask)


class _Samples(NamedTuple):
    """The layout of memory, and which parameters are per sample."""

    whole: Layout
    each: Layout  # of one sample if parameters are per sample, else of the whole batch
    samples: int
    rows_per_sample: int
    constants: dict[str, bool]


def _samples(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> _Samples:
    by_sample = [p is not None and p.dim() == 2 for p in (weight, bias)]
    samples = x.shape[0] if any(by_sample) else 1
    each = layout_of(x[:1] if any(by_sample) else x, 1)
    whole = Layout(samples * each.outer, each.channels, each.inner)
    by_column = whole.inner == 1 and whole.channels > 1
    constants = {
        "HAS_WEIGHT": weight is not None,
        "WEIGHT_BY_SAMPLE": by_sample[0],
        "HAS_BIAS": bias is not None,
        "BIAS_BY_SAMPLE": by_sample[1],
    }
    rows = each.outer * (1 if by_column else each.channels)
    return _Samples(whole, each, samples, rows, constants)


def bn_leaky_relu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch partial statistics, their merge and the output; two reads of ``x``."""
    x = walkable(x)
    y = empty_like(x)
    layout, _, _, rows, constants = _samples(x, weight, bias)
    cut = sweep(layout)
    partial = x.new_empty((3, cut.splits, layout.channels), dtype=torch.float32)
    programs = cut.bands * cut.splits
    launch(_statistics, programs, x, partial, *cut.sizes, cut.splits, **cut.constants)
    mean, var = merge_partials(partial)
    tiles = tiling(layout)
    launch(
        _forward,
        tiles.programs,
        x,
        mean,
        var,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
        eps,
        negative_slope,
        rows,
        *tiles.sizes,
        **constants,
        **tiles.constants,
    )
    return y, mean, var


def bn_leaky_relu_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch partial sums, their merge and the pass that computes ``dx``."""
    x = walkable(x)
    grad = in_layout_of(grad, x)
    dx = empty_like(x)
    layout, each, samples, rows, constants = _samples(x, weight, bias)
    parameters = [None if p is None else p.contiguous() for p in (weight, bias)]
    inputs = grad, x, mean.contiguous(), var.contiguous(), *parameters
    cut = sweep(each)
    channels = layout.channels
    partial = x.new_empty((2, samples, cut.splits, channels), dtype=torch.float64)
    launch(
        _reduce,
        (cut.bands * cut.splits, samples),
        *inputs,
        partial,
        eps,
        negative_slope,
        samples,
        *cut.sizes,
        cut.splits,
        **constants,
        **cut.constants,
    )
    by_sample = constants["WEIGHT_BY_SAMPLE"] or constants["BIAS_BY_SAMPLE"]
    shape = x.shape[:2] if by_sample else x.shape[1:2]
    dweight = x.new_empty(shape, dtype=torch.float32)
    dbias = torch.empty_like(dweight)
    offset, slope = x.new_empty((2, channels), dtype=torch.float32)
    programs, merge_constants = merging(cut.splits, channels)
    launch(
        _merge,
        programs,
        partial,
        inputs[3],
        parameters[0],
        dweight,
        dbias,
        offset,
        slope,
        eps,
        x.numel() // channels,
        samples,
        cut.splits,
        channels,
        HAS_WEIGHT=constants["HAS_WEIGHT"],
        WEIGHT_BY_SAMPLE=constants["WEIGHT_BY_SAMPLE"],
        **merge_constants,
    )
    tiles = tiling(layout)
    launch(
        _backward,
        tiles.programs,
        *inputs,
        offset,
        slope,
        dx,
        eps,
        negative_slope,
        rows,
        *tiles.sizes,
        **constants,
        **tiles.constants,
    )
    return dx, dweight, dbias
