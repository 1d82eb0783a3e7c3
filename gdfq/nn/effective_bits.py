"""Average bits per weight and activation, including the cost of their ranges.

A range is a float32 scale and zero point. Ranges of weights are stored with the codes. Dynamic
ranges of activations are counted with the values of their call; a stored one serves all calls and
counts nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.nn.qact import QAct, observing_copy
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer

RANGE_BITS = 2 * 32
FLOAT_BITS = 32


def average_weight_bits(model: nn.Module) -> float:
    """Return the bits per weight of ``model``, averaged over all elements.

    Shared weights count once, float weights (see :func:`float_weights`) 32 bits per element.
    Weights passed to ``F.conv2d`` and ``F.linear`` are included unless computed from the input.

    Args:
        model: from :func:`gdfq.quantize_model`, or with layers of :mod:`gdfq.nn`.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    weights, _ = _weights(model)
    floats = sum(float_weights(model).values())
    bits = sum(bits * shape.numel() for bits, shape, _ in weights) + FLOAT_BITS * floats
    return bits / (_elements(weights) + floats)


def effective_weight_bits(model: nn.Module) -> float:
    """Return :func:`average_weight_bits` including 64 bits for each range (scale, zero point).

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    weights, _ = _weights(model)
    ranges = sum(shape[: 2 if per_kernel else 1].numel() for _, shape, per_kernel in weights)
    elements = _elements(weights) + sum(float_weights(model).values())
    return average_weight_bits(model) + RANGE_BITS * ranges / elements


def float_weights(model: nn.Module) -> dict[str, int]:
    """Return name and number of elements of each float weight in ``model``, largest first.

    Float weights are parameters with at least two dimensions above 1, of other layers, embeddings,
    attention, or leaf modules. Biases, norms, summands and factors per channel do not count, nor
    do modules that a traced network does not call.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    _, quantized = _weights(model)
    found: dict[int, tuple[str, int]] = {}
    for name, parameter in _used_parameters(model):
        is_weight = sum(size > 1 for size in parameter.shape) > 1 and "bias" not in name
        if is_weight and id(parameter) not in quantized:
            found.setdefault(id(parameter), (name, parameter.numel()))
    return dict(sorted(found.values(), key=lambda entry: -entry[1]))


def float_weight_share(model: nn.Module) -> float:
    """Return the fraction of weight elements in ``model`` that are float, 0 to 1.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    floats = sum(float_weights(model).values())
    return floats / (floats + _elements(_weights(model)[0]))


Weight = tuple[int, torch.Size, bool]  # bits, shape, whether it has one range per kernel
_NORMS = (nn.LayerNorm, nn.GroupNorm)
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def _used_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of the parameters that ``model`` may multiply with."""
    modules = dict(model.named_modules())
    if isinstance(model, fx.GraphModule):
        called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
        modules = {
            f"{path}.{name}" if name else path: module
            for path in called
            for name, module in model.get_submodule(path).named_modules()
        }
        for node in model.graph.nodes:
            if node.op == "get_attr" and not all(user.target in SUMS for user in node.users):
                value = attrgetter(str(node.target))(model)
                if isinstance(value, nn.Parameter):
                    yield str(node.target), value
    for path, module in modules.items():
        if not isinstance(module, _NORMS):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{name}" if path else name, parameter


def _elements(weights: list[Weight]) -> int:
    return sum(shape.numel() for _, shape, _ in weights)


def _weights(model: nn.Module) -> tuple[list[Weight], set[int]]:
    """Return the quantized weights, and the ids of the tensors they are computed from."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    weights = [(layer.weight_bits, layer.weight_shape, layer.per_kernel) for layer in layers]
    made_of = {id(layer._parameters.get("weight")) for layer in layers}
    if isinstance(model, fx.GraphModule):
        called, sources = _weights_of_calls(model)
        weights += called
        made_of |= sources
    if not _elements(weights):
        raise InputError("model: has no quantized weight")
    return weights, made_of


@torch.no_grad()
def _weights_of_calls(model: fx.GraphModule) -> tuple[list[Weight], set[int]]:
    """Return the weights passed to functions, and the ids of the tensors they are computed from."""
    # Run nodes that do not depend on the input: weights may be computed from parameters.
    known = fx.Interpreter(model, garbage_collect_values=False)
    found: dict[tuple[Any, int], Weight] = {}
    made_of: set[int] = set()
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
            made_of |= {id(tensor) for tensor in _origins(model, source)}
        else:
            known.env[node] = known.run_node(node)
    return list(found.values()), made_of


def _origins(model: fx.GraphModule, node: fx.Node) -> Iterator[Tensor]:
    if node.op == "get_attr":
        yield attrgetter(str(node.target))(model)
    elif node.op == "call_module":
        yield from model.get_submodule(str(node.target)).parameters()
    for source in node.all_input_nodes:
        yield from _origins(model, source)


@torch.no_grad()
def effective_act_bits(model: nn.Module, images: Tensor) -> float | None:
    """Return the bits per quantized activation of ``model``, including dynamic ranges.

    Args:
        model: with :class:`~gdfq.nn.QAct` modules, ranges set or not; not modified.
        images: a batch ``(N, C, H, W)``; its values do not matter.

    Returns:
        Average over all elements of ``act_bits`` plus 64 bits for each dynamic range, e.g.
        ``act_bits + 64 / (H * W)`` for ``(N, C, H, W)``, see
        :func:`gdfq.nn.dynamic_ranges.range_axes`. None without quantized activations.
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
