"""Cross-entropy plus distillation, loss and gradient in one pass, in Triton. Never run on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.kd_ce_loss import check_classes
from gdfq.ops.triton import _launch
from gdfq.ops.triton._launch import launch


@triton.jit
def _rows(
    student_ptr,  # [batch, classes]
    teacher_ptr,  # [batch, classes]
    labels_ptr,  # [batch] classes, or [batch, classes] probabilities
    gradient_ptr,  # [batch, classes]
    rows_ptr,  # [2, batch]: cross-entropy and divergence of each row, float64
    batch,
    classes,
    temperature,
    alpha,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute [softmax(s) * sum(y) - y] / B + alpha * T / (B * K) * (p_s - p_t), and both losses.

    A program takes one row in float64: float32 would lose the divergence of two nearly equal
    distributions. It walks the row three times, for the maxima, the sums of exponentials and the
    result; all but the first reads come from cache. Reads both logits and writes the gradient
    once. Rows are independent. A class out of range makes its row's loss NaN.
    """
    row = tl.program_id(0)
    first = row.to(tl.int64) * classes
    max_s = tl.full((1,), -float("inf"), tl.float64)
    max_t = tl.full((1,), -float("inf"), tl.float64)
    for begin in range(0, classes, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        mask = k < classes
        s = tl.load(student_ptr + first + k, mask=mask, other=-float("inf")).to(tl.float64)
        t = tl.load(teacher_ptr + first + k, mask=mask, other=-float("inf")).to(tl.float64)
        max_s = tl.maximum(max_s, tl.max(s, 0))
        max_t = tl.maximum(max_t, tl.max(t, 0))

    sum_s = tl.zeros((1,), tl.float64)
    sum_st = tl.zeros((1,), tl.float64)
    sum_tt = tl.zeros((1,), tl.float64)
    sum_y = tl.zeros((1,), tl.float64)
    for begin in range(0, classes, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        mask = k < classes
        s = tl.load(student_ptr + first + k, mask=mask, other=-float("inf")).to(tl.float64) - max_s
        t = tl.load(teacher_ptr + first + k, mask=mask, other=-float("inf")).to(tl.float64) - max_t
        sum_s += tl.sum(tl.exp(s), 0)
        sum_st += tl.sum(tl.exp(s / temperature), 0)
        sum_tt += tl.sum(tl.exp(t / temperature), 0)
        if SOFT:
            y = tl.load(labels_ptr + first + k, mask=mask, other=0.0).to(tl.float64)
            sum_y += tl.sum(y, 0)
    if not SOFT:
        label = tl.load(labels_ptr + row)
        known = (label >= 0) & (label < classes)
        sum_y += tl.where(known, 1.0, 0.0)

    elements = tl.zeros((1,), tl.float64) + batch * 1.0
    soft = alpha * temperature / (elements * classes)
    cross_entropy = tl.zeros((1,), tl.float64)
    divergence = tl.zeros((1,), tl.float64)
    for begin in range(0, classes, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        mask = k < classes
        s = tl.load(student_ptr + first + k, mask=mask, other=0.0).to(tl.float64) - max_s
        t = tl.load(teacher_ptr + first + k, mask=mask, other=0.0).to(tl.float64) - max_t
        if SOFT:
            y = tl.load(labels_ptr + first + k, mask=mask, other=0.0).to(tl.float64)
        else:
            y = tl.where(k == label, 1.0, 0.0).to(tl.float64)
        log_p = s - tl.log(sum_s)
        log_ps = s / temperature - tl.log(sum_st)
        log_pt = t / temperature - tl.log(sum_tt)
        p_t = tl.exp(log_pt)
        cross_entropy -= tl.sum(tl.where(mask, y * log_p, 0.0), 0)
        divergence += tl.sum(tl.where(mask, p_t * (log_pt - log_ps), 0.0), 0)
        gradient = (tl.exp(log_p) * sum_y - y) / elements + soft * (tl.exp(log_ps) - p_t)
        tl.store(gradient_ptr + first + k, gradient.to(tl.float32), mask=mask)
    if not SOFT:
        cross_entropy = tl.where(known, cross_entropy, float("nan"))
    tl.store(rows_ptr + row + tl.arange(0, 1), cross_entropy)
    tl.store(rows_ptr + batch + row + tl.arange(0, 1), divergence)


@triton.jit
def _merge(
    rows_ptr,  # [2, batch]
    loss_ptr,  # [1]
    batch,
    classes,
    temperature,
    alpha,
    BLOCK: tl.constexpr,
):
    """Compute sum of cross-entropies / B + alpha * T^2 * sum of divergences / (B * K).

    One program, in order.
    """
    cross_entropy = tl.zeros((BLOCK,), tl.float64)
    divergence = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, batch, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        cross_entropy += tl.load(rows_ptr + row, mask=row < batch, other=0.0)
        divergence += tl.load(rows_ptr + batch + row, mask=row < batch, other=0.0)
    elements = tl.zeros((1,), tl.float64) + batch * 1.0
    loss = tl.sum(cross_entropy, 0) / elements
    loss += alpha * temperature * temperature * tl.sum(divergence, 0) / (elements * classes)
    tl.store(loss_ptr + tl.arange(0, 1), loss.to(tl.float32))


def kd_ce_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Launch the rows, then their sum."""
    batch, classes = student_logits.shape
    soft = labels.dim() == 2
    check_classes(labels, classes)
    gradient = student_logits.new_empty((batch, classes), dtype=torch.float32)
    rows = gradient.new_empty((2, batch), dtype=torch.float64)
    loss = gradient.new_empty(())
    numbers = (batch, classes, temperature, alpha)
    launch(
        _rows,
        batch,
        student_logits.contiguous(),
        teacher_logits.contiguous(),
        labels.contiguous(),
        gradient,
        rows,
        *numbers,
        SOFT=soft,
        BLOCK=min(triton.next_power_of_2(classes), _launch.block),
    )
    block = min(triton.next_power_of_2(batch), _launch.block)
    launch(_merge, 1, rows, loss, *numbers, BLOCK=block)
    return loss, gradient
