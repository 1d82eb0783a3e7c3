"""Interface for progress reporting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


class Progress(Protocol):
    """Interface for progress reporting."""

    def on_start(self, trainer: GDFQTrainer) -> None:
        """Training begins."""

    def on_status(self, text: str) -> None:
        """Something else than a training step begins."""

    def on_warning(self, text: str) -> None:
        """Something went wrong that does not end the run."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """A training step is done."""

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """An epoch is done."""

    def on_stop(self) -> None:
        """Training ended."""
