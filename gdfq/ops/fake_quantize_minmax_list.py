"""Fake quantization of all weights of a network in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import Ste, check_bits, check_float, check_ste
from gdfq.ops.fake_quantize import _no_second_derivative, fake_quantize_backward_reference
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax_reference

_op = torch.ops.gdfq.fake_quantize_minmax_list
_backward_op = torch.ops.gdfq.fake_quantize_minmax_list_backward


def fake_quantize_minmax_list(
    ws: Sequence[Tensor],
    bits: int | Sequence[int],
    ste: Ste = "identity",
    zero_in_range: bool = False,
) -> list[Tensor]:
    """Quantize several tensors, each over the minimum and maximum of each entry of dimension 0.

    Args:
        ws: any number of tensors of any shapes but 0-d; float32, float16, bfloat16 or float64.
        bits: 2 to 8, one for all or one per tensor.
        ste: ``"identity"`` or ``"clip"``, see :func:`gdfq.functional.fake_quantize`.
        zero_in_range: each range also contains 0, see :func:`gdfq.functional.fake_quantize`.

    Returns:
        ``[fake_quantize_minmax(w, b, 0, ste, zero_in_range) for w, b in zip(ws, bits)]``, from one
        call forward and, for ``"clip"``, one backward. See
        :func:`gdfq.functional.fake_quantize_minmax`.

    Raises:
        InputError: ``bits``, ``ste``, a dtype, a shape or a device is not one of the above.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3.
    """
    ws = list(ws)
    many = [check_bits(b) for b in (bits if isinstance(bits, Iterable) else [bits] * len(ws))]
    if len(many) != len(ws):
        raise InputError(f"bits: must be an int or {len(ws)} ints, one per tensor, got {bits!r}")
    check_ste(ste)
    for index, w in enumerate(ws):
        check_float(w, f"ws[{index}]")
        if w.dim() == 0:
            raise InputError(f"ws[{index}]: must have at least one dimension, got shape ()")
        if w.device != ws[0].device:
            raise InputError(f"ws[{index}]: must be on {ws[0].device} like ws[0], got {w.device}")
    return list(_op(ws, many, ste, zero_in_range)[0]) if ws else []


@torch.library.register_fake("gdfq::fake_quantize_minmax_list")
def _fake(
    ws: list[Tensor], bits: list[int], ste: str, zero_in_range: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    los = [w.new_empty((w.shape[0],), dtype=torch.float32) for w in ws]
    return [torch.empty_like(w) for w in ws], los, [torch.empty_like(lo) for lo in los]


@torch.library.register_fake("gdfq::fake_quantize_minmax_list_backward")
def _fake_backward(
    grads: list[Tensor], ws: list[Tensor], los: list[Tensor], his: list[Tensor], bits: list[int]
) -> list[Tensor]:
    return [torch.empty_like(w) for w in ws]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], ...]) -> None:
    ws, ctx.bits, ctx.ste, _ = inputs
    _, los, his = output
    ctx.mark_non_differentiable(*los, *his)
    ctx.tensors = len(ws)
    if ctx.ste == "clip":
        ctx.save_for_backward(*ws, *los, *his)


def _backward(ctx: Any, grads: list[Tensor], *_: Any) -> tuple[Any, ...]:
    if ctx.ste == "clip":
        saved, n = ctx.saved_tensors, ctx.tensors
        grads = _backward_op(grads, saved[:n], saved[n : 2 * n], saved[2 * n :], ctx.bits)
    return list(grads), None, None, None


torch.library.register_autograd(
    "gdfq::fake_quantize_minmax_list", _backward, setup_context=_setup_context
)
torch.library.register_autograd("gdfq::fake_quantize_minmax_list_backward", _no_second_derivative)


# ---- reference ----


def fake_quantize_minmax_list_reference(
    ws: list[Tensor], bits: list[int], ste: str = "identity", zero_in_range: bool = False
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Compute :func:`fake_quantize_minmax_list` in plain PyTorch: results and bounds."""
    results = [
        fake_quantize_minmax_reference(w, b, 0, ste, zero_in_range)
        for w, b in zip(ws, bits, strict=True)
    ]
    ys, los, his = ([result[i] for result in results] for i in range(3))
    return ys, los, his


def fake_quantize_minmax_list_backward_reference(
    grads: list[Tensor], ws: list[Tensor], los: list[Tensor], his: list[Tensor], bits: list[int]
) -> list[Tensor]:
    """Compute the gradients of the clip estimator in plain PyTorch."""
    return [
        fake_quantize_backward_reference(*arguments, 0)
        for arguments in zip(grads, ws, los, his, bits, strict=True)
    ]


register_reference("fake_quantize_minmax_list", fake_quantize_minmax_list_reference)
register_reference(
    "fake_quantize_minmax_list_backward", fake_quantize_minmax_list_backward_reference
)
