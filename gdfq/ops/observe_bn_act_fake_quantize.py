"""Frozen batch normalization, residual, activation and a quantizer with a moving range."""

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
    check_moving_range,
    check_same,
    check_ste,
)
from gdfq.ops._outputs import empty_like
from gdfq.ops.bn_act_fake_quantize import (
    _activate,
    _normalize,
    bn_act_fake_quantize_reference,
    saved_gradients,
)
from gdfq.ops.observe_fake_quantize import move_range, register_gradient

_op = torch.ops.gdfq.observe_bn_act_fake_quantize


def observe_bn_act_fake_quantize(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float = 0.9,
    act: Activation = "relu",
    residual: Tensor | None = None,
    ste: Ste = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Apply :func:`gdfq.functional.bn_act_fake_quantize` over a range that the batch moves first.

    Args:
        x: ``(N, C, ...)``; float32, float16, bfloat16 or float64. An empty batch moves nothing.
        running_mean, running_var: ``(C,)``, constants; no gradient flows to them.
        weight, bias: ``(C,)`` each, or None for 1 and 0.
        eps: added to ``running_var``, > 0.
        average_lo, average_hi: the moving averages, 0-d float32; updated in place.
        lo, hi: the range, 0-d float32; overwritten.
        num_batches_tracked: number of batches, 0-d int64; updated in place.
        bits: 2 to 8.
        momentum: weight of the past in the moving average, in [0, 1).
        act: ``"relu"``, ``"relu6"`` or ``"none"``.
        residual: a tensor of ``x``'s shape and dtype, added before the activation, or None.
        ste: ``"identity"`` or ``"clip"``, see :func:`gdfq.functional.fake_quantize`. The range is
            treated as a constant: no gradient flows through the minimum and maximum.
        zero_in_range: ``lo`` and ``hi``, not their averages, are moved to contain 0, see
            :func:`gdfq.functional.fake_quantize`.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format. Everything, minimum and maximum too,
        is computed in float32 on ``x``'s device without waiting for it::

            v = (x - running_mean) * (weight / sqrt(running_var + eps)) + bias + residual
            y = observe_fake_quantize(act(v), average_lo, average_hi, lo, hi,
                                      num_batches_tracked, bits, momentum, ste, zero_in_range)

        ``x`` (and ``residual``) is read twice and ``y`` written once. Gradients are those of
        :func:`gdfq.functional.bn_act_fake_quantize` with the moved range.

    Raises:
        InputError: a shape, dtype, device, ``eps``, ``bits``, ``momentum``, ``act`` or ``ste`` is
            not one of the above, or a buffer shares memory with another argument.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_batch_norm(x, running_mean, running_var, weight, bias, eps)
    buffers = (average_lo, average_hi, lo, hi, num_batches_tracked)
    bits = check_bits(bits)
    check_act(act)
    check_ste(ste)
    check_same(residual, "residual", x, "x")
    read = {"running_mean": running_mean, "running_var": running_var, "weight": weight}
    read |= {"x": x, "bias": bias, "residual": residual}
    check_moving_range(x, *buffers, momentum, read)
    norm = (running_mean, running_var, weight, bias, eps)
    return _op(x, *norm, *buffers, bits, momentum, act, residual, ste, zero_in_range)


@torch.library.register_fake("gdfq::observe_bn_act_fake_quantize")
def _fake(x: Tensor, *_: Any) -> Tensor:
    return empty_like(x)


class _ObserveBnActFakeQuantize(torch.autograd.Function):
    """The gradient of an operator that updates arguments, which register_autograd refuses."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Tensor:
        lo, hi = arguments[8:10]
        ctx.eps, ctx.bits, ctx.act, ctx.ste = (arguments[i] for i in (5, 11, 13, 15))
        with torch._C._AutoDispatchBelowAutograd():
            y = _op.default.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
            # Copies: the next batch moves the range.
            ctx.save_for_backward(*arguments[:5], lo.clone(), hi.clone(), arguments[14])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_norm, of_residual = saved_gradients(ctx, grad)
        return (None, *of_norm, *(None,) * 9, of_residual, None, None)


register_gradient("observe_bn_act_fake_quantize", _ObserveBnActFakeQuantize, slice(6, 11))


# ---- reference ----


def observe_bn_act_fake_quantize_reference(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float = 0.9,
    act: str = "relu",
    residual: Tensor | None = None,
    ste: str = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Compute :func:`observe_bn_act_fake_quantize` in plain PyTorch."""
    norm = (running_mean, running_var, weight, bias, eps)
    if x.numel():
        v, _, _ = _normalize(x, *norm, residual)
        buffers = (average_lo, average_hi, lo, hi, num_batches_tracked)
        move_range(_activate(v, act), *buffers, momentum, zero_in_range)
    return bn_act_fake_quantize_reference(x, *norm, lo, hi, bits, act, residual, ste)


register_reference("observe_bn_act_fake_quantize", observe_bn_act_fake_quantize_reference)
