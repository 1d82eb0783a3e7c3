"""What a training calls while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


class TrainerCallback:
    """What :meth:`GDFQTrainer.train` calls while it runs; override what is needed."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """After every step, with that step's losses."""

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """Once, when the ranges are set and fine-tuning is about to start."""

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """After every epoch, with the epoch's mean losses."""

    def between_steps(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """After every step, when all else about it is done: the moment to save the state."""

    def should_stop(self) -> bool:
        """Asked last after every step; True, on any rank, ends the training there on all."""
        return False
