"""Fake quantization of a network's weights, all of them in one launch, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton import _launch
from gdfq.ops.triton._language import (
    clip_gradient,
    contain_zero,
    extend,
    load,
    load_grid,
    make_grid,
    maximum,
    minimum,
    number_of,
    pointer_of,
    quantize_value,
    store,
)
from gdfq.ops.triton._launch import MOST_TENSORS, dense, in_layout_of, launch, layout_of
from gdfq.ops.triton.fake_quantize import fake_quantize_backward
from gdfq.ops.triton.fake_quantize_minmax import fake_quantize_minmax


@triton.jit
def _forward(
    ws,  # [rows, cols] per tensor
    ys,  # [rows, cols] per tensor
    los,  # [rows] per tensor
    his,  # [rows] per tensor
    FIRST: tl.constexpr,  # the program of each tensor's first row
    LENGTHS: tl.constexpr,  # per tensor
    BITS: tl.constexpr,  # per tensor
    BLOCK: tl.constexpr,
    ZERO_IN_RANGE: tl.constexpr,
):
    """Compute lo, hi = min(w), max(w) of a row (and 0), and y = w quantized over them.

    A program takes one row in two walks; the second reads it from cache. Reads w and writes y
    once. Minimum and maximum do not depend on order.
    """
    program = tl.program_id(0)
    row = program - number_of(FIRST, FIRST, program)
    cols = number_of(LENGTHS, FIRST, program)
    bits = number_of(BITS, FIRST, program)
    first = row.to(tl.int64) * cols
    w_ptr = pointer_of(ws, FIRST, program) + first
    y_ptr = pointer_of(ys, FIRST, program) + first
    lo = tl.full((1, BLOCK), float("inf"), tl.float32)
    hi = tl.full((1, BLOCK), -float("inf"), tl.float32)
    for begin in range(0, cols, BLOCK):
        col = begin + tl.arange(0, BLOCK)[None, :]
        lo, hi = extend(lo, hi, load(w_ptr + col, col < cols), col < cols)
    lo, hi = minimum(lo, 1)[:, None], maximum(hi, 1)[:, None]
    if ZERO_IN_RANGE:
        lo, hi = contain_zero(lo, hi)
    entry = row + tl.arange(0, 1)[:, None]
    tl.store(pointer_of(los, FIRST, program) + entry, lo)
    tl.store(pointer_of(his, FIRST, program) + entry, hi)
    inv_scale, zero = make_grid(lo, hi, bits)
    for begin in range(0, cols, BLOCK):
        col = begin + tl.arange(0, BLOCK)[None, :]
        w = load(w_ptr + col, col < cols)
        store(y_ptr + col, quantize_value(w, inv_scale, zero, bits), col < cols)


@triton.jit
def _backward(
    grads,  # [rows, cols] per tensor
    ws,  # [rows, cols] per tensor
    los,  # [rows] per tensor
    his,  # [rows] per tensor
    dws,  # [rows, cols] per tensor
    FIRST: tl.constexpr,  # the program of each tensor's first row
    LENGTHS: tl.constexpr,  # per tensor
    BITS: tl.constexpr,  # per tensor
    BLOCK: tl.constexpr,
):
    """Compute dw = dy where the code before clamping lies in range, else 0.

    A program takes one row of one of the tensors. Reads dy and w and writes dw once.
    """
    program = tl.program_id(0)
    row = program - number_of(FIRST, FIRST, program)
    cols = number_of(LENGTHS, FIRST, program)
    bits = number_of(BITS, FIRST, program)
    first = row.to(tl.int64) * cols
    grad_ptr = pointer_of(grads, FIRST, program) + first
    w_ptr = pointer_of(ws, FIRST, program) + first
    dw_ptr = pointer_of(dws, FIRST, program) + first
    entry = row + tl.arange(0, 1)[:, None]
    lo_ptr, hi_ptr = pointer_of(los, FIRST, program), pointer_of(his, FIRST, program)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, entry, bits)
    for begin in range(0, cols, BLOCK):
        col = begin + tl.arange(0, BLOCK)[None, :]
        grad, w = load(grad_ptr + col, col < cols), load(w_ptr + col, col < cols)
        store(dw_ptr + col, clip_gradient(grad, w, inv_scale, zero, bits), col < cols)


def _has_rows(w: Tensor) -> bool:
    """Whether a kernel takes dense ``w``: entries of dimension 0 follow each other in memory."""
    layout = layout_of(w, 0)
    return layout.outer == 1 and layout.inner < 2**30


def _launches(ws: list[Tensor], bits: list[int]) -> Iterator[tuple[list[int], int, dict[str, Any]]]:
    """Yield the tensors of each launch, its programs and its constants.

    One launch takes all tensors of a dtype, up to MOST_TENSORS.
    """
    for dtype in dict.fromkeys(w.dtype for w in ws):
        chosen = [i for i, w in enumerate(ws) if w.dtype == dtype and _has_rows(w)]
        for begin in range(0, len(chosen), MOST_TENSORS):
            part = chosen[begin : begin + MOST_TENSORS]
            layouts = [layout_of(ws[i], 0) for i in part]
            *first, programs = itertools.accumulate((y.channels for y in layouts), initial=0)
            longest = max(layout.inner for layout in layouts)
            yield (
                part,
                programs,
                {
                    "FIRST": tuple(first),
                    "LENGTHS": tuple(layout.inner for layout in layouts),
                    "BITS": tuple(bits[i] for i in part),
                    "BLOCK": min(triton.next_power_of_2(longest), _launch.block),
                },
            )


def _tuples(part: list[int], *lists: list[Tensor]) -> list[tuple[Tensor, ...]]:
    return [tuple(tensors[i] for i in part) for tensors in lists]


def fake_quantize_minmax_list(
    ws: list[Tensor], bits: list[int], ste: str, zero_in_range: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Launch one kernel; tensors without rows in memory go alone."""
    ws = [dense(w) for w in ws]
    ys = [torch.empty_like(w) for w in ws]
    los = [w.new_empty((w.shape[0],), dtype=torch.float32) for w in ws]
    his = [torch.empty_like(lo) for lo in los]
    for i, w in enumerate(ws):
        if not _has_rows(w):
            ys[i], los[i], his[i] = fake_quantize_minmax(w, bits[i], 0, ste, zero_in_range)
    for part, programs, constants in _launches(ws, bits):
        constants |= {"ZERO_IN_RANGE": zero_in_range}
        launch(_forward, programs, *_tuples(part, ws, ys, los, his), **constants)
    return ys, los, his


def fake_quantize_minmax_list_backward(
    grads: list[Tensor], ws: list[Tensor], los: list[Tensor], his: list[Tensor], bits: list[int]
) -> list[Tensor]:
    """Launch one kernel; tensors without rows in memory go alone."""
    ws = [dense(w) for w in ws]
    grads = [in_layout_of(grad, w) for grad, w in zip(grads, ws, strict=True)]
    los, his = ([b.contiguous() for b in bounds] for bounds in (los, his))
    dws = [
        torch.empty_like(w) if _has_rows(w) else fake_quantize_backward(grad, w, lo, hi, b, 0)
        for grad, w, lo, hi, b in zip(grads, ws, los, his, bits, strict=True)
    ]
    for part, programs, constants in _launches(ws, bits):
        launch(_backward, programs, *_tuples(part, grads, ws, los, his, dws), **constants)
    return dws
