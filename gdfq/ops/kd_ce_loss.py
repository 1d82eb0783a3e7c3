"""Cross-entropy plus temperature-softened distillation, loss and gradient in one pass."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_float
from gdfq.ops._outputs import reduced_dtype

_op = torch.ops.gdfq.kd_ce_loss


def kd_ce_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    alpha: float = 1.0,
) -> Tensor:
    """Compute cross-entropy plus the divergence from the teacher's softened predictions.

    Args:
        student_logits, teacher_logits: ``(B, K)``, not empty; float32, float16, bfloat16 or
            float64; the teacher's are constants.
        labels: ``(B,)`` int64 classes from 0 to K - 1, or ``(B, K)`` float probabilities;
            constants. On a device other than the CPU, where reading them would synchronize, a
            class out of range makes the loss NaN, and its row's gradient that of the divergence.
        temperature: T > 0, finite.
        alpha: weight of the divergence, >= 0.

    Returns:
        A 0-d float32 tensor (float64 for float64 logits)::

            CE(s, y) + alpha * T**2 * mean over batch and classes of p_t * (log p_t - log p_s)

        with ``p = softmax(logits / T)``. The mean is over all B * K elements, as in the paper's
        experiments; the batch mean would be K times larger. The gradient to the student's logits
        is computed with the loss, and is the one tensor kept for the backward pass::

            [softmax(s) * sum_k y_k - y] / B + alpha * T / (B * K) * (p_s - p_t)

    Raises:
        InputError: the logits' shapes, dtypes or devices differ, the labels match neither form,
            or ``temperature`` or ``alpha`` is out of range.
        IndexError: on the CPU, a label is not from 0 to K - 1.

    Source: Xu et al., ECCV 2020, equations 5 and 6; Hinton et al., arXiv 1503.02531.
    """
    check_float(student_logits, "student_logits")
    check_float(teacher_logits, "teacher_logits")
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise InputError(
            "student_logits, teacher_logits: both must have one shape (B, K), got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if not student_logits.numel():
        raise InputError(f"student_logits: must not be empty, got {tuple(student_logits.shape)}")
    batch, classes = student_logits.shape
    if tuple(labels.shape) not in ((batch,), (batch, classes)):
        raise InputError(
            f"labels: shape must be ({batch},) or ({batch}, {classes}), got {tuple(labels.shape)}"
        )
    if labels.dim() == 1 and labels.dtype != torch.int64:
        raise InputError(f"labels: dtype of classes must be torch.int64, got {labels.dtype}")
    if labels.dim() == 2:
        check_float(labels, "labels")
    device = student_logits.device
    for name, tensor in (("teacher_logits", teacher_logits), ("labels", labels)):
        if tensor.device != device:
            raise InputError(
                f"{name}: must be on {device} like student_logits, got {tensor.device}"
            )
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature: must be > 0 and finite, got {temperature!r}")
    if not alpha >= 0:
        raise InputError(f"alpha: must be >= 0, got {alpha!r}")
    return _op(student_logits, teacher_logits, labels, temperature, alpha)[0]


@torch.library.register_fake("gdfq::kd_ce_loss")
def _fake(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    dtype = reduced_dtype(student_logits)
    gradient = student_logits.new_empty(student_logits.shape, dtype=dtype)
    return gradient.new_empty(()), gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


@once_differentiable
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (grad * gradient).to(ctx.dtype), None, None, None, None


torch.library.register_autograd("gdfq::kd_ce_loss", _backward, setup_context=_setup_context)


# ---- reference ----


def check_classes(labels: Tensor, classes: int) -> None:
    """Check on the CPU that labels are classes; elsewhere that would wait for the device."""
    if labels.dim() != 1 or labels.device.type != "cpu":
        return
    for index in torch.nonzero((labels < 0) | (labels >= classes)).flatten()[:1].tolist():
        raise IndexError(f"labels[{index}] is {labels[index]}, but there are {classes} classes")


def kd_ce_loss_reference(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    alpha: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`kd_ce_loss` and its gradient to the student's logits, in plain PyTorch.

    In float64: float32 would lose the divergence of two nearly equal distributions.
    """
    batch, classes = student_logits.shape
    check_classes(labels, classes)
    student, teacher = student_logits.double(), teacher_logits.detach().double()
    target = labels.double()
    if labels.dim() == 1:
        target = (labels[:, None] == torch.arange(classes, device=labels.device)).double()
    log_p = F.log_softmax(student, dim=1)
    log_ps = F.log_softmax(student / temperature, dim=1)
    log_pt = F.log_softmax(teacher / temperature, dim=1)
    cross_entropy = -(target * log_p).sum() / batch
    if labels.dim() == 1:
        cross_entropy = torch.where(target.sum() == batch, cross_entropy, torch.nan)
    divergence = (log_pt.exp() * (log_pt - log_ps)).sum() / (batch * classes)
    hard = (log_p.exp() * target.sum(1, keepdim=True) - target) / batch
    soft = alpha * temperature / (batch * classes) * (log_ps.exp() - log_pt.exp())
    loss = cross_entropy + alpha * temperature**2 * divergence
    dtype = reduced_dtype(student_logits)
    return loss.to(dtype), (hard + soft).to(dtype)


register_reference("kd_ce_loss", kd_ce_loss_reference)
