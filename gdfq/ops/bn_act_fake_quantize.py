"""Frozen batch normalization, residual, activation and quantizer in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.ops._backend import register_reference
from gdfq.ops._checks import (
    Activation,
    Ste,
    check_act,
    check_batch_norm,
    check_bits,
    check_range,
    check_same,
    check_ste,
)
from gdfq.ops._outputs import empty_like, in_format_of
from gdfq.ops.batch_norm_stats import _factor, _per_channel
from gdfq.ops.fake_quantize import (
    _no_second_derivative,
    contain_zero,
    fake_quantize_backward_reference,
    fake_quantize_reference,
)

_op = torch.ops.gdfq.bn_act_fake_quantize
_backward_op = torch.ops.gdfq.bn_act_fake_quantize_backward


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
    ste: Ste = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Normalize by running statistics, add a residual, activate and quantize, in one pass.

    Args:
        x: ``(N, C, ...)``; float32, float16, bfloat16 or float64.
        running_mean, running_var: ``(C,)``, constants; no gradient flows to them.
        weight, bias: ``(C,)`` each, or None for 1 and 0.
        eps: added to ``running_var``, > 0.
        lo, hi: lower and upper bound of the quantizer's range, 0-d; no gradient flows to them.
        bits: 2 to 8.
        act: ``"relu"``, ``"relu6"`` or ``"none"``.
        residual: a tensor of ``x``'s shape and dtype, added before the activation, or None.
        ste: ``"identity"`` or ``"clip"``, see :func:`gdfq.functional.fake_quantize`.
        zero_in_range: see :func:`gdfq.functional.fake_quantize`.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format. Computed in float32::

            v = (x - running_mean) * (weight / sqrt(running_var + eps)) + bias + residual
            y = fake_quantize(act(v), lo, hi, bits)

        Gradients, all from one pass, with ``g = dy`` where activation and estimator pass it, else
        0 (ReLU does not at 0, ReLU6 not at 0 and 6)::

            dx = g * weight / sqrt(running_var + eps)        dresidual = g
            dweight = sum(g * (x - running_mean)) / sqrt(running_var + eps)   dbias = sum(g)

    Raises:
        InputError: a shape, dtype, device, ``eps``, ``bits``, ``act`` or ``ste`` is not one of
            the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_batch_norm(x, running_mean, running_var, weight, bias, eps)
    check_range(lo, hi, (), x)
    bits = check_bits(bits)
    check_act(act)
    check_ste(ste)
    check_same(residual, "residual", x, "x")
    if zero_in_range:
        lo, hi = contain_zero(lo, hi)
    return _op(x, running_mean, running_var, weight, bias, eps, lo, hi, bits, act, residual, ste)


@torch.library.register_fake("gdfq::bn_act_fake_quantize")
def _fake(x: Tensor, *_: Any) -> Tensor:
    return empty_like(x)


@torch.library.register_fake("gdfq::bn_act_fake_quantize_backward")
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: str,
    residual: Tensor | None,
    ste: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x = empty_like(x)
    grad_residual = x.new_empty((0,)) if residual is None else torch.empty_like(grad_x)
    grad_weight = x.new_empty((x.shape[1],), dtype=torch.float32)
    return grad_x, grad_residual, grad_weight, torch.empty_like(grad_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, lo, hi, ctx.bits, ctx.act, residual, ctx.ste = inputs
    ctx.save_for_backward(*tensors, lo, hi, residual)


def saved_gradients(ctx: Any, grad: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
    """Return the gradients to ``x``, to batch norm's arguments, and to the residual."""
    *tensors, lo, hi, residual = ctx.saved_tensors
    weight, bias = tensors[3:]
    grad_x, grad_residual, grad_weight, grad_bias = _backward_op(
        grad, *tensors, ctx.eps, lo, hi, ctx.bits, ctx.act, residual, ctx.ste
    )
    return (
        grad_x,
        None,
        None,
        None if weight is None else grad_weight.to(weight.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
    ), (None if residual is None else grad_residual)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_norm, of_residual = saved_gradients(ctx, grad)
    return (*of_norm, *(None,) * 5, of_residual, None)


torch.library.register_autograd(
    "gdfq::bn_act_fake_quantize", _backward, setup_context=_setup_context
)
torch.library.register_autograd("gdfq::bn_act_fake_quantize_backward", _no_second_derivative)


# ---- reference ----


def _activate(v: Tensor, act: str) -> Tensor:
    if act == "none":
        return v
    return torch.clamp(v, min=0, max=6 if act == "relu6" else None)


def _normalize(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activation's input, ``x - running_mean`` and the factor, in float32."""
    wide = x.float()
    centered = wide - _per_channel(running_mean.float(), x)
    factor = _factor(wide, running_var, weight, eps)
    v = centered * factor
    if bias is not None:
        v = v + _per_channel(bias.float(), x)
    if residual is not None:
        v = v + residual.float()
    return v, centered, factor


def bn_act_fake_quantize_reference(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: str = "relu",
    residual: Tensor | None = None,
    ste: str = "identity",
) -> Tensor:
    """Compute :func:`bn_act_fake_quantize` in plain PyTorch."""
    v, _, _ = _normalize(x, running_mean, running_var, weight, bias, eps, residual)
    y = fake_quantize_reference(_activate(v, act), lo, hi, bits).to(x.dtype)
    return in_format_of(y, x)


def bn_act_fake_quantize_backward_reference(
    grad: Tensor,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    act: str = "relu",
    residual: Tensor | None = None,
    ste: str = "identity",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`bn_act_fake_quantize` in plain PyTorch.

    To ``x``, to the residual (empty without one), to weight and bias.
    """
    v, centered, factor = _normalize(x, running_mean, running_var, weight, bias, eps, residual)
    g = grad.float()
    if ste == "clip":
        g = fake_quantize_backward_reference(g, _activate(v, act), lo, hi, bits)
    if act != "none":
        g = torch.where(v > 0, g, 0.0)
    if act == "relu6":
        g = torch.where(v < 6, g, 0.0)
    reduced = [d for d in range(x.dim()) if d != 1]
    std = torch.sqrt(running_var.double() + eps)
    grad_weight = (g * centered).sum(reduced, dtype=torch.float64) / std
    return (
        in_format_of((g * factor).to(x.dtype), x),
        x.new_empty((0,)) if residual is None else in_format_of(g.to(x.dtype), x),
        grad_weight.float(),
        g.sum(reduced, dtype=torch.float64).float(),
    )


register_reference("bn_act_fake_quantize", bn_act_fake_quantize_reference)
register_reference("bn_act_fake_quantize_backward", bn_act_fake_quantize_backward_reference)
