"""The settings of the schedule and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gdfq.training.memory_format import MemoryFormat
from gdfq.training.precision import Precision
from gdfq.training.schedules import Schedule


@dataclass(frozen=True)
class Training:
    """The settings of the schedule and the losses."""

    batch_size: int
    epochs: int = 400
    steps_per_epoch: int = 200
    warmup_epochs: int = 4
    calibration_batches: int = 16
    student_lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    generator_lr: float = 1e-3
    bns_weight: float = 0.1
    temperature: float = 20.0
    alpha: float = 1.0
    schedule: Schedule = "step"
    milestones: Sequence[int] = (100, 200, 300)
    precision: Precision = "fp32"
    memory_format: MemoryFormat | Literal["auto"] = "auto"
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """First steps, in which only the generator learns."""
        return self.warmup_epochs * self.steps_per_epoch
