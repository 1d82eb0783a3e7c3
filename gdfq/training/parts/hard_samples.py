"""Samples that are hard: for the teacher, by the generator's loss; for the student, by a step.

``hard_sample_gamma = g`` weights each image's cross-entropy in the generator's loss::

    mean over the batch of (1 - p(y))**g * CE(t, y)

with the teacher's probability ``p(y)`` of the label (for a mixed label ``sum_k min(y_k, p(k))``),
so that the generator does not gain by images that the teacher is sure of already. It costs tensors
of logits' size.

``hard_sample_step = e`` trains the student on::

    x + e * sign(d CE(q(x), y) / dx)

the images moved towards what the student gets wrong, beside the teacher's logits of ``x``. It costs
one more forward and backward pass of the student.

Source: HAST, "Hard sample matters a lot in zero-shot quantization", CVPR 2023, with e = 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gdfq.settings import NotNegative, Settings
from gdfq.training.labels import as_probabilities
from gdfq.training.parts.part import Batch, CrossEntropy, Part

SMALLEST = 1e-6  # of 1 - p, where its powers below 1 have no finite slope


class HardSampleSettings(Settings):
    """Settings of hard samples."""

    hard_sample_gamma: NotNegative = Field(
        0.0, description="exponent of (1 - p) that weights the generator's cross-entropy"
    )
    hard_sample_step: NotNegative = Field(
        0.0,
        description="how far the student's images are moved towards what it gets wrong; twice the "
        "student's cost",
    )


class HardSamples(Part):
    """Weights in the generator's cross-entropy, and a step on the student's images."""

    settings: HardSampleSettings

    def cross_entropy(self, loss: CrossEntropy) -> CrossEntropy:
        """Return the weighted cross-entropy."""
        gamma = self.settings.hard_sample_gamma
        return partial(teacher_cross_entropy, gamma=gamma) if gamma else loss

    def student_batch(self, student: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
        """Return the batch with harder images."""
        step = self.settings.hard_sample_step
        if not step:
            return batch
        images, labels, teacher_logits = batch
        return harder_images(student, images, labels, step), labels, teacher_logits


def teacher_cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the generator's cross-entropy, 0-d: the formula of the module.

    Args:
        logits: ``(B, K)`` of the teacher.
        labels: ``(B,)`` classes, or ``(B, K)`` probabilities.
        gamma: the exponent.
    """
    logits = logits.float()
    target = as_probabilities(labels, logits.shape[1])
    sure = target.minimum(logits.softmax(1)).sum(1)
    hardness = (1 - sure).clamp(min=SMALLEST) ** gamma
    return (hardness * F.cross_entropy(logits, labels, reduction="none")).mean()


def harder_images(
    student: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, step: float
) -> Tensor:
    """Return ``images``, pixels moved by ``step`` so that ``student`` is less sure of labels."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(student(images).float(), labels)
    (gradient,) = torch.autograd.grad(loss, images)
    return images.detach() + step * gradient.sign()
