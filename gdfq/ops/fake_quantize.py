"""Fake quantization over a given range, per tensor or along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import Ste, check_axis, check_bits, check_float, check_ste

_op = torch.ops.gdfq.fake_quantize
_backward_op = torch.ops.gdfq.fake_quantize_backward


def fake_quantize(
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    axis: int | None = None,
    ste: Ste = "identity",
) -> Tensor:
    """Round ``x`` to the ``2**bits`` values of a uniform grid over ``[lo, hi]``.

    Args:
        x: any shape; float32, float16, bfloat16 or float64.
        lo, hi: the range's ends, 0-d, or ``(x.shape[axis],)`` when ``axis`` is given; no
            gradient flows to them.
        bits: 2 to 8.
        axis: the axis along which each entry has its own range; None for one range.
        ste: the straight-through estimator, ``"identity"`` (the gradient passes unchanged) or
            ``"clip"`` (it passes where the code before clamping lies in range, else it is 0).

    Returns:
        A tensor of ``x``'s shape, dtype and memory format. Computed in float32::

            scale = (2**bits - 1) * (1 / max(hi - lo, 1e-8))
            zero  = round(scale * lo) + 2**(bits - 1)
            code  = clamp(round(scale * x - zero), -2**(bits - 1), 2**(bits - 1) - 1)
            y     = (code + zero) / scale

        with ``round`` half to even. NaN gives NaN; infinities give the grid's ends.

    Raises:
        InputError: ``bits``, ``axis``, ``ste``, a dtype, a device or the shape of ``lo`` or
            ``hi`` is not one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_float(x, "x")
    check_bits(bits)
    check_ste(ste)
    axis = check_axis(axis, x, "x")
    expected = () if axis is None else (x.shape[axis],)
    for name, end in (("lo", lo), ("hi", hi)):
        check_float(end, name)
        if tuple(end.shape) != expected:
            raise InputError(
                f"{name}: shape must be {expected} for x of shape {tuple(x.shape)} and "
                f"axis={axis}, got {tuple(end.shape)}"
            )
        if end.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {end.device}")
    return _op(x, lo, hi, bits, axis, ste)


@torch.library.register_fake("gdfq::fake_quantize")
def _fake(x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None, ste: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gdfq::fake_quantize_backward")
def _fake_backward(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lo, hi, ctx.bits, ctx.axis, ctx.ste = inputs
    if ctx.ste == "clip":
        ctx.save_for_backward(x, lo, hi)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.ste == "clip":
        grad = _backward_op(grad, *ctx.saved_tensors, ctx.bits, ctx.axis)
    return grad, None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("gdfq: operators are differentiable once; second derivatives are not.")


torch.library.register_autograd("gdfq::fake_quantize", _backward, setup_context=_setup_context)
torch.library.register_autograd("gdfq::fake_quantize_backward", _no_second_derivative)


# ---- reference ----


def _grid(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, int, int]:
    """Scale and zero point, shaped to broadcast over ``x``, and the codes' bounds."""
    half = 2 ** (bits - 1)
    scale = (2**bits - 1) * (1 / torch.clamp(hi.float() - lo.float(), min=1e-8))
    zero = torch.round(scale * lo.float()) + half
    if axis is not None:
        shape = [1] * x.dim()
        shape[axis] = -1
        scale, zero = scale.view(shape), zero.view(shape)
    return scale, zero, -half, half - 1


def fake_quantize_reference(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None, ste: str = "identity"
) -> Tensor:
    """:func:`fake_quantize` in plain PyTorch."""
    scale, zero, lowest, highest = _grid(x, lo, hi, bits, axis)
    code = torch.clamp(torch.round(scale * x.float() - zero), lowest, highest)
    return ((code + zero) / scale).to(x.dtype)


def fake_quantize_backward_reference(
    grad: Tensor, x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None
) -> Tensor:
    """The gradient to ``x`` of the clip estimator in plain PyTorch."""
    scale, zero, lowest, highest = _grid(x, lo, hi, bits, axis)
    code = torch.round(scale * x.float() - zero)
    inside = (code >= lowest) & (code <= highest)
    return torch.where(inside, grad, torch.zeros_like(grad)).to(x.dtype)


register_reference("fake_quantize", fake_quantize_reference)
register_reference("fake_quantize_backward", fake_quantize_backward_reference)
