"""Fake quantization over a given range, per tensor or along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.ops._backend import register_reference
from gdfq.ops._checks import (
    LearnedSte,
    check_axis,
    check_bits,
    check_float,
    check_range,
    check_ste,
)

_op = torch.ops.gdfq.fake_quantize
_backward_op = torch.ops.gdfq.fake_quantize_backward
_learned_backward_op = torch.ops.gdfq.fake_quantize_learned_backward


def fake_quantize(
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    axis: int | None = None,
    ste: LearnedSte = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Round ``x`` to the ``2**bits`` values of a uniform grid over ``[lo, hi]``.

    Args:
        x: any shape; float32, float16, bfloat16 or float64.
        lo, hi: the range's lower and upper bound, 0-d, or ``(x.shape[axis],)`` if ``axis`` is
            given; no gradient flows to them unless ``ste="learned"``.
        bits: 2 to 8.
        axis: the axis along which each entry has its own range; None for one range.
        ste: the straight-through estimator: ``"identity"`` (the gradient passes unchanged),
            ``"clip"`` (it passes where the code before clamping lies in range, else it is 0) or
            ``"learned"`` (as ``"clip"`` for ``x``, and gradients to ``lo`` and ``hi``).
        zero_in_range: quantize over ``[min(lo, 0), max(hi, 0)]``, so that 0 is a value of the
            grid; integer kernels that pad with zeros need it. No gradient flows to a bound that
            was moved.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format. Computed in float32::

            inv_scale = (2**bits - 1) * (1 / max(hi - lo, 1e-8))
            zero      = round(inv_scale * lo) + 2**(bits - 1)
            code      = clamp(round(inv_scale * x - zero), -2**(bits - 1), 2**(bits - 1) - 1)
            y         = (code + zero) / inv_scale

        with ``round`` half to even; ``inv_scale`` is the reciprocal of the step size. NaN gives
        NaN; infinities give the grid's first and last value.

        The learned range's gradient is that of a grid of ``levels = 2**bits - 1`` steps of size
        ``(hi - lo) / levels`` that starts at ``lo``, with ``round`` passing gradients unchanged.
        With ``v = inv_scale * x - zero`` and ``e = (round(v) - v) / levels``, an element gives
        ``dy`` times

        |         | code below range | in range | code above range |
        |---------|------------------|----------|------------------|
        | ``dlo`` | 1                | ``-e``   | 0                |
        | ``dhi`` | 0                | ``e``    | 1                |

        summed over the range's n elements and divided by ``sqrt(n * levels)``. The zero point's
        rounding is ignored, and a NaN contributes nothing.

    Raises:
        InputError: ``bits``, ``axis``, ``ste``, a dtype, a device or the shape of ``lo`` or
            ``hi`` is not one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    Learned ranges: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 3 and
    section 2.2; with an offset, Bhalgat et al., "LSQ+", CVPR workshops 2020, in terms of both
    bounds: with step d and offset b, ``dlo = db - dd / levels`` and ``dhi = dd / levels``.
    """
    check_float(x, "x")
    bits = check_bits(bits)
    check_ste(ste, learned=True)
    axis = check_axis(axis, x, "x")
    check_range(lo, hi, () if axis is None else (x.shape[axis],), x)
    if zero_in_range:
        lo, hi = contain_zero(lo, hi)
    return _op(x, lo, hi, bits, axis, ste)


