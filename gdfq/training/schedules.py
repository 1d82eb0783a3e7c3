"""Learning rates that follow their schedules on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["step", "cosine", "constant"]


def learning_rate_factor(
    schedule: Schedule, steps: int, steps_per_epoch: int, milestones: Sequence[int] = ()
) -> Callable[[Tensor], Tensor]:
    """Return the factor of the initial rate as a function of the step.

    ``"step"`` divides by 10 at each epoch in ``milestones`` (the paper's), ``"cosine"`` falls
    from 1 to 0 along half a cosine over ``steps``, ``"constant"`` stays at 1. The function takes a
    0-d int64 tensor and returns a 0-d float64 one.
    """
    divisions = [epoch * steps_per_epoch for epoch in milestones]

    def factor(step: Tensor) -> Tensor:
        if schedule == "step":
            passed = torch.zeros_like(step, dtype=torch.float64)
            for at in divisions:
                passed = passed + (step >= at)
            return torch.pow(0.1, passed)
        if schedule == "cosine":
            done = (step.double() / max(steps, 1)).clamp(max=1)
            return 0.5 * (1 + torch.cos(math.pi * done))
        return torch.ones_like(step, dtype=torch.float64)

    return factor


class LearningRate:
    """A learning rate as a tensor: a step captured in a CUDA graph reads and moves it.

    Args:
        initial: the rate that the schedule's factor is applied to.
        factor: of :func:`learning_rate_factor`.
        device: where the rate is kept.

    Attributes:
        value: the rate of the next step, 0-d float32; an optimizer's ``lr``.
    """

    def __init__(
        self, initial: float, factor: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self.factor = factor
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.value = torch.zeros((), dtype=torch.float32, device=device)
        self._values = [(initial, self.value)]
        self._set()

    def follower(self, initial: float) -> Tensor:
        """Return another rate's ``value``, which follows this one's schedule from ``initial``."""
        value = torch.zeros_like(self.value)
        self._values.append((initial, value))
        self._set()
        return value

    def advance(self) -> None:
        """Advance by a step."""
        self.steps.add_(1)
        self._set()

    def go_to(self, steps: Tensor) -> None:
        """Go to the step after ``steps`` steps."""
        self.steps.copy_(steps)
        self._set()

    def _set(self) -> None:
        factor = self.factor(self.steps)
        for initial, value in self._values:
            value.copy_(initial * factor)
