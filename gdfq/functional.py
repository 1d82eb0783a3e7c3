"""The stateless functions: quantizers, and batch normalization fused with what follows it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops.batch_norm_stats import batch_norm_stats
from gdfq.ops.fake_quantize import fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax

__all__ = ["batch_norm_stats", "bn_act_fake_quantize", "fake_quantize", "fake_quantize_minmax"]

Activation = Literal["relu", "relu6", "none"]


def activate(x: Tensor, act: Activation) -> Tensor:
    """ReLU, ReLU6 or nothing."""
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    if act == "none":
        return x
    raise InputError(f"act: must be 'relu', 'relu6' or 'none', got {act!r}")


def bn_act_fake_quantize(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: Activation = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """Frozen batch normalization, an optional residual, an activation and a quantizer.

    Args:
        x: ``(N, C, ...)``; float32, float16 or bfloat16.
        running_mean, running_var: ``(C,)``.
        weight, bias: ``(C,)`` each, or None for 1 and 0.
        eps: added to ``running_var``.
        lo, hi: the activation's range, 0-d.
        bits: 2 to 8.
        act: ``"relu"``, ``"relu6"`` or ``"none"``.
        residual: of ``x``'s shape, added before the activation.

    Returns:
        ``fake_quantize(act(batch_norm(x) + residual), lo, hi, bits)``, with the identity
        straight-through estimator. Composed of PyTorch's operators and :func:`fake_quantize`.

    Raises:
        InputError: ``act`` is unknown, ``residual`` has another shape, or the quantizer refuses
            an argument.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    if residual is not None and residual.shape != x.shape:
        raise InputError(
            f"residual: shape must be {tuple(x.shape)} like x, got {tuple(residual.shape)}"
        )
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=eps)
    if residual is not None:
        y = y + residual
    return fake_quantize(activate(y, act), lo, hi, bits)
