"""The integer codes behind fake quantization, with inverse scale and zero point."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_axis, check_bits, check_float, check_range
from gdfq.ops.fake_quantize import _grid, contain_zero

_op = torch.ops.gdfq.quantize_codes


def quantize_codes(
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    axis: int | None = None,
    zero_in_range: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, inverse scale and zero point of ``x`` on the uniform grid over ``[lo, hi]``.

    Args:
        x: any shape; float32, float16, bfloat16 or float64.
        lo, hi: the range's lower and upper bound, 0-d, or ``(x.shape[axis],)`` if ``axis`` is
            given.
        bits: 2 to 8.
        axis: the axis along which each entry has its own range; None for one range.
        zero_in_range: see :func:`gdfq.functional.fake_quantize`.

    Returns:
        ``(codes, inv_scale, zero)``: int8 ``codes`` in ``x``'s shape and memory format, from
        ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``, and float32 ``inv_scale``, the
        reciprocal of the step size, and ``zero`` in the shape of ``lo``, so that::

            (codes + zero) / inv_scale == fake_quantize(x, lo, hi, bits, axis)

        ``zero`` is a whole number. NaN has no code and gets the lower bound. No gradient.

    Raises:
        InputError: ``bits``, ``axis``, a dtype, a device or the shape of ``lo`` or ``hi`` is not
            one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_float(x, "x")
    bits = check_bits(bits)
    axis = check_axis(axis, x, "x")
    check_range(lo, hi, () if axis is None else (x.shape[axis],), x)
    with torch.no_grad():
        if zero_in_range:
            lo, hi = contain_zero(lo, hi)
        return _op(x, lo, hi, bits, axis)


@torch.library.register_fake("gdfq::quantize_codes")
def _fake(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    inv_scale = lo.new_empty(lo.shape, dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.int8), inv_scale, torch.empty_like(inv_scale)


# ---- reference ----


def quantize_codes_reference(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`quantize_codes` in plain PyTorch."""
    inv_scale, zero, code_lo, code_hi = _grid(x, lo, hi, bits, axis)
    code = torch.clamp(torch.round(inv_scale * x.float() - zero), code_lo, code_hi)
    codes = torch.empty_like(x, dtype=torch.int8).copy_(torch.nan_to_num(code, nan=code_lo))
    return codes, inv_scale.reshape(lo.shape), zero.reshape(lo.shape)


register_reference("quantize_codes", quantize_codes_reference)
