"""Mismatch of batch statistics with stored ones, all layers at once, in Triton.

Never run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gdfq.ops.triton import _launch
from gdfq.ops.triton._language import number_of, pointer_of
from gdfq.ops.triton._launch import MOST_TENSORS, launch


@triton.jit
def difference(statistic_ptr, stored_ptr, channel, exists):
    """Return statistic - stored in float64, 0 past the last channel."""
    statistic = tl.load(statistic_ptr + channel, mask=exists, other=0.0).to(tl.float64)
    return statistic - tl.load(stored_ptr + channel, mask=exists, other=0.0).to(tl.float64)


@triton.jit
def _forward(
    means,  # [channels] per layer
    vars,  # [channels] per layer
    running_means,  # [channels] per layer
    running_vars,  # [channels] per layer
    so_far_ptr,  # [1], float64: the sum over earlier launches' layers, None in the first
    sum_ptr,  # [1], float64
    loss_ptr,  # [1], None in all launches but the last
    layers,  # of all launches
    CHANNELS: tl.constexpr,  # per layer
    BLOCK: tl.constexpr,
):
    """Compute loss = sum over layers of [MSE(mean, running_mean) + MSE(var, running_var)] / layers.

    A network has a few thousand channels, so one program walks them all, a block at a time, and
    sums in float64. Reads each statistic once; the order is fixed.
    """
    squares = tl.zeros((BLOCK,), tl.float64)
    for layer in tl.static_range(len(CHANNELS)):
        share = tl.full((1,), 1.0 / CHANNELS[layer], tl.float64)
        for begin in range(0, CHANNELS[layer], BLOCK):
            channel = begin + tl.arange(0, BLOCK)
            exists = channel < CHANNELS[layer]
            m = difference(means[layer], running_means[layer], channel, exists)
            v = difference(vars[layer], running_vars[layer], channel, exists)
            squares += (m * m + v * v) * share
    one = tl.arange(0, 1)
    total = tl.zeros((1,), tl.float64) + tl.sum(squares, 0)
    if so_far_ptr is not None:
        total += tl.load(so_far_ptr + one)
    tl.store(sum_ptr + one, total)
    if loss_ptr is not None:
        tl.store(loss_ptr + one, (total / (tl.zeros((1,), tl.float64) + layers)).to(tl.float32))


@triton.jit
def _backward(
    grad_ptr,  # [1]
    means,  # [channels] per layer
    vars,  # [channels] per layer
    running_means,  # [channels] per layer
    running_vars,  # [channels] per layer
    dmeans,  # [channels] per layer
    dvars,  # [channels] per layer
    layers,  # of all launches
    LAYER: tl.constexpr,  # numbers of the layers
    CHANNELS: tl.constexpr,  # per layer
    BLOCK: tl.constexpr,
):
    """Compute dmean = 2 * grad / (layers * channels) * (mean - running_mean), the same for var.

    Program (i, l) takes the i-th block of channels of layer l.
    """
    layer = tl.program_id(1)
    channels = number_of(CHANNELS, LAYER, layer)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    grad = tl.load(grad_ptr + tl.arange(0, 1)).to(tl.float64)
    factor = 2 * grad / (tl.zeros((1,), tl.float64) + layers) / channels
    m = difference(
        pointer_of(means, LAYER, layer), pointer_of(running_means, LAYER, layer), channel, exists
    )
    v = difference(
        pointer_of(vars, LAYER, layer), pointer_of(running_vars, LAYER, layer), channel, exists
    )
    dmean, dvar = pointer_of(dmeans, LAYER, layer), pointer_of(dvars, LAYER, layer)
    tl.store(dmean + channel, (factor * m).to(tl.float32), mask=exists)
    tl.store(dvar + channel, (factor * v).to(tl.float32), mask=exists)


def _floats(
    means: list[Tensor], vars: list[Tensor], running_means: list[Tensor], running_vars: list[Tensor]
) -> list[list[Tensor]]:
    """Return all in float32, stored statistics first rounded to the batch's dtype."""
    pairs = ((means, running_means), (vars, running_vars))
    stored = [
        [r.to(s.dtype) for s, r in zip(statistics, kept, strict=True)] for statistics, kept in pairs
    ]
    return [[t.float().contiguous() for t in ts] for ts in (means, vars, *stored)]


def _parts(layers: int) -> list[slice]:
    """Return the layers of each launch."""
    return [slice(i, i + MOST_TENSORS) for i in range(0, layers, MOST_TENSORS)]


def bns_loss(
    means: list[Tensor], vars: list[Tensor], running_means: list[Tensor], running_vars: list[Tensor]
) -> Tensor:
    """Launch one kernel for up to MOST_TENSORS layers."""
    lists = _floats(means, vars, running_means, running_vars)
    loss = means[0].new_empty((), dtype=torch.float32)
    total = loss.new_empty((), dtype=torch.float64)
    parts = _parts(len(means))
    for part in parts:
        channels = tuple(m.numel() for m in means[part])
        launch(
            _forward,
            1,
            *(tuple(tensors[part]) for tensors in lists),
            None if part is parts[0] else total,
            total,
            loss if part is parts[-1] else None,
            len(means),
            CHANNELS=channels,
            BLOCK=min(triton.next_power_of_2(max(channels)), _launch.block),
        )
    return loss


def bns_loss_backward(
    grad: Tensor,
    means: list[Tensor],
    vars: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch one kernel for up to MOST_TENSORS layers."""
    lists = _floats(means, vars, running_means, running_vars)
    gradients = [[torch.empty_like(t) for t in tensors] for tensors in lists[:2]]
    for part in _parts(len(means)):
        channels = tuple(m.numel() for m in means[part])
        block = min(triton.next_power_of_2(max(channels)), _launch.block)
        launch(
            _backward,
            (triton.cdiv(max(channels), block), len(channels)),
            grad,
            *(tuple(tensors[part]) for tensors in [*lists, *gradients]),
            len(means),
            LAYER=tuple(range(len(channels))),
            CHANNELS=channels,
            BLOCK=block,
        )
    dmeans, dvars = (
        [d.to(s.dtype) for d, s in zip(ds, statistics, strict=True)]
        for ds, statistics in zip(gradients, (means, vars), strict=True)
    )
    return dmeans, dvars
