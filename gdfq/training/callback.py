"""Callbacks of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


class TrainerCallback:
    """Callbacks of :meth:`GDFQTrainer.train`; override what is needed."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """React to a step, given its losses."""

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """React once to the calibration of the ranges, just before fine-tuning."""

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """React to an epoch, given its mean losses."""

    def between_steps(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """React to a step once everything else is done: the moment to save the state."""

    def should_stop(self) -> bool:
        """Return whether to stop after this step; True on any rank stops all of them."""
        return False
