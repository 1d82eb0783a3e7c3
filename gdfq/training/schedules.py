"""Learning-rate schedules, as factors of the initial rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

Schedule = Literal["step", "cosine", "constant"]


def learning_rate_factor(
    schedule: Schedule, steps: int, steps_per_epoch: int, milestones: Sequence[int] = ()
) -> Callable[[int], float]:
    """The factor at each step of a run of ``steps`` steps.

    ``"step"`` divides by 10 at each epoch in ``milestones`` (the paper's), ``"cosine"`` falls
    from 1 to 0 along half a cosine, ``"constant"`` stays at 1.
    """
    if schedule == "step":
        return lambda step: 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in milestones)
    if schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1)))
    return lambda step: 1.0
