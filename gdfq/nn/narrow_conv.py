"""A convolution for very few output channels, where the usual algorithm is inefficient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def narrow_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.conv2d(x, weight, bias, padding=1)`` for a 3x3 kernel, with images as output.

    On the CPU a convolution to O channels takes as long as one to 16. For O <= 3, float32 and
    channels last, this instead computes all 9 O products of each pixel by one matrix product, then
    shifts and sums them; the weight's gradient is a matrix product with 9 shifted copies of the
    output's gradient. The result is equal up to rounding. Other inputs use ``F.conv2d``.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(O, C, 3, 3)``, of ``x``'s dtype.
        bias: ``(O,)`` or None.

    Returns:
        ``(N, O, H, W)``.
    """
    suits = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[0] <= 3
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    return _NarrowConv2d.apply(x, weight, bias) if suits else F.conv2d(x, weight, bias, padding=1)


class _NarrowConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # F.fold adds the value of tap (i, j) at offset (i - 1, j - 1).
        taps = weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)
        y = F.fold(torch.matmul(taps, x.flatten(2)), x.shape[2:], 3, padding=1)
        if bias is not None:
            y += bias.view(-1, 1, 1)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        if for_x:  # to many channels, the usual algorithm is fast
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                (True, False, False),
            )  # fmt: skip
        if for_weight:
            outputs, channels = weight.shape[:2]
            shifted = F.unfold(grad.contiguous(), 3, padding=1)
            taps = torch.matmul(shifted, x.flatten(2).transpose(1, 2)).sum(0)
            grad_weight = taps.view(outputs, 3, 3, channels).flip(1, 2).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if for_bias else None
