"""Bits of weights and activations with what their ranges cost.

A range is a scale and a zero point, float32 each. Of a weight's they are stored with its codes; of
an activation's, those that each call computes belong to that call's values, while one that is
stored serves every call and costs nothing per value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.nn.qact import QAct, observing_copy
from gdfq.nn.weight import QuantizedWeight

RANGE_BITS = 2 * 32


def average_weight_bits(model: nn.Module) -> float:
    """Bits of the quantized weights in ``model``, each counted once, averaged over their elements.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    layers = _layers(model)
    bits = sum(layer.weight_bits * layer.weight.numel() for layer in layers)
    return bits / sum(layer.weight.numel() for layer in layers)


def effective_weight_bits(model: nn.Module) -> float:
    """:func:`average_weight_bits` plus 64 bits for each range: its scale and its zero point.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    layers = _layers(model)
    ranges = sum(math.prod(layer.weight.shape[: 2 if layer.per_kernel else 1]) for layer in layers)
    elements = sum(layer.weight.numel() for layer in layers)
    return average_weight_bits(model) + RANGE_BITS * ranges / elements


def _layers(model: nn.Module) -> list[QuantizedWeight]:
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    if not sum(layer.weight.numel() for layer in layers):
        raise InputError("model: has no layer with a quantized weight")
    return layers


@torch.no_grad()
def effective_act_bits(model: nn.Module, images: Tensor) -> float | None:
    """Bits of the activations of ``model``, averaged over their elements, with dynamic ranges.

    Args:
        model: with :class:`~gdfq.nn.QAct` modules, whether their ranges are set or not; nothing
            about it changes.
        images: a batch ``(N, C, H, W)`` as ``model`` takes; its values do not matter.

    Returns:
        ``act_bits`` plus 64 for each dynamic range, see :func:`gdfq.nn.dynamic_ranges.range_axes`:
        ``act_bits + 64 / (H * W)`` for an activation ``(N, C, H, W)``. None without quantized
        activations.
    """
    bits = elements = 0

    def count(q: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal bits, elements
        assert isinstance(q, QAct)
        elements += output.numel()
        bits += q.act_bits * output.numel()
        if q.dynamic_range:
            axes = range_axes(output.shape, q.act_bits) or ()
            bits += RANGE_BITS * math.prod(output.shape[axis] for axis in axes)

    probe = observing_copy(model)
    for module in probe.modules():
        if isinstance(module, QAct):
            module.register_forward_hook(count)
    probe(images)
    return bits / elements if elements else None
