"""Fake quantization over a moving range, in Triton. Never run on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton import _launch
from gdfq.ops.triton._language import contain_zero, extend, maximum, minimum, multiply
from gdfq.ops.triton._launch import dense, launch, layout_of
from gdfq.ops.triton.fake_quantize import fake_quantize
from gdfq.ops.triton.fake_quantize_minmax import partial_minmax


@triton.jit
def move_bound(average_ptr, batch, correction, MOMENTUM: tl.constexpr):
    """Move an average by the batch's minimum or maximum and return the range's bound."""
    one = tl.arange(0, 1)
    past = tl.full((1,), MOMENTUM, tl.float32)
    present = tl.full((1,), 1 - MOMENTUM, tl.float32)
    average = multiply(tl.load(average_ptr + one), past) + multiply(present, batch)
    tl.store(average_ptr + one, average)
    return (average.to(tl.float64) / correction).to(tl.float32)


@triton.jit
def _move_range(
    partial_lo_ptr,  # [splits]
    partial_hi_ptr,  # [splits]
    average_lo_ptr,  # [1]
    average_hi_ptr,  # [1]
    lo_ptr,  # [1]
    hi_ptr,  # [1]
    num_batches_tracked_ptr,  # [1], int64
    splits,
    MOMENTUM: tl.constexpr,
    ZERO_IN_RANGE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Compute average <- m * average + (1 - m) * batch and bound = average / (1 - m^t).

    One program merges the partial minima and maxima and updates all buffers, so that the host
    never waits.
    """
    lo = tl.full((SPLITS, 1), float("inf"), tl.float32)
    hi = tl.full((SPLITS, 1), -float("inf"), tl.float32)
    for begin in range(0, splits, SPLITS):
        split = begin + tl.arange(0, SPLITS)[:, None]
        mask = split < splits
        lo, _ = extend(lo, hi, tl.load(partial_lo_ptr + split, mask=mask, other=0.0), mask)
        _, hi = extend(lo, hi, tl.load(partial_hi_ptr + split, mask=mask, other=0.0), mask)
    one = tl.arange(0, 1)
    batches = tl.load(num_batches_tracked_ptr + one) + 1
    tl.store(num_batches_tracked_ptr + one, batches)
    base = tl.full((1,), MOMENTUM, tl.float64)
    correction = 1.0 - tl.exp(batches.to(tl.float64) * tl.log(base))
    lo = move_bound(average_lo_ptr, minimum(lo, 0), correction, MOMENTUM)
    hi = move_bound(average_hi_ptr, maximum(hi, 0), correction, MOMENTUM)
    if ZERO_IN_RANGE:
        lo, hi = contain_zero(lo, hi)
    tl.store(lo_ptr + one, lo)
    tl.store(hi_ptr + one, hi)


def move_range(
    partials: Tensor, buffers: tuple[Tensor, ...], momentum: float, zero_in_range: bool
) -> None:
    """Move the range by ``[2, splits]`` partial minima and maxima, in one launch."""
    splits = partials[0].numel()
    constants = {
        "MOMENTUM": momentum,
        "ZERO_IN_RANGE": zero_in_range,
        "SPLITS": min(triton.next_power_of_2(splits), _launch.block),
    }
    launch(_move_range, 1, *partials, *buffers, splits, **constants)


def observe_fake_quantize(
    x: Tensor,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float,
    ste: str,
    zero_in_range: bool,
) -> Tensor:
    """Launch partial minima and maxima, their merge with the update, and the quantizer."""
    buffers = average_lo, average_hi, lo, hi, num_batches_tracked
    x = dense(x)
    move_range(partial_minmax(x, layout_of(x, None)), buffers, momentum, zero_in_range)
    return fake_quantize(x, lo, hi, bits, None, ste)
