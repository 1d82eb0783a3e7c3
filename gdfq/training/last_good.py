"""The last good student, which is restored when a loss or a weight becomes non-finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from gdfq.errors import InputError, NonFiniteLossError
from gdfq.training.parts.part import Part


class LastGood:
    """A snapshot of the student, and of what parts keep.

    Args:
        student: as it is trained.
        parts: their hooks ``snapshot`` and ``restore`` are called.

    Attributes:
        state: the student's state, by name; empty before the first snapshot.
    """

    def __init__(self, student: nn.Module, parts: Sequence[Part]) -> None:
        self.student = student
        self.parts = parts
        self.state: dict[str, Tensor] = {}

    def snapshot(self) -> None:
        """Remember the student as it is."""
        state = self.student.state_dict()
        self.state = {name: value.detach().clone() for name, value in state.items()}
        for part in self.parts:
            part.snapshot()

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take ``state`` as the snapshot; the parts load theirs themselves."""
        self.state = {name: value.to(device, copy=True) for name, value in state.items()}

    @torch.no_grad()
    def require_finite(self, losses: Mapping[str, float], step: int) -> None:
        """Restore the snapshot and raise if a loss or a weight of the student is not finite.

        Raises:
            NonFiniteLossError: it names the loss and ``step``, by which it happened.
        """
        for name, loss in losses.items():
            if not math.isfinite(loss):
                self._restore(f"{name} loss became {loss}", name, step)
        # A quantizer with a stored range clips a weight of any size: the losses may stay finite.
        weights = [parameter.isfinite().all() for parameter in self.student.parameters()]
        if not torch.stack(weights).all():
            self._restore("student's weights became infinite or NaN", "student", step)

    def _restore(self, what: str, name: str, step: int) -> NoReturn:
        self.student.load_state_dict(self.state)
        for part in self.parts:
            part.restore()
        key = "student_lr" if name == "student" else "generator_lr"
        raise NonFiniteLossError(
            f"the {what} by step {step}; the student is kept as it was one epoch "
            f"before. Lower {key}, or train longer with a smaller one."
        )


def require_finite_teacher(losses: Mapping[str, Tensor]) -> None:
    """Raise InputError if the first step's losses, before any update, are not finite."""
    for name in ("generator_ce", "bns"):
        value = float(losses[name])
        if not math.isfinite(value):
            raise InputError(
                "teacher: has NaN or infinite values for the first generated images "
                f"({name} is {value}); check its weights and running statistics"
            )
