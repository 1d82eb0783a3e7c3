"""Interface for progress reporting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdfq.training.callback import TrainerCallback

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


class Progress(TrainerCallback):
    """Interface for progress reporting: callbacks of the trainer and of a run; override any."""

    def on_start(self, trainer: GDFQTrainer) -> None:
        """Report that training begins."""

    def on_status(self, text: str) -> None:
        """Report that something other than a training step begins."""

    def on_warning(self, text: str) -> None:
        """Report a problem that does not end the run."""

    def on_stop(self) -> None:
        """Report that training has ended."""


class LayerProgress(Progress):
    """Interface for progress reporting, of layers that are measured too."""

    def on_layers(self, count: int) -> None:
        """Report that ``count`` layers are about to be measured."""

    def on_layer(self, name: str) -> None:
        """Report that the layer ``name`` is measured."""
