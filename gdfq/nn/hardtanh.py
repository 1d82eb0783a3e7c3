"""Hardtanh in place without the copy of its input that PyTorch keeps for the backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeanHardtanh(nn.Hardtanh):
    """``nn.Hardtanh(min_val, max_val, inplace=True)``: same values, gradients and side effect.

    PyTorch's clones its input before changing it, because its backward asks where the input was
    inside the range. The output tells that too: it is at a bound exactly where the input was at
    or beyond it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``input``, clamped to ``[min_val, max_val]`` in place."""
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
