"""A run's losses, learning rates, accuracy and images for TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gdfq.errors import InputError

LOSSES = ("generator", "generator_ce", "bns", "student")


def require_tensorboard() -> None:
    """Raise an InputError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: needs the package tensorboard; pip install 'gdfq[tensorboard]'"
        )


class TensorBoard:
    """Writes event files. Those that a killed run wrote beyond its checkpoint are hidden.

    An epoch is logged at its last step, which a checkpoint of that step has behind it; what is
    measured later, before the next step is done, is logged at the next step.

    Args:
        folder: of the event files.
        steps_done: steps that what is already in ``folder`` counts for.
        on_warning: called with a line when the files cannot be written; no more is, then.
    """

    def __init__(self, folder: Path, steps_done: int, on_warning: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.folder = folder
        self.on_warning = on_warning
        self.writer: Any = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch's record, as ``metrics.jsonl`` has it."""

        def log() -> None:
            step = record["step"]
            for name in LOSSES:
                if name in record:
                    self.writer.add_scalar(f"loss/{name}", record[name], step)
            for name in ("generator", "student"):
                self.writer.add_scalar(f"learning_rate/{name}", record[f"{name}_lr"], step)

        self._try(log)

    def images(self, picture: Image.Image, step: int) -> None:
        """Log a picture of generated images."""
        self._try(
            lambda: self.writer.add_image("generated", np.asarray(picture), step, dataformats="HWC")
        )

    def accuracy(self, name: str, value: float, steps_done: int) -> None:
        """Log top-1 in percent."""
        self._try(lambda: self.writer.add_scalar(f"top-1/{name}", value, steps_done + 1))

    def close(self) -> None:
        """Write what is not in the files yet."""
        if self.writer is not None:
            self._try(self.writer.close)

    def _try(self, action: Callable[[], object]) -> None:
        if self.writer is None:
            return
        try:
            action()
            self.writer.flush()
        except OSError as error:
            self.writer = None
            self.on_warning(
                f"cannot write to {self.folder}: {error.strerror}; no more is logged there"
            )
