"""Fake quantization over a given range, in Triton. Never run on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.fake_quantize import fake_quantize_backward_reference, fake_quantize_reference
from gdfq.ops.triton._language import load, load_grid, passes_clip, quantize, store, tile
from gdfq.ops.triton._launch import dense, in_layout_of, launch, layout_of, tiling


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
    """y = (clamp(round(scale * x - zero)) + zero) / scale.

    A program takes one tile; scale and zero are computed once per row or column of it. Reads x
    and writes y once. Elements are independent, so nothing depends on the order of programs.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    scale, zero = load_grid(lo_ptr, hi_ptr, channel, BITS)
    store(y_ptr + offsets, quantize(load(x_ptr + offsets, mask), scale, zero, BITS), mask)


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
    """dx = dy where the code before clamping lies in range, else 0.

    Tiles as in the forward kernel. Reads dy and x and writes dx once.
    """
    offsets, mask, channel = tile(rows, cols, channels, ROWS, COLS, CHANNEL_IS_COLUMN)
    scale, zero = load_grid(lo_ptr, hi_ptr, channel, BITS)
    grad = load(grad_ptr + offsets, mask)
    passes = passes_clip(load(x_ptr + offsets, mask), scale, zero, BITS)
    store(dx_ptr + offsets, tl.where(passes, grad, 0.0), mask)


def fake_quantize(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None, ste: str
) -> Tensor:
    """Launch the forward kernel; float64 runs the reference."""
    if x.dtype == torch.float64:
        return fake_quantize_reference(x, lo, hi, bits, axis, ste)
    x = dense(x)
    y = torch.empty_like(x)
    if x.numel() > 0:
        tiles = tiling(layout_of(x, axis))
        ends = lo.contiguous(), hi.contiguous()
        launch(_forward, tiles.programs, x, *ends, y, *tiles.sizes, BITS=bits, **tiles.constants)
    return y


def fake_quantize_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> Tensor:
    """Launch the clip estimator's kernel; float64 runs the reference."""
    if x.dtype == torch.float64:
        return fake_quantize_backward_reference(grad, x, lo, hi, bits, axis)
    x = dense(x)
    grad = in_layout_of(grad, x)
    dx = torch.empty_like(x)
    if x.numel() > 0:
        tiles = tiling(layout_of(x, axis))
        ends = lo.contiguous(), hi.contiguous()
        arguments = (grad, x, *ends, dx, *tiles.sizes)
        launch(_backward, tiles.programs, *arguments, BITS=bits, **tiles.constants)
    return dx
