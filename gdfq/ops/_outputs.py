"""Allocation of operators' outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_like(x: Tensor) -> Tensor:
    """Return an empty tensor of ``x``'s shape and dtype, dense in its memory format."""
    return torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x))


def reduced_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics and losses: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
