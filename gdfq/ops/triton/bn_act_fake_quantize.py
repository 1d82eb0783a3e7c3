"""Frozen batch normalization, residual, activation and quantizer, in Triton. Never run on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops._outputs import empty_like, walkable
from gdfq.ops.triton._language import (
    activate,
    band_channel,
    band_of,
    band_tile,
    clip_gradient,
    load,
    load_grid,
    load_norm,
    multiply,
    multiply_add,
    quantize_value,
    store,
    sum_rows,
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
    x_ptr,  # [rows, cols]
    running_mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    bias_ptr,  # [channels] or None
    residual_ptr,  # [rows, cols] or None
    lo_ptr,  # [1]
    hi_ptr,  # [1]
    y_ptr,  # [rows, cols]
    eps,
    rows,
    cols,
    channels,
    BITS: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute y = quantize(act((x - running_mean) * a + bias + residual)).

    A program takes one tile; a channel's constants are computed once per row or column of it.
    Reads x (and the residual) and writes y once. Elements are independent.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, tl.zeros((1, 1), tl.int32), BITS)
    mean, factor, bias = load_norm(
        running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, channel, eps
    )
    v = multiply_add(load(x_ptr + offsets, mask) - mean, factor, bias)
    if residual_ptr is not None:
        v = v + load(residual_ptr + offsets, mask)
    store(y_ptr + offsets, quantize_value(activate(v, ACT), inv_scale, zero, BITS), mask)


@triton.jit
def _backward(
    grad_ptr,  # [outer, channels, inner]
    x_ptr,  # [outer, channels, inner]
    running_mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    bias_ptr,  # [channels] or None
    residual_ptr,  # [outer, channels, inner] or None
    lo_ptr,  # [1]
    hi_ptr,  # [1]
    dx_ptr,  # [outer, channels, inner]
    dresidual_ptr,  # [outer, channels, inner] or None
    partial_ptr,  # [2, splits, channels]: sum of g, of g * (x - running_mean), float64
    eps,
    outer,
    channels,
    inner,
    per_split,
    splits,
    BITS: tl.constexpr,
    ACT: tl.constexpr,
    CLIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute dx = g * a and dresidual = g, with g = dy where activation and estimator pass it.

    A program walks the tiles of a split of a band in order, recomputes the activation's input and
    keeps the sums for weight and bias: a tile is summed in float32, tiles in float64. Reads dy and
    x (and the residual) and writes dx (and dresidual) once. No atomics: partial sums lie apart and
    are merged in order.
    """
    band, split, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    entry = tl.where(exists, channel, 0)
    mean, factor, bias = load_norm(
        running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, entry, eps
    )
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, tl.zeros((1, 1), tl.int32), BITS)
    sum_g = tl.zeros(mean.shape, tl.float64)
    sum_gx = tl.zeros(mean.shape, tl.float64)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        centered = tl.where(mask, load(x_ptr + offsets, mask) - mean, 0.0)
        v = multiply_add(centered, factor, bias)
        if residual_ptr is not None:
            v = v + load(residual_ptr + offsets, mask)
        g = load(grad_ptr + offsets, mask)
        if CLIP:
            g = clip_gradient(g, activate(v, ACT), inv_scale, zero, BITS)
        if ACT != "none":
            g = tl.where(v > 0.0, g, 0.0)
        if ACT == "relu6":
            g = tl.where(v < 6.0, g, 0.0)
        store(dx_ptr + offsets, multiply(g, factor), mask)
        if residual_ptr is not None:
            store(dresidual_ptr + offsets, g, mask)
        sum_g += sum_rows(g, CHANNEL_IS_COLUMN)
        sum_gx += sum_rows(multiply(g, centered), CHANNEL_IS_COLUMN)
    partial = partial_ptr + split * channels + channel
    tl.store(partial, sum_g, mask=exists)
    tl.store(partial + splits * channels, sum_gx, mask=exists)


@triton.jit
def _merge(
    partial_ptr,  # [2, splits, channels]
    running_var_ptr,  # [channels]
    dweight_ptr,  # [channels]
    dbias_ptr,  # [channels]
    eps,
    splits,
    channels,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Compute dbias = sum(g), dweight = sum(g * (x - running_mean)) / sqrt(running_var + eps).

    A program takes COLS channels and all their splits at once, in an order set by the shape.
    """
    split = tl.arange(0, SPLITS)[:, None]
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    exists = channel < channels
    mask = (split < splits) & exists
    partial = partial_ptr + split * channels + channel
    sum_g = tl.load(partial, mask=mask, other=0.0)
    sum_gx = tl.load(partial + splits * channels, mask=mask, other=0.0)
    var = tl.load(running_var_ptr + channel, mask=exists, other=1.0).to(tl.float64)
    dweight = tl.sum(sum_gx, 0)[None, :] / tl.sqrt(var + eps)
    tl.store(dweight_ptr + channel, dweight.to(tl.float32), mask=exists)
    tl.store(dbias_ptr + channel, tl.sum(sum_g, 0)[None, :].to(tl.float32), mask=exists)


def bn_act_fake_quantize(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: str,
    residual: Tensor | None,
    ste: str,
) -> Tensor:
    """Launch one kernel."""
    x = walkable(x)
    y = empty_like(x)
    tiles = tiling(layout_of(x, 1))
    launch(
        _forward,
        tiles.programs,
        x,
        *contiguous(running_mean, running_var, weight, bias),
        None if residual is None else in_layout_of(residual, x),
        lo,
        hi,
        y,
        eps,
        *tiles.sizes,
        BITS=bits,
        ACT=act,
        **tiles.constants,
    )
    return y


def bn_act_fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: str,
    residual: Tensor | None,
    ste: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the pass, then the merge of its partial sums."""
    x = walkable(x)
    dx = empty_like(x)
    dresidual = x.new_empty((0,)) if residual is None else torch.empty_like(dx)
    layout = layout_of(x, 1)
    cut = sweep(layout)
    partial = x.new_empty((2, cut.splits, layout.channels), dtype=torch.float64)
    dweight = x.new_empty((x.shape[1],), dtype=torch.float32)
    dbias = torch.empty_like(dweight)
    norm = contiguous(running_mean, running_var, weight, bias)
    launch(
        _backward,
        cut.bands * cut.splits,
        in_layout_of(grad, x),
        x,
        *norm,
        None if residual is None else in_layout_of(residual, x),
        lo,
        hi,
        dx,
        None if residual is None else dresidual,
        partial,
        eps,
        *cut.sizes,
        cut.splits,
        BITS=bits,
        ACT=act,
        CLIP=ste == "clip",
        **cut.constants,
    )
    programs, constants = merging(cut.splits, layout.channels)
    launch(
        _merge,
        programs,
        partial,
        norm[1],
        dweight,
        dbias,
        eps,
        cut.splits,
        layout.channels,
        **constants,
    )
    return dx, dresidual, dweight, dbias
