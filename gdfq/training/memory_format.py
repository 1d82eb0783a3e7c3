"""Which memory format a step is faster in, by trying."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

MemoryFormat = Literal["channels_last", "contiguous"]
TORCH_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# Rounding differs between the formats: a choice within the noise would be another one tomorrow.
MARGIN = 1.1


def fastest_memory_format(
    make_step: Callable[[MemoryFormat], Callable[[], dict[str, Tensor]]], uncounted: int = 1
) -> tuple[MemoryFormat, dict[str, float]]:
    """Time a step in one format, then in the other; what the first took is free by then.

    Args:
        make_step: a step to try in a format, on copies of everything it changes.
        uncounted: first steps of each that are not counted.

    Returns:
        ``"channels_last"``, unless ``"contiguous"`` is faster by a tenth, and the seconds of a
        step in each, the shortest of three.
    """
    seconds = {}
    for name in get_args(MemoryFormat):
        seconds[name] = _seconds(make_step(name), uncounted)
        gc.collect()  # a trainer is full of cycles
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    faster = seconds["contiguous"] * MARGIN < seconds["channels_last"]
    return ("contiguous" if faster else "channels_last"), seconds


def _seconds(step: Callable[[], dict[str, Tensor]], uncounted: int) -> float:
    runs = []
    for _ in range(uncounted + 3):
        start = time.perf_counter()
        float(step()["student"])  # waits for the device
        runs.append(time.perf_counter() - start)
    return min(runs[uncounted:])
