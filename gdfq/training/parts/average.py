"""An exponential average of the student's parameters, which is measured and saved in their place.

After each update ``t = 1, 2, ...`` with decay ``d``::

    average <- average + (1 - d) / (1 - d**t) * (parameters - average)

so that the weights of all updates so far add up to 1: the first update's parameters are the first
average, and no trace of the parameters before it is left. Buffers (statistics, ranges) are the
student's own.

Source: Polyak and Juditsky, SIAM J. Control Optim. 1992, in its exponential form. Costs three
passes over the parameters a step, and their memory once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.settings import Settings
from gdfq.training.parts.part import Loop, Part


class AverageSettings(Settings):
    """Settings of the student's average."""

    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the average of the student's parameters; 0 is none"
    )


class Average(Part):
    """The average of the student's parameters, which are read, never changed."""

    settings: AverageSettings

    def setup(self, loop: Loop) -> None:
        """Make room for the average of the student's parameters."""
        self.decay = self.settings.ema_decay
        self.student = loop.student
        self.values = {name: p.detach().clone() for name, p in loop.student.named_parameters()}
        first = next(iter(self.values.values()))
        self.updates = torch.zeros((), dtype=torch.float64, device=first.device)
        self.saved: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_update(self) -> None:
        """Take in the student's parameters as they are now."""
        self.updates.add_(1)
        rate = ((1 - self.decay) / (1 - torch.pow(self.decay, self.updates))).float()
        averages = list(self.values.values())
        moves = torch._foreach_sub([p.detach() for p in self.student.parameters()], averages)
        torch._foreach_mul_(moves, rate)
        torch._foreach_add_(averages, moves)

    @torch.no_grad()
    def final_student(self, student: nn.Module) -> nn.Module:
        """Return a copy with the average as its parameters; before any update, the student."""
        if not float(self.updates):
            return student
        averaged = copy.deepcopy(student)
        for name, parameter in averaged.named_parameters():
            parameter.copy_(self.values[name])
        return averaged

    @classmethod
    def final_state(cls, student: dict[str, Tensor], state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return ``student`` with the average as its parameters, as :meth:`final_student` does."""
        return {**student, **state["values"]} if float(state["updates"]) else student

    def snapshot(self) -> None:
        """Remember the average, for :meth:`restore`."""
        self.saved = {name: value.clone() for name, value in self._tensors().items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the average of the last snapshot."""
        for name, value in self._tensors().items():
            value.copy_(self.saved[name])

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.values, "/updates": self.updates}

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return the average, its number of updates, and its last snapshot."""
        return {"values": dict(self.values), "updates": self.updates, "sound": dict(self.saved)}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise InputError if ``state`` is another student's average."""
        for name, value in self.values.items():
            if name not in state["values"] or state["values"][name].shape != value.shape:
                raise InputError(f"state: the average of {name!r} is missing or of another shape")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load ``state``; tensors are copied, in place."""
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.updates.copy_(state["updates"])
        device = self.updates.device
        self.saved = {n: value.to(device, copy=True) for n, value in state["sound"].items()}
