"""Mismatch of batch statistics with stored ones, all layers at once, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.bns_loss import bns_loss_backward_reference, bns_loss_reference
from gdfq.ops.triton import _launch
from gdfq.ops.triton._launch import launch


@triton.jit
def _forward(
    statistics_ptr,  # [entries]: every layer's mean, then every layer's variance
    stored_ptr,  # [entries]
    share_ptr,  # [entries]: 1 / (L * C) of the entry's layer, float64
    loss_ptr,  # [1]
    entries,
    BLOCK: tl.constexpr,
):
    """loss = sum over entries of (statistic - stored)^2 / (L * C).

    A network has a few thousand entries, so one program walks them all, a block at a time, and
    sums in float64. Reads each entry once; the order is fixed.
    """
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, entries, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        mask = index < entries
        statistic = tl.load(statistics_ptr + index, mask=mask, other=0.0).to(tl.float64)
        stored = tl.load(stored_ptr + index, mask=mask, other=0.0).to(tl.float64)
        share = tl.load(share_ptr + index, mask=mask, other=0.0)
        total += (statistic - stored) * (statistic - stored) * share
    tl.store(loss_ptr + tl.arange(0, 1), tl.sum(total, 0).to(tl.float32))


@triton.jit
def _backward(
    grad_ptr,  # [1]
    statistics_ptr,  # [entries]
    stored_ptr,  # [entries]
    share_ptr,  # [entries]
    gradient_ptr,  # [entries]
    entries,
    BLOCK: tl.constexpr,
):
    """gradient = 2 * grad / (L * C) * (statistic - stored), a block of entries per program."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < entries
    statistic = tl.load(statistics_ptr + index, mask=mask, other=0.0).to(tl.float64)
    stored = tl.load(stored_ptr + index, mask=mask, other=0.0).to(tl.float64)
    share = tl.load(share_ptr + index, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + tl.arange(0, 1)).to(tl.float64)
    gradient = 2 * grad * share * (statistic - stored)
    tl.store(gradient_ptr + index, gradient.to(tl.float32), mask=mask)


@functools.lru_cache(maxsize=32)
def _shares(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """1 / (L * C) for every entry; kept, so that a captured graph copies nothing from the host."""
    counts = torch.tensor(sizes * 2)
    return (1 / (len(sizes) * counts.double())).repeat_interleave(counts).to(device)


def _flat(statistics: list[Tensor], stored: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Both in one stretch of float32 each, what is stored rounded to the statistic's dtype."""
    return (
        torch.cat([s.reshape(-1).float() for s in statistics]),
        torch.cat(
            [r.reshape(-1).to(s.dtype).float() for s, r in zip(statistics, stored, strict=True)]
        ),
    )


def bns_loss(
    means: list[Tensor], vars: list[Tensor], running_means: list[Tensor], running_vars: list[Tensor]
) -> Tensor:
    """Two concatenations and one launch; float64 runs the reference."""
    statistics = [*means, *vars]
    if any(s.dtype == torch.float64 for s in statistics):
        return bns_loss_reference(means, vars, running_means, running_vars)
    flat = _flat(statistics, [*running_means, *running_vars])
    loss = flat[0].new_empty(())
    share = _shares(tuple(m.numel() for m in means), loss.device)
    launch(_forward, 1, *flat, share, loss, len(share), BLOCK=_launch.block)
    return loss


def bns_loss_backward(
    grad: Tensor,
    means: list[Tensor],
    vars: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Two concatenations, one launch and a split; float64 runs the reference."""
    statistics = [*means, *vars]
    if any(s.dtype == torch.float64 for s in statistics):
        return bns_loss_backward_reference(grad, means, vars, running_means, running_vars)
    flat = _flat(statistics, [*running_means, *running_vars])
    share = _shares(tuple(m.numel() for m in means), grad.device)
    gradient = torch.empty_like(flat[0])
    programs = triton.cdiv(len(share), _launch.block)
    launch(_backward, programs, grad, *flat, share, gradient, len(share), BLOCK=_launch.block)
    parts = torch.ops.aten.split_with_sizes_copy.default(gradient, [s.numel() for s in statistics])
    gradients = [p.view(s.shape).to(s.dtype) for p, s in zip(parts, statistics, strict=True)]
    return gradients[: len(means)], gradients[len(means) :]
