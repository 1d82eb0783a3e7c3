"""Labels as classes and as probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def as_probabilities(labels: Tensor, classes: int) -> Tensor:
    """Return ``labels``, ``(B,)`` classes or ``(B, K)`` probabilities, as the latter in float32."""
    if labels.dim() == 2:
        return labels.float()
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()
