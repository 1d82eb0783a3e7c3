"""Fake quantization of each channel over its own minimum and maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import Ste, check_axis, check_bits, check_float, check_ste
from gdfq.ops._outputs import in_format_of
from gdfq.ops.fake_quantize import contain_zero, fake_quantize_reference

_op = torch.ops.gdfq.fake_quantize_minmax
_backward_op = torch.ops.gdfq.fake_quantize_backward


def fake_quantize_minmax(
    w: Tensor,
    bits: int,
    axis: int | tuple[int, ...] | None = 0,
    ste: Ste = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Quantize ``w`` over the minimum and maximum of each entry of ``axis``.

    Args:
        w: any shape; float32, float16, bfloat16 or float64.
        bits: 2 to 8.
        axis: each entry along it gets its own range; with ``(0, 1)`` each pair of entries of the
            two leading axes (each kernel of a convolution); None for one range.
        ste: ``"identity"`` or ``"clip"``, see :func:`gdfq.functional.fake_quantize`. The range is
            treated as a constant: no gradient flows through the minimum and maximum.
        zero_in_range: each range also contains 0, see :func:`gdfq.functional.fake_quantize`.

    Returns:
        ``fake_quantize(w, lo, hi, bits, axis)`` with ``lo`` and ``hi`` the minimum and maximum
        of ``w`` over all dimensions but ``axis``. A NaN makes its whole channel NaN; a constant
        channel stays finite.

    Raises:
        InputError: ``bits``, ``axis``, ``ste`` or the dtype is not one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_float(w, "w")
    bits = check_bits(bits)
    check_ste(ste)
    if isinstance(axis, tuple):
        if axis not in ((0,), (0, 1)) or w.dim() < len(axis):
            raise InputError(
                f"axis: must be None, an int, (0,) or (0, 1) for w of shape {tuple(w.shape)}, "
                f"got {axis!r}"
            )
        if len(axis) == 2:
            # Two leading axes of contiguous memory are one.
            y = _op(w.flatten(0, 1), bits, 0, ste, zero_in_range)[0].view(w.shape)
            return in_format_of(y, w)
        axis = axis[0]
    return _op(w, bits, check_axis(axis, w, "w"), ste, zero_in_range)[0]


@torch.library.register_fake("gdfq::fake_quantize_minmax")
def _fake(
    w: Tensor, bits: int, axis: int | None, ste: str, zero_in_range: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = () if axis is None else (w.shape[axis],)
    lo = torch.empty(shape, dtype=torch.float32, device=w.device)
    return torch.empty_like(w), lo, torch.empty_like(lo)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    w, ctx.bits, ctx.axis, ctx.ste, _ = inputs
    _, lo, hi = output
    ctx.mark_non_differentiable(lo, hi)
    if ctx.ste == "clip":
        ctx.save_for_backward(w, lo, hi)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.ste == "clip":
        grad = _backward_op(grad, *ctx.saved_tensors, ctx.bits, ctx.axis)
    return grad, None, None, None, None


torch.library.register_autograd(
    "gdfq::fake_quantize_minmax", _backward, setup_context=_setup_context
)


# ---- reference ----


def fake_quantize_minmax_reference(
    w: Tensor,
    bits: int,
    axis: int | None = 0,
    ste: str = "identity",
    zero_in_range: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`fake_quantize_minmax` in plain PyTorch: result, lower and upper bounds."""
    if w.numel() == 0:
        lo = torch.zeros(
            () if axis is None else (w.shape[axis],), device=w.device, dtype=torch.float32
        )
        return torch.empty_like(w), lo, torch.zeros_like(lo)
    rows = w.float().reshape(1, -1)
    if axis is not None:
        rows = w.float().movedim(axis, 0).reshape(w.shape[axis], -1)
    lo, hi = rows.amin(1), rows.amax(1)
    if axis is None:
        lo, hi = lo.squeeze(0), hi.squeeze(0)
    if zero_in_range:
        lo, hi = contain_zero(lo, hi)
    return fake_quantize_reference(w, lo, hi, bits, axis), lo, hi


register_reference("fake_quantize_minmax", fake_quantize_minmax_reference)
