"""The integer codes behind fake quantization, with what turns them back into values."""

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
    """Codes, scale and zero point of ``x`` on the uniform grid over ``[lo, hi]``.

    Args:
        x: any shape; float32, float16, bfloat16 or float64.
        lo, hi: the range's ends, 0-d, or ``(x.shape[axis],)`` when ``axis`` is given.
        bits: 2 to 8.
        axis: the axis along which each entry has its own range; None for one range.
        zero_in_range: see :func:`gdfq.functional.fake_quantize`.

    Returns:
        ``(codes, scale, zero)``: int8 ``codes`` in ``x``'s shape and memory format, from
        ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``, and float32 ``scale`` and ``zero`` in the
        shape of ``lo``, as :func:`gdfq.functional.fake_quantize` has them, so that::

            (codes + zero) / scale == fake_quantize(x, lo, hi, bits, axis)

        ``zero`` is a whole number. NaN has no code and gets the lowest. No gradient.

    Raises:
        InputError: ``bits``, ``axis``, a dtype, a device or the shape of ``lo`` or ``hi`` is not
            one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    check_float(x, "x")
    check_bits(bits)
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
    scale = lo.new_empty(lo.shape, dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.int8), scale, torch.empty_like(scale)


# ---- reference ----


def quantize_codes_reference(
    x: Tensor, lo: Tensor, hi: Tensor, bits: int, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`quantize_codes` in plain PyTorch."""
    scale, zero, lowest, highest = _grid(x, lo, hi, bits, axis)
    code = torch.clamp(torch.round(scale * x.float() - zero), lowest, highest)
    codes = torch.empty_like(x, dtype=torch.int8).copy_(torch.nan_to_num(code, nan=lowest))
    return codes, scale.reshape(lo.shape), zero.reshape(lo.shape)


register_reference("quantize_codes", quantize_codes_reference)
