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

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.training.parts.objective import as_probabilities

SMALLEST = 1e-6  # of 1 - p, where its powers below 1 have no finite slope


def teacher_cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """The generator's cross-entropy, 0-d; ``gamma`` = 0 is the plain one.

    Args:
        logits: ``(B, K)`` of the teacher.
        labels: ``(B,)`` classes, or ``(B, K)`` probabilities.
        gamma: the exponent.
    """
    if gamma == 0:
        return F.cross_entropy(logits, labels)
    logits = logits.float()
    target = as_probabilities(labels, logits.shape[1])
    sure = target.minimum(logits.softmax(1)).sum(1)
    hardness = (1 - sure).clamp(min=SMALLEST) ** gamma
    return (hardness * F.cross_entropy(logits, labels, reduction="none")).mean()


def harder_images(
    student: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, step: float
) -> Tensor:
    """``images`` with each pixel moved by ``step``, so that ``student`` is less sure of labels."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(student(images).float(), labels)
    (gradient,) = torch.autograd.grad(loss, images)
    return images.detach() + step * gradient.sign()
