"""Allocate bits to layers: the smallest sum of sensitivities under a budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gdfq.errors import InputError


@dataclass(frozen=True)
class Layer:
    """A layer's number of weights, and how much worse the network gets at each width."""

    name: str
    parameters: int
    sensitivity: Mapping[int, float]


def allocate(layers: Sequence[Layer], budget: float) -> dict[str, int]:
    """Return the bits by layer of the smallest summed sensitivity at ``budget`` bits on average.

    The average is over weights: ``sum(parameters * bits) <= budget * sum(parameters)``. The
    minimum is exact: a dynamic program over the layers keeps every choice so far that no other
    choice beats in both bits and sensitivity, less those whose lower bound, the rest's convex
    (Lagrangian) relaxation, is above a solution at hand.

    Args:
        layers: each with at least one width; widths may differ.
        budget: bits, >= the average of the narrowest widths.

    Raises:
        InputError: ``budget`` is below the narrowest widths' average or not a number.

    Source: the multiple-choice knapsack problem; Sinha and Zoltners, Operations Research 27, 1979.
    """
    total = sum(layer.parameters for layer in layers)
    narrowest = sum(layer.parameters * min(layer.sensitivity) for layer in layers)
    if not budget * total >= narrowest:
        raise InputError(
            f"budget: must be >= {narrowest / total:g}, the average of the narrowest widths, "
            f"got {budget!r}"
        )
    # The tolerance keeps a product that is a whole number of bits from being rounded down.
    capacity = int(np.floor(budget * total * (1 + 1e-12)))
    options = [_undominated(layer) for layer in layers]
    relaxations = [_Relaxation(options[i:]) for i in range(len(options) + 1)]
    best = relaxations[0].rounded(capacity)

    # The choices so far, in order of bits: bits, sensitivity, and the option each layer took.
    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for layer_options, rest in zip(options, relaxations[1:], strict=True):
        costs = np.array([c for c, _, _ in layer_options])
        losses = np.array([s for _, s, _ in layer_options])
        new_cost = (cost[:, None] + costs).ravel()
        new_loss = (loss[:, None] + losses).ravel()
        fits = new_cost + rest.least <= capacity
        # As much above the best as sums of floats in another order can be.
        hopeful = fits & (new_loss + rest.bound(capacity - new_cost) <= best + 1e-9 * abs(best))
        candidates = np.flatnonzero(hopeful)
        order = candidates[np.lexsort((new_loss[candidates], new_cost[candidates]))]
        lowest = np.minimum.accumulate(new_loss[order])
        kept = order[np.r_[True, new_loss[order][1:] < lowest[:-1]]]
        steps.append((kept // len(costs), kept % len(costs)))
        cost, loss = new_cost[kept], new_loss[kept]

    choice = len(loss) - 1  # the most bits, and so the least sensitivity
    bits: dict[str, int] = {}
    for layer, layer_options, (before, taken) in reversed(
        list(zip(layers, options, steps, strict=True))
    ):
        bits[layer.name] = layer_options[taken[choice]][2]
        choice = before[choice]
    return {layer.name: bits[layer.name] for layer in layers}


def _undominated(layer: Layer) -> list[tuple[int, float, int]]:
    """``(bits of all weights, sensitivity, width)``, more bits always less sensitive."""
    kept: list[tuple[int, float, int]] = []
    for width, sensitivity in sorted(layer.sensitivity.items()):
        if not kept or sensitivity < kept[-1][1]:
            kept.append((layer.parameters * width, float(sensitivity), width))
    return kept


class _Relaxation:
    """Layers of which fractions of options can be taken: the lower bound of what they can reach."""

    def __init__(self, options: Sequence[list[tuple[int, float, int]]]) -> None:
        self.least = sum(layer[0][0] for layer in options)
        self.start = sum(layer[0][1] for layer in options)
        steps = [(*step, i) for i, layer in enumerate(options) for step in _hull_steps(layer)]
        self.steps = sorted(steps, key=lambda step: step[1] / step[0])
        self.costs = np.cumsum([0, *(cost for cost, _, _ in self.steps)])
        self.losses = self.start + np.cumsum([0.0, *(change for _, change, _ in self.steps)])

    def bound(self, remaining: np.ndarray) -> np.ndarray:
        """Return the least sensitivity within ``remaining`` bits, each at least ``self.least``."""
        return np.interp(remaining - self.least, self.costs, self.losses)

    def rounded(self, capacity: int) -> float:
        """Return the sensitivity of a choice that fits, of whole steps only."""
        loss, room, full = self.start, capacity - self.least, set()
        for cost, change, layer in self.steps:
            if layer not in full and cost <= room:
                loss, room = loss + change, room - cost
            else:
                full.add(layer)
        return loss


def _hull_steps(layer: list[tuple[int, float, int]]) -> list[tuple[int, float]]:
    """Return a layer's lower convex hull as steps ``(bits, change of sensitivity)``."""
    hull: list[tuple[int, float, int]] = []
    for point in layer:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-1][0]) >= (
            point[1] - hull[-1][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append(point)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(hull)]
