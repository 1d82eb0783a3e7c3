"""Gradients of the student that are shortened where they are too long.

All of the student's gradients ``g`` are multiplied by ``min(1, max_grad_norm / (||g|| + 1e-6))``,
where ``||g||`` is the Euclidean norm of all of them together, those of learned ranges too. A
learning rate that is too high for a few steps then costs accuracy, and not the student.

Source: Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013,
algorithm 1. Costs two passes over the gradients a step.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from gdfq.settings import Positive, Settings
from gdfq.training.parts.part import Part


class ClippingSettings(Settings):
    """Settings of the gradients' norm."""

    max_grad_norm: Positive | None = Field(
        None, description="norm that the student's gradients are shortened to where they exceed it"
    )


class Clipping(Part):
    """The limit on the norm of the student's gradients."""

    settings: ClippingSettings

    def gradients(self, parameters: list[Tensor], rate: Tensor) -> None:
        """Shorten the gradients of ``parameters``, in place."""
        assert self.settings.max_grad_norm is not None
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm, foreach=True)
