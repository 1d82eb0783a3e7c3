"""Memory formats and dtypes of operators' inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def in_format_of(tensor: Tensor, x: Tensor) -> Tensor:
    """Return ``tensor`` dense in ``x``'s memory format: channels last or contiguous."""
    return tensor.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def walkable(x: Tensor) -> Tensor:
    """Return ``x`` contiguous or channels last, as the kernels of activations walk it."""
    return in_format_of(x, x)


def empty_like(x: Tensor) -> Tensor:
    """Return an empty tensor of ``x``'s shape and dtype, dense in its memory format."""
    return torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x))


def reduced_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics and losses: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
