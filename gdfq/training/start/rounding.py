"""Rounding to the other neighbour where that cancels a kernel's, then an output's error.

The rounding errors of a kernel (the weights between one input channel and one output) add up to
some number of steps; as many as that, rounded, of the weights that were rounded furthest in its
direction are rounded the other way. Then the same for the sum over an output's kernels, of which
each gives one weight at most. What is left is half a step a kernel, and half a step an output.

Source: Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation",
ICLR 2022, sections 3.3 and 3.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gdfq.nn.weight import QuantizedWeight

BEYOND = 0.05  # of a step: how far beyond the tie a weight is moved


@torch.no_grad()
def flip_rounding(student: nn.Module) -> None:
    """Move weights of ``student`` just beyond the tie where they are to be rounded otherwise.

    So nothing but the weight changes, by a step at most. An output's least and greatest weights
    stay.
    """
    for layer in student.modules():
        if isinstance(layer, QuantizedWeight):
            layer.weight.copy_(flipped(layer))


def flipped(layer: QuantizedWeight) -> Tensor:
    """Return the weight of ``layer``, some values moved beyond the tie next to them."""
    weight = layer.weight.detach()
    outputs = weight.shape[0]
    codes, inv_scale, zero = (t.double() for t in layer.weight_codes())
    # (outputs, kernels, elements)
    kernels = weight.shape[1] if weight.dim() > 1 else 1
    codes = codes.reshape(outputs, kernels, -1)
    values = weight.double().reshape(outputs, kernels, -1)
    inv_scale, zero = inv_scale.view(-1, 1, 1), zero.view(-1, 1, 1)
    exact = inv_scale * values - zero
    error = codes - exact
    half = 2 ** (layer.weight_bits - 1)
    lo, hi = (bound.double().view(-1, 1, 1) for bound in layer.weight_minmax())
    movable = (error.abs() <= 0.5) & (values != lo) & (values != hi)
    move = torch.zeros_like(error)  # of the code, -1, 0 or 1

    def beyond_tie(move: Tensor) -> Tensor:
        """Return the value just beyond the tie between a code and its neighbour in ``move``."""
        return (codes + (0.5 + BEYOND) * move + zero) / inv_scale

    def candidates(direction: Tensor) -> Tensor:
        """Return how far each weight was rounded in ``direction``, 0 where it has to stay."""
        room = torch.where(direction > 0, codes > -half, codes < half - 1)
        there = beyond_tie(-direction)
        room &= (there > lo) & (there < hi)  # so that the range stays
        return (error * direction).clamp(min=0) * (movable & room & (move == 0))

    total = error.sum(2, keepdim=True)
    direction = total.sign()
    far = candidates(direction)
    rank = far.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    move -= direction * ((rank < total.abs().round()) & (far > 0))

    left = (error + move).sum(2, keepdim=True)
    total = left.sum(1, keepdim=True)
    direction = total.sign()
    far = candidates(direction)
    furthest, place = far.max(2, keepdim=True)
    helps = (left * direction).clamp(min=0) * (furthest > 0)
    rank = helps.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = (rank < total.abs().round()) & (helps > 0)
    move.scatter_add_(2, place, torch.where(chosen, -direction, 0.0).to(move.dtype))

    values = torch.where(move != 0, beyond_tie(move), values)
    return values.reshape(weight.shape).to(weight.dtype)
