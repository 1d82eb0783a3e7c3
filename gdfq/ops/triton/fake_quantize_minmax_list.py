"""Fake quantization of a network's weights, in Triton. Never run on a GPU.

One launch per tensor: a Triton kernel takes no list of pointers.
"""

from __future__ import annotations

from torch import Tensor

from gdfq.ops.triton.fake_quantize import fake_quantize_backward
from gdfq.ops.triton.fake_quantize_minmax import fake_quantize_minmax


def fake_quantize_minmax_list(
    ws: list[Tensor], bits: list[int], ste: str
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The launches of :func:`fake_quantize_minmax` for each tensor."""
    results = [fake_quantize_minmax(w, b, 0, ste) for w, b in zip(ws, bits, strict=True)]
    ys, los, his = ([result[i] for result in results] for i in range(3))
    return ys, los, his


def fake_quantize_minmax_list_backward(
    grads: list[Tensor], ws: list[Tensor], los: list[Tensor], his: list[Tensor], bits: list[int]
) -> list[Tensor]:
    """The launch of :func:`fake_quantize_backward` for each tensor."""
    return [
        fake_quantize_backward(*arguments, 0)
        for arguments in zip(grads, ws, los, his, bits, strict=True)
    ]
