"""The number of codes of a network's weights that an update would change, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton import _launch
from gdfq.ops.triton._language import (
    code_of,
    load,
    load_grid,
    multiply,
    number_of,
    pointer_of,
)
from gdfq.ops.triton._launch import MOST_TENSORS, dense, in_layout_of, launch, layout_of


@triton.jit
def _rows(
    ws,  # [rows, cols] per tensor
    updates,  # [rows, cols] per tensor
    los,  # [rows] per tensor
    his,  # [rows] per tensor
    factors,  # one per tensor
    changed,  # [programs]
    FIRST: tl.constexpr,  # the program of each tensor's first row
    LENGTHS: tl.constexpr,  # per tensor
    BITS: tl.constexpr,  # per tensor
    BLOCK: tl.constexpr,
):
    """Count the changed codes of a row of one of the tensors.

    A program takes one row. Reads w and update once.
    """
    program = tl.program_id(0)
    row = program - number_of(FIRST, FIRST, program)
    cols = number_of(LENGTHS, FIRST, program)
    bits = number_of(BITS, FIRST, program)
    first = row.to(tl.int64) * cols
    w_ptr = pointer_of(ws, FIRST, program) + first
    update_ptr = pointer_of(updates, FIRST, program) + first
    entry = row + tl.arange(0, 1)[:, None]
    lo_ptr, hi_ptr = pointer_of(los, FIRST, program), pointer_of(his, FIRST, program)
    inv_scale, zero = load_grid(lo_ptr, hi_ptr, entry, bits)
    factor = tl.load(pointer_of(factors, FIRST, program) + tl.arange(0, 1)[:, None])
    count = tl.zeros((1, BLOCK), tl.int32)
    for begin in range(0, cols, BLOCK):
        col = begin + tl.arange(0, BLOCK)[None, :]
        before = load(w_ptr + col, col < cols)
        after = before - multiply(factor, load(update_ptr + col, col < cols))
        differs = code_of(before, inv_scale, zero, bits) != code_of(after, inv_scale, zero, bits)
        count += (differs & (col < cols)).to(tl.int32)
    tl.store(changed + program + tl.arange(0, 1), tl.sum(count, 1).to(tl.int64))


@triton.jit
def _totals(
    changed,  # of rows
    counts,  # of tensors
    TENSORS: tl.constexpr,  # 0, 1, ...
    BEGINS: tl.constexpr,  # first row of each tensor
    ENDS: tl.constexpr,  # row after the last of each tensor
    PLACES: tl.constexpr,  # place of each tensor's count
    BLOCK: tl.constexpr,
):
    """Sum the counts over the rows of a tensor, a program each. Integers: no order matters."""
    program = tl.program_id(0)
    end = number_of(ENDS, TENSORS, program)
    total = tl.zeros((BLOCK,), tl.int64)
    for begin in range(number_of(BEGINS, TENSORS, program), end, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        total += tl.load(changed + row, mask=row < end, other=0)
    place = number_of(PLACES, TENSORS, program)
    tl.store(counts + place + tl.arange(0, 1), tl.sum(total, 0)[None])


def _with_rows(w: Tensor) -> Tensor:
    """Return ``w`` such that entries of dimension 0 follow each other in memory."""
    w = dense(w)
    return w if layout_of(w, 0).outer == 1 else w.contiguous()


def count_changed_codes(
    ws: list[Tensor],
    updates: list[Tensor],
    factors: Tensor,
    los: list[Tensor],
    his: list[Tensor],
    bits: list[int],
) -> Tensor:
    """Launch two kernels for all tensors of a dtype, up to MOST_TENSORS."""
    ws = [_with_rows(w) for w in ws]
    updates = [in_layout_of(update, w) for update, w in zip(updates, ws, strict=True)]
    los, his = ([b.float().contiguous() for b in bounds] for bounds in (los, his))
    factors = factors.float().contiguous()
    counts = factors.new_zeros((len(ws),), dtype=torch.int64)
    for dtype in dict.fromkeys(w.dtype for w in ws):
        chosen = [i for i, w in enumerate(ws) if w.dtype == dtype]
        for begin in range(0, len(chosen), MOST_TENSORS):
            part = chosen[begin : begin + MOST_TENSORS]
            rows = [ws[i].shape[0] for i in part]
            lengths = [ws[i].numel() // ws[i].shape[0] for i in part]
            *first, programs = itertools.accumulate(rows, initial=0)
            changed = counts.new_empty((programs,))
            lists = ([tensors[i] for i in part] for tensors in (ws, updates, los, his))
            launch(
                _rows,
                programs,
                *map(tuple, lists),
                tuple(factors[i : i + 1] for i in part),
                changed,
                FIRST=tuple(first),
                LENGTHS=tuple(lengths),
                BITS=tuple(bits[i] for i in part),
                BLOCK=min(triton.next_power_of_2(max(lengths)), _launch.block),
            )
            launch(
                _totals,
                len(part),
                changed,
                counts,
                TENSORS=tuple(range(len(part))),
                BEGINS=tuple(first),
                ENDS=(*first[1:], programs),
                PLACES=tuple(part),
                BLOCK=min(triton.next_power_of_2(max(rows)), _launch.block),
            )
    return counts
