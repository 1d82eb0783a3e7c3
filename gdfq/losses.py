"""The losses of the method (Xu et al., ECCV 2020, equations 2 to 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.errors import InputError

__all__ = ["bns_loss", "kd_ce_loss"]


def kd_ce_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    alpha: float = 1.0,
) -> Tensor:
    """Cross-entropy to the labels plus the divergence from the teacher's softened predictions.

    Args:
        student_logits, teacher_logits: ``(B, K)`` floats; the teacher's are constants.
        labels: ``(B,)`` int64 classes, or ``(B, K)`` float probabilities.
        temperature: T > 0.
        alpha: weight of the divergence, >= 0.

    Returns:
        A 0-d tensor, computed in float32::

            CE(s, y) + alpha * T**2 * mean over batch and classes of p_t * (log p_t - log p_s)

        with ``p = softmax(logits / T)``. The mean is over all B * K elements, as in the paper's
        experiments; the batch mean would be K times larger.

    Raises:
        InputError: the logits' shapes differ, the labels match neither form, or ``temperature``
            or ``alpha`` is out of range.

    Source: Xu et al., ECCV 2020, equations 5 and 6; Hinton et al., arXiv 1503.02531.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise InputError(
            "student_logits, teacher_logits: both must have one shape (B, K), got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    batch, classes = student_logits.shape
    if tuple(labels.shape) not in ((batch,), (batch, classes)):
        raise InputError(
            f"labels: shape must be ({batch},) or ({batch}, {classes}), got {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise InputError(f"temperature: must be > 0, got {temperature!r}")
    if not alpha >= 0:
        raise InputError(f"alpha: must be >= 0, got {alpha!r}")
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="sum",
        log_target=True,
    ) / (batch * classes)
    return F.cross_entropy(student, labels) + alpha * temperature**2 * divergence


def bns_loss(
    means: Sequence[Tensor],
    vars: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
) -> Tensor:
    """Mismatch between batch statistics and those that batch-norm layers stored in training.

    Args:
        means, vars: per layer ``(C_l,)``, the batch's mean and biased variance of the layer's
            input; see :func:`gdfq.functional.batch_norm_stats`.
        running_means, running_vars: per layer ``(C_l,)``, what the layer stores.

    Returns:
        A 0-d tensor, ``mean over layers of [MSE(mean, running_mean) + MSE(var, running_var)]``,
        each MSE averaged over the layer's channels.

    Raises:
        InputError: no layer, or the four sequences differ in length or shapes.

    Source: Xu et al., ECCV 2020, equation 3.
    """
    layers = list(zip(means, vars, running_means, running_vars, strict=False))
    lengths = [len(s) for s in (means, vars, running_means, running_vars)]
    if not layers or len(set(lengths)) != 1:
        raise InputError(
            "means, vars, running_means, running_vars: need one entry per layer each, and at "
            f"least one layer; got {', '.join(map(str, lengths))}"
        )
    for index, tensors in enumerate(layers):
        if len({tuple(t.shape) for t in tensors}) != 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise InputError(f"layer {index}: statistics must have one shape, got {shapes}")
    mismatches = [
        F.mse_loss(mean, running_mean.to(mean.dtype)) + F.mse_loss(var, running_var.to(var.dtype))
        for mean, var, running_mean, running_var in layers
    ]
    return torch.stack(mismatches).mean()
