"""In-place Hardtanh that does not keep a copy of its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeanHardtanh(nn.Hardtanh):
    """``nn.Hardtanh(min_val, max_val, inplace=True)``: same values, gradients and side effect.

    PyTorch clones the input, because the backward pass needs to know where it was inside the range.
    The output suffices: it is at a bound exactly where the input was at or beyond it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Clamp ``input`` to ``[min_val, max_val]`` in place."""
        y: Tensor = _Hardtanh.apply(input, self.min_val, self.max_val)
        return y


class _Hardtanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lo: float, hi: float) -> Tensor:
        F.hardtanh(x, lo, hi, inplace=True)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.bounds = lo, hi
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, y, *ctx.bounds), None, None
