"""Fake quantization over a moving range, which the batch itself moves first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdfq.ops._backend import register_reference
from gdfq.ops._checks import Ste, check_bits, check_float, check_moving_range, check_ste
from gdfq.ops.fake_quantize import fake_quantize_reference

_op = torch.ops.gdfq.observe_fake_quantize
_backward_op = torch.ops.gdfq.fake_quantize_backward


def observe_fake_quantize(
    x: Tensor,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float = 0.9,
    ste: Ste = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Move a range by the minimum and maximum of ``x`` and quantize ``x`` over the moved range.

    Args:
        x: any shape; float32, float16, bfloat16 or float64. An empty batch moves nothing.
        average_lo, average_hi: the moving averages, 0-d float32; updated in place.
        lo, hi: the range, 0-d float32; overwritten.
        num_batches_tracked: number of batches, 0-d int64; updated in place.
        bits: 2 to 8.
        momentum: weight of the past in the moving average, in [0, 1).
        ste: ``"identity"`` or ``"clip"``, see :func:`gdfq.functional.fake_quantize`. The range is
            treated as a constant: no gradient flows through the minimum and maximum.
        zero_in_range: ``lo`` and ``hi``, not their averages, are moved to contain 0, see
            :func:`gdfq.functional.fake_quantize`.

    Returns:
        ``fake_quantize(x, lo, hi, bits)`` with the new range, computed on ``x``'s device without
        waiting for it::

            t          <- t + 1
            average_lo <- momentum * average_lo + (1 - momentum) * min(x)
            lo          = average_lo / (1 - momentum**t)

        and the same for ``hi`` with the maximum. The average starts at 0; the correction for that
        is applied to a copy, never to the average. A NaN in ``x`` makes the range NaN for good.

    Raises:
        InputError: ``bits``, ``momentum``, ``ste``, a dtype, a device or the shape of a buffer is
            not one of the above, or a buffer shares memory with another or with ``x``.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020, section 3.3;
    the correction is that of Kingma and Ba, "Adam", ICLR 2015.
    """
    check_float(x, "x")
    bits = check_bits(bits)
    check_ste(ste)
    buffers = (average_lo, average_hi, lo, hi, num_batches_tracked)
    check_moving_range(x, *buffers, momentum, read={"x": x})
    return _op(x, *buffers, bits, momentum, ste, zero_in_range)


@torch.library.register_fake("gdfq::observe_fake_quantize")
def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


class _ObserveFakeQuantize(torch.autograd.Function):
    """The gradient of an operator that updates arguments, which register_autograd refuses."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, x: Tensor, *rest: Any) -> Tensor:
        *buffers, ctx.bits, _, ctx.ste, _ = rest
        with torch._C._AutoDispatchBelowAutograd():
            y = _op.default.redispatch(keyset & torch._C._after_autograd_keyset, x, *rest)
            if ctx.ste == "clip":
                # Copies: the next batch moves the range.
                ctx.save_for_backward(x, buffers[2].clone(), buffers[3].clone())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.ste == "clip":
            grad = _backward_op(grad, *ctx.saved_tensors, ctx.bits, None)
        return (None, grad, *(None,) * 9)


def register_gradient(operator: str, function: Any, buffers: slice) -> None:
    """Make ``function`` the gradient of an operator that updates its arguments ``buffers``."""
    op = getattr(torch.ops.gdfq, operator).default

    def autograd(keyset: Any, *arguments: Any) -> Tensor:
        # Autograd then notices if a backward pass still needs the buffers' old values.
        torch.autograd.graph.increment_version(
            [t for t in arguments[buffers] if not t.is_inference()]
        )
        if torch.is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for t in arguments
        ):
            return function.apply(keyset, *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    _library.impl(operator, autograd, "Autograd", with_keyset=True)


_library = torch.library.Library("gdfq", "IMPL")
register_gradient("observe_fake_quantize", _ObserveFakeQuantize, slice(1, 6))


# ---- reference ----


def move_range(
    x: Tensor,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    momentum: float,
    zero_in_range: bool,
) -> None:
    """Move a range by the minimum and maximum of ``x``, which is not empty."""
    num_batches_tracked += 1
    correction = 1 - momentum ** num_batches_tracked.double()
    for average, bound, batch in zip(
        (average_lo, average_hi), (lo, hi), torch.aminmax(x.detach()), strict=True
    ):
        average.mul_(momentum).add_((1 - momentum) * batch.float())
        bound.copy_(average / correction)
    if zero_in_range:
        lo.clamp_(max=0)
        hi.clamp_(min=0)


def observe_fake_quantize_reference(
    x: Tensor,
    average_lo: Tensor,
    average_hi: Tensor,
    lo: Tensor,
    hi: Tensor,
    num_batches_tracked: Tensor,
    bits: int,
    momentum: float = 0.9,
    ste: str = "identity",
    zero_in_range: bool = False,
) -> Tensor:
    """Compute :func:`observe_fake_quantize` in plain PyTorch."""
    if x.numel():
        buffers = (average_lo, average_hi, lo, hi, num_batches_tracked)
        move_range(x, *buffers, momentum, zero_in_range)
    return fake_quantize_reference(x, lo, hi, bits)


register_reference("observe_fake_quantize", observe_fake_quantize_reference)
