"""The number of integer codes of a network's weights that an update would change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_bits, check_float, check_range
from gdfq.ops.quantize_codes import quantize_codes_reference

_op = torch.ops.gdfq.count_changed_codes


def count_changed_codes(
    ws: Sequence[Tensor],
    updates: Sequence[Tensor],
    factors: Tensor,
    los: Sequence[Tensor],
    his: Sequence[Tensor],
    bits: int | Sequence[int],
) -> Tensor:
    """Count the codes of each tensor that differ between ``w`` and ``w - factor * update``.

    Args:
        ws: tensors of any shapes but 0-d; float32, float16, bfloat16 or float64.
        updates: for each, a tensor of the same shape.
        factors: ``(len(ws),)``, on the same device.
        los, his: for each, ``(w.shape[0],)``, lower and upper bounds of its entries' ranges.
        bits: 2 to 8, one for all or one per tensor.

    Returns:
        ``(len(ws),)`` int64. Codes are those of :func:`gdfq.functional.quantize_codes` along axis
        0. ``update`` is rounded to ``w``'s dtype; then product and difference are each rounded to
        float32. No gradient.

    Raises:
        InputError: a length, ``bits``, a dtype, a shape or a device is not one of the above.

    Source: Choi et al., "It's All In the Teacher", CVPR 2022.
    """
    lists = {"ws": list(ws), "updates": list(updates), "los": list(los), "his": list(his)}
    count = len(lists["ws"])
    many = [check_bits(b) for b in (bits if isinstance(bits, Iterable) else [bits] * count)]
    lengths = {**{name: len(entries) for name, entries in lists.items()}, "bits": len(many)}
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"{name}: must have {count} entries, as ws, got {length}")
    check_float(factors, "factors")
    if tuple(factors.shape) != (count,):
        raise InputError(f"factors: shape must be ({count},), got {tuple(factors.shape)}")
    for index, (w, update, lo, hi) in enumerate(zip(*lists.values(), strict=True)):
        for name, tensor in (("ws", w), ("updates", update)):
            check_float(tensor, f"{name}[{index}]")
        if w.dim() == 0:
            raise InputError(f"ws[{index}]: must have at least one dimension, got shape ()")
        if update.shape != w.shape:
            raise InputError(
                f"updates[{index}]: shape must be {tuple(w.shape)} as ws[{index}]'s, "
                f"got {tuple(update.shape)}"
            )
        for name, tensor in (("ws", w), ("updates", update)):
            if tensor.device != factors.device:
                raise InputError(
                    f"{name}[{index}]: must be on {factors.device} like factors, "
                    f"got {tensor.device}"
                )
        check_range(lo, hi, (w.shape[0],), w, (f"los[{index}]", f"his[{index}]"))
    with torch.no_grad():
        return _op(lists["ws"], lists["updates"], factors, lists["los"], lists["his"], many)


@torch.library.register_fake("gdfq::count_changed_codes")
def _fake(
    ws: list[Tensor],
    updates: list[Tensor],
    factors: Tensor,
    los: list[Tensor],
    his: list[Tensor],
    bits: list[int],
) -> Tensor:
    return factors.new_empty((len(ws),), dtype=torch.int64)


# ---- reference ----


def count_changed_codes_reference(
    ws: list[Tensor],
    updates: list[Tensor],
    factors: Tensor,
    los: list[Tensor],
    his: list[Tensor],
    bits: list[int],
) -> Tensor:
    """Compute :func:`count_changed_codes` in plain PyTorch."""
    counts = []
    for index, (w, update, lo, hi, b) in enumerate(zip(ws, updates, los, his, bits, strict=True)):
        moved = w.float() - factors[index].float() * update.to(w.dtype).float()
        before, after = (quantize_codes_reference(x, lo, hi, b, 0)[0] for x in (w.float(), moved))
        counts.append((before != after).sum())
    return torch.stack(counts) if counts else factors.new_zeros((0,), dtype=torch.int64)


register_reference("count_changed_codes", count_changed_codes_reference)
