"""Interface for progress reporting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


class Progress:
    """Interface for progress reporting: override what is needed."""

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


class LayerProgress(Progress):
    """Interface for progress reporting, of layers that are measured too."""

    def on_layers(self, count: int) -> None:
        """Measuring of ``count`` layers begins."""

    def on_layer(self, name: str) -> None:
        """The layer ``name`` is measured."""
