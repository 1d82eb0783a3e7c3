"""Evaluation-mode batch normalization together with the batch statistics of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_float, check_vector
from gdfq.ops._outputs import empty_like, in_format_of, reduced_dtype
from gdfq.ops.fake_quantize import _no_second_derivative

_op = torch.ops.gdfq.batch_norm_stats
_backward_op = torch.ops.gdfq.batch_norm_stats_backward


def batch_norm_stats(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize ``x`` by running statistics and return its batch statistics, from one read.

    Args:
        x: ``(N, C, ...)``, not empty; float32, float16, bfloat16 or float64.
        running_mean, running_var: ``(C,)``, constants; no gradient flows to them.
        weight, bias: ``(C,)`` each, or None for 1 and 0.
        eps: added to ``running_var``, > 0.

    Returns:
        ``(y, mean, var)``: ``y`` in ``x``'s shape, dtype and memory format, ``mean`` and the
        biased ``var`` of ``x`` over all dimensions but 1 as ``(C,)`` float32 (float64 for
        float64 input)::

            y = (x - running_mean) * (weight / sqrt(running_var + eps)) + bias

        Sums are taken about pivots and added in float64: ``var`` has a relative error below 1e-6
        if a channel's mean is below 3e4 standard deviations.

        With M elements per channel the gradient needs no reduction::

            dx = dy * weight / sqrt(running_var + eps) + 2 / M * dvar * (x - mean) + dmean / M

    Raises:
        InputError: a shape, dtype, device or ``eps`` is not one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, equation 3.
    """
    check_float(x, "x")
    if x.dim() < 2 or x.numel() == 0:
        raise InputError(f"x: must be (N, C, ...) and not empty, got shape {tuple(x.shape)}")
    if not eps > 0:
        raise InputError(f"eps: must be > 0, got {eps!r}")
    for name, vector in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        check_vector(vector, x.shape[1], name, like=x)
    return _op(x, running_mean, running_var, weight, bias, eps)


@torch.library.register_fake("gdfq::batch_norm_stats")
def _fake(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y = empty_like(x)
    mean = x.new_empty((x.shape[1],), dtype=reduced_dtype(x))
    return y, mean, torch.empty_like(mean)


@torch.library.register_fake("gdfq::batch_norm_stats_backward")
def _fake_backward(
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    x: Tensor,
    mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    return empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, running_mean, running_var, weight, bias, ctx.eps = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, running_mean, running_var, weight, output[1])


def _backward(
    ctx: Any, grad_y: Tensor, grad_mean: Tensor, grad_var: Tensor
) -> tuple[Tensor | None, ...]:
    x, running_mean, running_var, weight, mean = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _backward_op(grad_y, grad_mean, grad_var, x, mean, running_var, weight, ctx.eps)
    reduced = [d for d in range(x.dim()) if d != 1]
    if weight is not None and ctx.needs_input_grad[3]:
        inverse_std = torch.rsqrt(running_var.to(mean.dtype) + ctx.eps)
        centered = x.to(mean.dtype) - _per_channel(running_mean, x).to(mean.dtype)
        grad_weight = ((grad_y * centered).sum(reduced) * inverse_std).to(weight.dtype)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = grad_y.to(mean.dtype).sum(reduced)
    return grad_x, None, None, grad_weight, grad_bias, None


torch.library.register_autograd("gdfq::batch_norm_stats", _backward, setup_context=_setup_context)
torch.library.register_autograd("gdfq::batch_norm_stats_backward", _no_second_derivative)


# ---- reference ----


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view([1, -1] + [1] * (x.dim() - 2))


def _factor(x: Tensor, running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    dtype = reduced_dtype(x)
    # PyTorch's vectorized float32 sqrt can be off by an ulp; through float64 it rounds correctly.
    std = torch.sqrt((running_var.to(dtype) + eps).double()).to(dtype)
    return _per_channel((1 if weight is None else weight.to(dtype)) / std, x)


def batch_norm_stats_reference(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`batch_norm_stats` in plain PyTorch."""
    dtype = reduced_dtype(x)
    wide = x.to(dtype)
    centered = wide - _per_channel(running_mean.to(dtype), x)
    y = centered * _factor(x, running_var, weight, eps)
    if bias is not None:
        y = y + _per_channel(bias.to(dtype), x)
    var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
    return in_format_of(y.to(x.dtype), x), mean, var


def batch_norm_stats_backward_reference(
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    x: Tensor,
    mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    """Compute the gradient to ``x`` of :func:`batch_norm_stats` in plain PyTorch."""
    dtype = reduced_dtype(x)
    count = x.numel() // x.shape[1]
    dx = (
        grad_y.to(dtype) * _factor(x, running_var, weight, eps)
        + (x.to(dtype) - _per_channel(mean, x)) * _per_channel(grad_var * 2 / count, x)
        + _per_channel(grad_mean / count, x)
    )
    return in_format_of(dx.to(x.dtype), x)


register_reference("batch_norm_stats", batch_norm_stats_reference)
register_reference("batch_norm_stats_backward", batch_norm_stats_backward_reference)
