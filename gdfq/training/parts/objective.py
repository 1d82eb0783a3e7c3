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

import torch.nn.functional as F
from torch import Tensor

from gdfq.ops.kd_ce_loss import kd_ce_loss
from gdfq.training.labels import as_probabilities
from gdfq.training.parts.part import Loop, Part, StudentLoss
from gdfq.training.parts.settings import Parts


class Objective(Part):
    """The student's loss where it is not the paper's."""

    fields = ("objective", "ce_weight", "ce_gate")

    def check(self, loop: Loop) -> None:
        """Raise InputError if no loss is left."""
        self.settings.check_alpha(loop.training.alpha)

    def setup(self, loop: Loop) -> None:
        """Take the constants of the divergence."""
        self.temperature, self.alpha = loop.training.temperature, loop.training.alpha

    def student_loss(self, loss: StudentLoss) -> StudentLoss:
        """Return the loss that the settings ask for."""
        return self.loss

    def loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return :func:`student_loss` of a batch."""
        return student_loss(
            self.settings, student_logits, teacher_logits, labels, self.temperature, self.alpha
        )


def student_loss(
    parts: Parts,
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """The loss of ``(B, K)`` logits; 0-d, differentiable to the student's.

    Args:
        parts: whose objective it is.
        student_logits, teacher_logits: ``(B, K)``.
        labels: ``(B,)`` classes, or ``(B, K)`` probabilities.
        temperature, alpha: see :func:`gdfq.losses.kd_ce_loss`; ``"logit_mse"`` has neither.
    """
    weight = 0.0 if parts.objective == "kl_only" else parts.ce_weight
    if weight != 1 or parts.ce_gate is not None:
        labels = _weighted(labels, teacher_logits, weight, parts.ce_gate)
    if parts.objective != "logit_mse":
        return kd_ce_loss(student_logits, teacher_logits, labels, temperature, alpha)
    student, teacher = student_logits.float(), teacher_logits.float()
    loss = F.mse_loss(student, teacher)
    return loss if weight == 0 else loss + F.cross_entropy(student, labels)


def _weighted(labels: Tensor, teacher_logits: Tensor, weight: float, gate: float | None) -> Tensor:
    """``(B, K)`` labels whose cross-entropy is the weighted, gated one: it is linear in them."""
    probabilities = teacher_logits.float().softmax(1)
    target = as_probabilities(labels, probabilities.shape[1])
    if gate is None:
        return weight * target
    sure = 1 - target.minimum(probabilities).sum(1, keepdim=True) <= gate
    return weight * target * sure
