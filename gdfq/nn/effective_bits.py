"""Bits of weights and activations with what their ranges cost.

A range is a scale and a zero point, float32 each. Of a weight's they are stored with its codes; of
an activation's, those that each call computes belong to that call's values, while one that is
stored serves every call and costs nothing per value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.nn.qact import QAct, observing_copy
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer

RANGE_BITS = 2 * 32


def average_weight_bits(model: nn.Module) -> float:
    """Bits of the quantized weights in ``model``, each counted once, averaged over their elements.

    Weights that ``F.conv2d`` and ``F.linear`` are called with count too, unless the network
    computes them from its input.

    Args:
        model: from :func:`gdfq.quantize_model`, or with layers of :mod:`gdfq.nn`.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    weights = _weights(model)
    return sum(bits * shape.numel() for bits, shape, _ in weights) / _elements(weights)


def effective_weight_bits(model: nn.Module) -> float:
    """:func:`average_weight_bits` plus 64 bits for each range: its scale and its zero point.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    weights = _weights(model)
    ranges = sum(shape[: 2 if per_kernel else 1].numel() for _, shape, per_kernel in weights)
    return average_weight_bits(model) + RANGE_BITS * ranges / _elements(weights)


Weight = tuple[int, torch.Size, bool]  # bits, shape, whether its kernels have ranges of their own


def _elements(weights: list[Weight]) -> int:
    return sum(shape.numel() for _, shape, _ in weights)


def _weights(model: nn.Module) -> list[Weight]:
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    weights = [(layer.weight_bits, layer.weight.shape, layer.per_kernel) for layer in layers]
    if isinstance(model, fx.GraphModule):
        weights += _weights_of_calls(model)
    if not _elements(weights):
        raise InputError("model: has no quantized weight")
    return weights


@torch.no_grad()
def _weights_of_calls(model: fx.GraphModule) -> list[Weight]:
    """The weights that functions are called with, each once."""
    # Runs what depends on no input: weights may be computed from parameters.
    known = fx.Interpreter(model, garbage_collect_values=False)
    found: dict[tuple[Any, int], Weight] = {}
    for node in model.graph.nodes:
        sources = node.all_input_nodes
        if node.op in ("placeholder", "output") or not all(n in known.env for n in sources):
            continue
        quantizer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(quantizer, WeightQuantizer) and sources:
            (source,) = sources
            key = source.target if source.op == "get_attr" else source
            bits, weight = quantizer.weight_bits, known.env[source]
            found[key, bits] = bits, weight.shape, quantizer.per_kernel_of(weight)
        else:
            known.env[node] = known.run_node(node)
    return list(found.values())


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
