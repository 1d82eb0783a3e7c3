"""The student's loss.

With teacher's logits ``t``, student's ``s`` and labels ``y``::

    kd_ce      c * CE(s, y) + alpha * T**2 * KL(softmax(t / T) || softmax(s / T))
    logit_mse  c * CE(s, y) + mean((t - s)**2)
    kl_only    alpha * T**2 * KL(softmax(t / T) || softmax(s / T))

where ``c`` is ``ce_weight``. With ``ce_gate = g`` a sample's cross-entropy counts only where the
teacher is sure of the label, ``1 - p_t(y) <= g``; for mixed labels the distance is
``1 - sum_k min(y_k, p_t(k))``, which is the same for a single class. The mean stays that of the
whole batch.

Sources: ``kd_ce``, Xu et al., ECCV 2020; ``logit_mse``, the authors' later KMDFQ; ``kl_only``, Choi
et al. (AIT), CVPR 2022; the gate, SynQ, ICLR 2025. All cost the same: tensors of logits' size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops.kd_ce_loss import kd_ce_loss
from gdfq.settings import NotNegative, Settings
from gdfq.training.labels import as_probabilities
from gdfq.training.parts.part import Loop, Part, StudentLoss
from gdfq.training.settings import Training

if TYPE_CHECKING:
    from typing_extensions import Self


class ObjectiveSettings(Settings):
    """Settings of the student's loss."""

    objective: Literal["kd_ce", "logit_mse", "kl_only"] = Field(
        "kd_ce", description="the student's loss; 'kd_ce' is the paper's"
    )
    ce_weight: NotNegative = Field(
        1.0, description="weight of the student's cross-entropy, in 'kd_ce' and 'logit_mse'"
    )
    ce_gate: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="cross-entropy only where the teacher's probability of the label is at least "
        "1 - ce_gate",
    )

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.objective == "kl_only" and self.ce_weight != 1:
            raise InputError("ce_weight: objective = 'kl_only' has no cross-entropy to weight")
        without = self.without_cross_entropy()
        if self.ce_gate is not None and without:
            raise InputError(f"ce_gate: with {without} there is no cross-entropy to gate")
        return self

    def without_cross_entropy(self) -> str | None:
        """Return what leaves the student's loss without a cross-entropy; None where it has one."""
        if self.objective == "kl_only":
            return "objective = 'kl_only'"
        return None if self.ce_weight else "ce_weight = 0"


class Objective(Part):
    """The student's loss where it is not the paper's."""

    settings: ObjectiveSettings

    @classmethod
    def check_settings(
        cls, settings: ObjectiveSettings, training: Training, learned_ranges: bool
    ) -> None:
        """Raise InputError if no loss is left."""
        without = settings.without_cross_entropy()
        if settings.objective != "logit_mse" and training.alpha == 0 and without:
            raise InputError(f"alpha: must be > 0 with {without}: the student's loss is 0 with 0")

    def setup(self, loop: Loop) -> None:
        """Take the constants of the divergence."""
        self.temperature, self.alpha = loop.training.temperature, loop.training.alpha

    def student_loss(self, loss: StudentLoss) -> StudentLoss:
        """Return the loss of ``(B, K)`` logits, 0-d, differentiable to the student's."""
        return self.loss

    def loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return :func:`student_loss` of a batch."""
        return student_loss(
            self.settings, student_logits, teacher_logits, labels, self.temperature, self.alpha
        )


def student_loss(
    settings: ObjectiveSettings,
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """Return the loss of ``(B, K)`` logits, 0-d, differentiable to the student's.

    Args:
        settings: the objective.
        student_logits, teacher_logits: ``(B, K)``.
        labels: ``(B,)`` classes, or ``(B, K)`` probabilities.
        temperature, alpha: see :func:`gdfq.losses.kd_ce_loss`; ``"logit_mse"`` has neither.
    """
    weight = 0.0 if settings.objective == "kl_only" else settings.ce_weight
    if weight != 1 or settings.ce_gate is not None:
        labels = _weighted(labels, teacher_logits, weight, settings.ce_gate)
    if settings.objective != "logit_mse":
        return kd_ce_loss(student_logits, teacher_logits, labels, temperature, alpha)
    student, teacher = student_logits.float(), teacher_logits.float()
    loss = F.mse_loss(student, teacher)
    return loss if weight == 0 else loss + F.cross_entropy(student, labels)


def _weighted(labels: Tensor, teacher_logits: Tensor, weight: float, gate: float | None) -> Tensor:
    """Return ``(B, K)`` labels whose cross-entropy, linear in them, is the weighted, gated one."""
    probabilities = teacher_logits.float().softmax(1)
    target = as_probabilities(labels, probabilities.shape[1])
    if gate is None:
        return weight * target
    sure = 1 - target.minimum(probabilities).sum(1, keepdim=True) <= gate
    return weight * target * sure
