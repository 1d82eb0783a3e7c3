"""Frozen batch normalization, residual, activation and a quantizer with a moving range, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops._outputs import walkable
from gdfq.ops.triton._language import (
    activate,
    band_channel,
    band_of,
    band_tile,
    extend,
    load,
    load_norm,
    maximum,
    minimum,
    multiply_add,
)
from gdfq.ops.triton._launch import (
    contiguous,
    in_layout_of,
    launch,
    layout_of,
    sweep,
)
from gdfq.ops.triton.bn_act_fake_quantize import bn_act_fake_quantize
from gdfq.ops.triton.observe_fake_quantize import move_range


@triton.jit
def _range(
    x_ptr,  # [outer, channels, inner]
    running_mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    bias_ptr,  # [channels] or None
    residual_ptr,  # [outer, channels, inner] or None
    lo_ptr,  # [bands * splits]
    hi_ptr,  # [bands * splits]
    eps,
    outer,
    channels,
    inner,
    per_split,
    splits,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Compute min(v), max(v) of a split of a band of channels; v = act(norm(x) + residual).

    A program walks the tiles of its split and keeps both in registers. Reads x (and the residual)
    once.
    """
    band, _, begin, end = band_of(
        outer, channels, inner, per_split, splits, ROWS, COLS, CHANNEL_IS_COLUMN
    )
    channel, exists = band_channel(band, channels, COLS, CHANNEL_IS_COLUMN)
    entry = tl.where(exists, channel, 0)
    mean, factor, bias = load_norm(
        running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, entry, eps
    )
    lo = tl.full((ROWS, COLS), float("inf"), tl.float32)
    hi = tl.full((ROWS, COLS), -float("inf"), tl.float32)
    for index in range(begin, end):
        offsets, mask = band_tile(
            index, band, outer, channels, inner, ROWS, COLS, CHANNEL_IS_COLUMN
        )
        v = multiply_add(load(x_ptr + offsets, mask) - mean, factor, bias)
        if residual_ptr is not None:
            v = v + load(residual_ptr + offsets, mask)
        lo, hi = extend(lo, hi, activate(v, ACT), mask)
    own = tl.program_id(0) + tl.arange(0, 1)
    tl.store(lo_ptr + own, minimum(minimum(lo, 0)[None, :], 1))
    tl.store(hi_ptr + own, maximum(maximum(hi, 0)[None, :], 1))


def observe_bn_act_fake_quantize(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float,
    act: str,
    residual: Tensor | None,
    ste: str,
    zero_in_range: bool,
) -> Tensor:
    """Launch partial minima and maxima, their merge with the update, and the quantizer."""
    norm = (running_mean, running_var, weight, bias)
    buffers = (average_lo, average_hi, lo, hi, num_batches_tracked)
    x = walkable(x)
    residual = None if residual is None else in_layout_of(residual, x)
    cut = sweep(layout_of(x, 1))
    programs = cut.bands * cut.splits
    partials = x.new_empty((2, programs), dtype=torch.float32)
    launch(
        _range,
        programs,
        x,
        *contiguous(*norm),
        residual,
        *partials,
        eps,
        *cut.sizes,
        cut.splits,
        ACT=act,
        **cut.constants,
    )
    move_range(partials, buffers, momentum, zero_in_range)
    return bn_act_fake_quantize(x, *norm, eps, lo, hi, bits, act, residual, ste)
