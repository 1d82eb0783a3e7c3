"""Training-mode batch normalization, plain or class-conditional, followed by a leaky ReLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_float, check_vector, check_written
from gdfq.ops._outputs import empty_like, in_format_of
from gdfq.ops.fake_quantize import _no_second_derivative

_op = torch.ops.gdfq.bn_leaky_relu
_backward_op = torch.ops.gdfq.bn_leaky_relu_backward


def bn_leaky_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    momentum: float = 0.1,
    negative_slope: float = 0.2,
) -> Tensor:
    """Normalize ``x`` by its own batch statistics and apply a leaky ReLU.

    Args:
        x: ``(N, C, ...)``, at least 2 elements per channel; float32, float16, bfloat16 or
            float64, which the reference computes.
        running_mean, running_var: ``(C,)``, updated in place as ``nn.BatchNorm2d`` does; None to
            keep no running statistics.
        weight, bias: ``(C,)``, or ``(N, C)`` for parameters per sample; None for 1 and 0.
        eps: added to the variance, > 0.
        momentum: weight of this batch in the running statistics, in [0, 1].
        negative_slope: slope of the leaky ReLU, in [0, 1]; 1 leaves it out.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format. Computed in float32, with ``mean`` and
        the biased ``var`` of ``x`` over all dimensions but 1::

            v = (x - mean) * (weight / sqrt(var + eps)) + bias
            y = v if v > 0 else negative_slope * v

        With M elements per channel the running variance takes ``var * M / (M - 1)``. Gradients
        flow to ``x``, ``weight`` and ``bias``, also through the statistics, in one reduction and
        one pass.

    Raises:
        InputError: a shape, dtype, device, ``eps``, ``momentum`` or ``negative_slope`` is not one
            of the above, or a running statistic shares memory with another argument.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015; per sample, Dumoulin et al., "A
    learned representation for artistic style", ICLR 2017.
    """
    check_float(x, "x")
    if x.dim() < 2 or x.shape[1] == 0 or x.numel() < 2 * x.shape[1]:
        raise InputError(
            "x: must be (N, C, ...) with at least 2 elements per channel, got shape "
            f"{tuple(x.shape)}"
        )
    check_vector(running_mean, x.shape[1], "running_mean", like=x)
    check_vector(running_var, x.shape[1], "running_var", like=x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        check_float(tensor, name)
        if tuple(tensor.shape) not in (tuple(x.shape[1:2]), tuple(x.shape[:2])):
            raise InputError(
                f"{name}: shape must be {tuple(x.shape[1:2])} or {tuple(x.shape[:2])} for x of "
                f"shape {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {tensor.device}")
    if not eps > 0:
        raise InputError(f"eps: must be > 0, got {eps!r}")
    if not 0 <= momentum <= 1:
        raise InputError(f"momentum: must be in [0, 1], got {momentum!r}")
    if not 0 <= negative_slope <= 1:
        raise InputError(f"negative_slope: must be in [0, 1], got {negative_slope!r}")
    running = {"running_mean": running_mean, "running_var": running_var}
    written = {name: tensor for name, tensor in running.items() if tensor is not None}
    check_written(written, read={"x": x, "weight": weight, "bias": bias})
    function = bn_leaky_relu_reference if x.dtype == torch.float64 else _op
    y, mean, var = function(x, weight, bias, eps, negative_slope)
    with torch.no_grad():
        count = x.numel() // x.shape[1]
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


@torch.library.register_fake("gdfq::bn_leaky_relu")
def _fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[1],), dtype=torch.float32)
    return empty_like(x), mean, torch.empty_like(mean)


@torch.library.register_fake("gdfq::bn_leaky_relu_backward")
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape[:2] if _per_sample(weight, bias) else x.shape[1:2]
    grad_weight = x.new_empty(shape, dtype=torch.float32)
    return empty_like(x), grad_weight, torch.empty_like(grad_weight)


def _per_sample(weight: Tensor | None, bias: Tensor | None) -> bool:
    return any(t is not None and t.dim() == 2 for t in (weight, bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, ctx.negative_slope = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, mean, var, weight, bias)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *_, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward_op(
        grad, *ctx.saved_tensors, ctx.eps, ctx.negative_slope
    )

    def of(parameter: Tensor | None, gradient: Tensor) -> Tensor | None:
        if parameter is None:
            return None
        if parameter.dim() < gradient.dim():  # the other parameter is per sample
            gradient = gradient.sum(0)
        return gradient.to(parameter.dtype)

    return grad_x, of(weight, grad_weight), of(bias, grad_bias), None, None


torch.library.register_autograd("gdfq::bn_leaky_relu", _backward, setup_context=_setup_context)
torch.library.register_autograd("gdfq::bn_leaky_relu_backward", _no_second_derivative)


# ---- reference ----


def _shaped(parameter: Tensor, x: Tensor) -> Tensor:
    samples = parameter.shape[0] if parameter.dim() == 2 else 1
    return parameter.view([samples, -1] + [1] * (x.dim() - 2))


def _affine(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leaky ReLU's input, ``x - mean`` and the factor, in the statistics' dtype."""
    centered = x.to(mean.dtype) - _shaped(mean, x)
    # PyTorch's vectorized float32 sqrt can be off by an ulp; through float64 it rounds correctly.
    std = _shaped(torch.sqrt((var + eps).double()).to(mean.dtype), x)
    factor = 1 / std if weight is None else _shaped(weight.to(mean.dtype), x) / std
    v = centered * factor
    if bias is not None:
        v = v + _shaped(bias.to(mean.dtype), x)
    return v, centered, factor


def bn_leaky_relu_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    negative_slope: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the output of :func:`bn_leaky_relu`, and mean and variance, in plain PyTorch."""
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
    v, _, _ = _affine(x, mean, var, weight, bias, eps)
    y = F.leaky_relu(v, negative_slope).to(x.dtype)
    return in_format_of(y, x), mean, var


def bn_leaky_relu_backward_reference(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    negative_slope: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`bn_leaky_relu` in plain PyTorch."""
    v, centered, factor = _affine(x, mean, var, weight, bias, eps)
    g = grad.to(mean.dtype)
    g = torch.where(v > 0, g, g * negative_slope)
    reduced = [d for d in range(x.dim()) if d != 1]
    count = x.numel() // x.shape[1]
    scaled = g * factor
    inverse = _shaped(1 / (var + eps), x)
    grad_x = (
        scaled
        - (
            scaled.sum(reduced, keepdim=True)
            + centered * inverse * (scaled * centered).sum(reduced, keepdim=True)
        )
        / count
    )
    summed = [d for d in reduced if d] if _per_sample(weight, bias) else reduced
    std = torch.sqrt(var.double() + eps)
    wide_g, wide_gx = g.double(), (g * centered).double()
    grad_bias = wide_g.sum(summed) if summed else wide_g
    grad_weight = (wide_gx.sum(summed) if summed else wide_gx) / std
    return (
        in_format_of(grad_x.to(x.dtype), x),
        grad_weight.to(mean.dtype),
        grad_bias.to(mean.dtype),
    )


register_reference("bn_leaky_relu", bn_leaky_relu_reference)
register_reference("bn_leaky_relu_backward", bn_leaky_relu_backward_reference)