def contain_zero(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ranges' bounds, moved so that 0 is between them; NaN stays."""
    return torch.clamp(lo, max=0), torch.clamp(hi, min=0)


@torch.library.register_fake("gdfq::fake_quantize")
def _fake(x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None, ste: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gdfq::fake_quantize_backward")
def _fake_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gdfq::fake_quantize_learned_backward")
def _fake_learned_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    grad_lo = lo.new_empty(lo.shape, dtype=torch.float32)
    return torch.empty_like(x), grad_lo, torch.empty_like(grad_lo)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lo, hi, ctx.bits, ctx.axis, ctx.ste = inputs
    if ctx.ste != "identity":
        ctx.save_for_backward(x, lo, hi)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.ste == "learned":
        _, lo, hi = ctx.saved_tensors
        grad, grad_lo, grad_hi = _learned_backward_op(grad, *ctx.saved_tensors, ctx.bits, ctx.axis)
        return grad, grad_lo.to(lo.dtype), grad_hi.to(hi.dtype), None, None, None
    if ctx.ste == "clip":
        grad = _backward_op(grad, *ctx.saved_tensors, ctx.bits, ctx.axis)
    return grad, None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("gdfq: operators are differentiable once; second derivatives are not.")


torch.library.register_autograd("gdfq::fake_quantize", _backward, setup_context=_setup_context)
torch.library.register_autograd("gdfq::fake_quantize_backward", _no_second_derivative)
torch.library.register_autograd("gdfq::fake_quantize_learned_backward", _no_second_derivative)


# ---- reference ----


def _grid(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, int, int]:
    """Return inverse scale and zero point, broadcastable to ``x``, and the codes' bounds."""
    half = 2 ** (bits - 1)
    inv_scale = (2**bits - 1) * (1 / torch.clamp(hi.float() - lo.float(), min=1e-8))
    zero = torch.round(inv_scale * lo.float()) + half
    if axis is not None:
        shape = [1] * x.dim()
        shape[axis] = -1
        inv_scale, zero = inv_scale.view(shape), zero.view(shape)
    return inv_scale, zero, -half, half - 1


def fake_quantize_reference(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None, ste: str = "identity"
) -> Tensor:
    """Compute :func:`fake_quantize` in plain PyTorch."""
    inv_scale, zero, code_lo, code_hi = _grid(x, lo, hi, bits, axis)
    code = torch.clamp(torch.round(inv_scale * x.float() - zero), code_lo, code_hi)
    return ((code + zero) / inv_scale).to(x.dtype)


def fake_quantize_backward_reference(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None
) -> Tensor:
    """Compute the gradient to ``x`` of the clip estimator in plain PyTorch."""
    inv_scale, zero, code_lo, code_hi = _grid(x, lo, hi, bits, axis)
    code = torch.round(inv_scale * x.float() - zero)
    inside = (code >= code_lo) & (code <= code_hi)
    return torch.where(inside, grad, torch.zeros_like(grad)).to(x.dtype)


def fake_quantize_learned_backward_reference(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the learned estimator's gradients to ``x``, ``lo`` and ``hi`` in plain PyTorch."""
    inv_scale, zero, code_lo, code_hi = _grid(x, lo, hi, bits, axis)
    v = inv_scale * x.float() - zero
    code = torch.round(v)
    below, above = code < code_lo, code > code_hi
    inside = (code >= code_lo) & (code <= code_hi)
    wide = grad.to(x.dtype).float()
    rounding = torch.where(inside, wide * (torch.clamp(code, code_lo, code_hi) - v), 0.0)
    reduced = [d for d in range(x.dim()) if d != axis]

    def total(terms: Tensor) -> Tensor:
        return terms.double().sum(reduced) if reduced else terms.double()

    levels = 2**bits - 1
    elements = max(1, x.numel()) / max(1, lo.numel())
    factor = 1 / (elements * levels) ** 0.5
    error = total(rounding) / levels
    grad_lo = factor * (total(torch.where(below, wide, 0.0)) - error)
    grad_hi = factor * (total(torch.where(above, wide, 0.0)) + error)
    grad_x = torch.where(inside, grad, torch.zeros_like(grad)).to(x.dtype)
    return torch.empty_like(x).copy_(grad_x), grad_lo.float(), grad_hi.float()


register_reference("fake_quantize", fake_quantize_reference)
register_reference("fake_quantize_backward", fake_quantize_backward_reference)
register_reference("fake_quantize_learned_backward", fake_quantize_learned_backward_reference)
