"""Gradients of the student that are shortened where they are too long.

All of the student's gradients ``g`` are multiplied by ``min(1, max_grad_norm / (||g|| + 1e-6))``,
where ``||g||`` is the Euclidean norm of all of them together, those of learned ranges too. A
learning rate that is too high for a few steps then costs accuracy, and not the student.

Source: Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013,
algorithm 1. Costs two passes over the gradients a step.
"""

from __future__ import annotations

from torch import Tensor, nn

from gdfq.training.parts.part import Part


class Clipping(Part):
    """The limit on the norm of the student's gradients."""

    fields = ("max_grad_norm",)

    def gradients(self, parameters: list[Tensor], rate: Tensor) -> None:
        """Shorten the gradients of ``parameters``, in place."""
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm, foreach=True)
