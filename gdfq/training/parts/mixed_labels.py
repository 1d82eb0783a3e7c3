"""Labels that are mixes of classes.

With probability ``q`` an image's class ``y`` is replaced by a convex mix of ``n`` different
classes, drawn uniformly, whose shares are the softmax of ``n`` standard normal numbers. The
generator takes the mix of the classes' embeddings, and the mix is the label in both losses'
cross-entropy. Images of mixes lie near the teacher's decision boundaries, of which single classes
say little.

Source: Choi et al., "Qimera", NeurIPS 2021: q = 0.4 (0.7 for ResNet-50) and n = 2 for CIFAR-10, 10
for CIFAR-100, 100 to 500 for ImageNet. Costs tensors of logits' size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdfq.training.parts.objective import as_probabilities


def mixed_labels(
    labels: Tensor, classes: int, probability: float, mixed: int, random: torch.Generator
) -> Tensor:
    """``(B, classes)`` probabilities: rows of ``labels``, each a mix with ``probability``.

    Args:
        labels: ``(B,)`` classes.
        classes: how many there are.
        probability: that a row becomes a mix.
        mixed: classes in a mix, at most ``classes``.
        random: where all random numbers are drawn from.
    """
    batch, device = len(labels), labels.device
    chosen = (
        torch.rand((batch, classes), generator=random, device=device, dtype=torch.float32)
        .topk(mixed, 1)
        .indices
    )
    shares = torch.randn(
        (batch, mixed), generator=random, device=device, dtype=torch.float32
    ).softmax(1)
    is_mix = (
        torch.rand((batch, 1), generator=random, device=device, dtype=torch.float32) < probability
    )
    single = as_probabilities(labels, classes)
    return torch.where(is_mix, torch.zeros_like(single).scatter(1, chosen, shares), single)
