"""MSE-optimal weight ranges, per output.

Source: Banner et al., "Post Training 4-bit Quantization of Convolutional Networks", NeurIPS 2019,
there by a formula for a distribution, here by search over the weights themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gdfq.nn.weight import QuantizedWeight
from gdfq.ops.fake_quantize import fake_quantize

CANDIDATES = 40
ROUNDS = 2


@torch.no_grad()
def set_weight_ranges(student: nn.Module, how: str) -> None:
    """Set the ranges that layers of ``student`` keep, for the weights that they have now.

    ``how``: ``"minmax"`` or ``"mse"``. Layers that keep none take minima and maxima anyway.
    """
    for layer in student.modules():
        if isinstance(layer, QuantizedWeight) and layer.weight_lo is not None:
            lo, hi = layer.weight_minmax() if how == "minmax" else mse_bounds(layer)
            assert layer.weight_hi is not None
            layer.weight_lo.copy_(lo)
            layer.weight_hi.copy_(hi)


def mse_bounds(layer: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Return the MSE-optimal bounds for each output's weights, ``(outputs,)`` each.

    Both bounds move in together from the minimum and maximum, then the upper and the lower one
    alternately, each by the best of :data:`CANDIDATES` shares of the width.
    """
    lowest, highest = layer.weight_minmax()
    rows = layer.weight.detach().float().flatten(1)
    width = highest - lowest
    below, above = torch.zeros_like(width), torch.zeros_like(width)  # shares of the width

    def errors(below: Tensor, above: Tensor) -> Tensor:
        lo, hi = lowest + width * below, highest - width * above
        values = fake_quantize(rows, lo, hi, layer.weight_bits, 0, "identity", layer.zero_in_range)
        return (values - rows).double().square().sum(1)

    best = errors(below, above)

    def move(lower: bool, upper: bool) -> None:
        nonlocal below, above, best
        start_below, start_above = below, above
        for i in range(1, CANDIDATES):
            share = i / CANDIDATES * (0.5 if lower and upper else 1)
            other_below = torch.full_like(width, share) if lower else start_below
            other_above = torch.full_like(width, share) if upper else start_above
            error = errors(other_below, other_above)
            better = (error < best) & (other_below + other_above < 1 - 1e-3)
            below = torch.where(better, other_below, below)
            above = torch.where(better, other_above, above)
            best = torch.where(better, error, best)

    move(True, True)
    for _ in range(ROUNDS):
        move(False, True)
        move(True, False)
    return lowest + width * below, highest - width * above
