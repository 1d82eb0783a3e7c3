"""Launches of kernels, and tensors as the memory that kernels walk."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret

# Elements of a program's tile. The interpreter runs programs one after another, so a few large
# ones are fastest there. Only the order of a reduction depends on it.
block = 65536 if INTERPRETED else 1024

# The most tensors that one launch takes: its parameters are at most 4 KiB.
MOST_TENSORS = 64


def launch(
    kernel: Any,
    programs: int | tuple[int, int],
    *arguments: Any,
    **constants: Any,
) -> None:
    """Run ``kernel`` on a grid of ``programs``, with multiplications and additions kept apart."""
    single = (a[0] if isinstance(a, tuple) else a for a in arguments)
    device = next(a.device for a in single if isinstance(a, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    tile = math.prod(constants.get(name, 1) for name in ("ROWS", "COLS", "SPLITS", "BLOCK"))
    # Eight elements a thread: 16 bytes at once for each dtype.
    num_warps = min(max(tile // 256, 1), 16)
    with guard:
        grid = programs if isinstance(programs, tuple) else (programs,)
        kernel[grid](*arguments, num_warps=num_warps, enable_fp_fusion=False, **constants)


def dense(tensor: Tensor) -> Tensor:
    """Return ``tensor`` if its elements fill a stretch of memory, else a copy that does."""
    copy = torch.empty_like(tensor)
    return tensor if tensor.stride() == copy.stride() else copy.copy_(tensor)


def in_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` in the dtype and strides of ``like``, which is dense."""
    if tensor.dtype == like.dtype and tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Make each tensor contiguous; None stays."""
    return [None if t is None else t.contiguous() for t in tensors]


class Layout(NamedTuple):
    """Memory read as ``[outer][channels][inner]``; one channel without an axis."""

    outer: int
    channels: int
    inner: int


def layout_of(x: Tensor, axis: int | None) -> Layout:
    """Return the layout of dense ``x`` around ``axis``."""
    if axis is None or x.shape[axis] == 1:
        return Layout(1, 1, x.numel())
    channels, inner = x.shape[axis], x.stride(axis)
    return Layout(x.numel() // (channels * inner), channels, inner)


class Tiling(NamedTuple):
    """Memory read as rows and columns, cut into tiles: the arguments of ``_language.tile``."""

    programs: int
    sizes: tuple[int, int, int]
    constants: dict[str, Any]


def tiling(layout: Layout) -> Tiling:
    """Give each program a tile. A channel is a column if channels lie side by side, else a row."""
    outer, channels, inner = layout
    by_column = inner == 1 and channels > 1
    rows, cols = (outer, channels) if by_column else (outer * channels, inner)
    tile_cols = min(triton.next_power_of_2(cols), block)
    tile_rows = min(triton.next_power_of_2(rows), block // tile_cols)
    return Tiling(
        triton.cdiv(rows, tile_rows) * triton.cdiv(cols, tile_cols),
        (rows, cols, channels),
        {"ROWS": tile_rows, "COLS": tile_cols, "CHANNEL_IS_COLUMN": by_column},
    )


class Sweep(NamedTuple):
    """Memory cut for a reduction over all but the channels: the arguments of ``_language.sweep``.

    A band is one channel, or neighbouring channels if they lie side by side. Each band is cut
    into ``splits``, one program each; a program walks its tiles in order.
    """

    splits: int
    bands: int
    sizes: tuple[int, int, int, int]
    constants: dict[str, Any]


def sweep(layout: Layout) -> Sweep:
    """Cut memory by its shape alone, so that results repeat on every device."""
    outer, channels, inner = layout
    by_column = inner == 1 and channels > 1
    cols = min(triton.next_power_of_2(channels if by_column else inner), block)
    if by_column:
        cols = min(cols, 64)
    # A sum of 64 rows is accurate in whatever order it is taken; the interpreter's is the worst.
    rows = min(triton.next_power_of_2(outer), block // cols, 64)
    bands = triton.cdiv(channels, cols) if by_column else channels
    tiles = triton.cdiv(outer, rows) * (1 if by_column else triton.cdiv(inner, cols))
    splits = min(triton.cdiv(tiles, 4), max(1, 1024 // bands))
    per_split = triton.cdiv(tiles, splits)
    return Sweep(
        triton.cdiv(tiles, per_split),
        bands,
        (outer, channels, inner, per_split),
        {"ROWS": rows, "COLS": cols, "CHANNEL_IS_COLUMN": by_column},
    )


def merging(splits: int, channels: int) -> tuple[int, dict[str, int]]:
    """Return programs and tile of a kernel that merges ``[splits, channels]`` partial results."""
    rows = triton.next_power_of_2(splits)
    cols = max(1, min(triton.next_power_of_2(channels), block // rows))
    return triton.cdiv(channels, cols), {"SPLITS": rows, "COLS": cols}
