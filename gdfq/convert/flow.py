"""Data-flow analysis of a student's graph: which values are shapes, tensors, quantized."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from gdfq.convert.tables import (
    ACTIVATION_CALLS,
    ARITHMETIC,
    CLAMPS,
    FLOAT_ACTIVATION_CALLS,
    JOINS,
    LAYER_CALLS,
    MOVING,
    POOLING,
    SHAPE_ATTRIBUTES,
    SHAPE_METHODS,
    SPLITS,
    float_reason,
    is_float_activation,
)
from gdfq.nn import QAct, QConv2d, QLinear


def shapes_only(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that compute with shapes, not with values of tensors."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if (
            (node.op == "call_method" and node.target in SHAPE_METHODS)
            or (node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES)
            or (
                node.op == "call_function"
                and node.all_input_nodes
                and found.issuperset(node.all_input_nodes)
            )
        ):
            found.add(node)
    return found


_ATTRIBUTE_TYPES: dict[Any, type] = {
    "shape": torch.Size, "ndim": int, "dtype": torch.dtype, "device": torch.device, "data": Tensor,
}  # fmt: skip
_COMPUTES_TENSORS = {
    *ACTIVATION_CALLS, *FLOAT_ACTIVATION_CALLS, *LAYER_CALLS, *CLAMPS, *ARITHMETIC,
}  # fmt: skip


def value_type(root: nn.Module, node: fx.Node, known: Mapping[fx.Node, type | None]) -> type | None:
    """Infer the class of the value of ``node``, or None; ``known``: classes of earlier nodes."""
    target: Any = node.target
    if node.op in ("placeholder", "get_attr"):
        return Tensor
    if node.op == "call_module":
        module = root.get_submodule(target)
        is_known = (
            isinstance(module, (nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, QConv2d, QLinear, QAct))
            or is_float_activation(module)
            or float_reason(type(module)) is not None
        )
        return Tensor if is_known and not getattr(module, "return_indices", False) else None
    if target is getattr:
        return _ATTRIBUTE_TYPES.get(node.args[1])
    if target == "size":
        return int if len(node.args) + len(node.kwargs) > 1 else torch.Size
    if target in SHAPE_METHODS:
        return int
    if target in SPLITS:
        return tuple
    kinds = [Tensor if i.op == "get_attr" else known.get(i) for i in node.all_input_nodes]
    kind = kinds[0] if kinds else None
    if target is operator.getitem:
        if kind is Tensor or not isinstance(node.args[1], int):
            return kind
        return {torch.Size: int, tuple: Tensor}.get(kind)  # type: ignore[call-overload]
    if node.kwargs.get("return_indices"):
        return None
    if target in _COMPUTES_TENSORS:
        return Tensor if Tensor in kinds else None
    return Tensor if kind is Tensor and float_reason(target) is not None else None


def float_sources(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the nodes with float values, each with the name of the operation they stem from.

    Quantizers return quantized values, pooling and moves preserve the kind of their inputs, and
    everything else computes float values.
    """
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        operation: Any = node.target
        if node.op == "placeholder":
            found[node] = "the input"
            continue
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if isinstance(module, QAct):
                continue
            operation = type(module)
        if node.op.startswith("call_") and float_reason(operation) in (MOVING, POOLING):
            inputs = node.all_input_nodes
            read = inputs if operation in JOINS else inputs[:1]
            if any(source in found for source in read):
                found[node] = next(found[source] for source in read if source in found)
        else:
            found[node] = str(node.target) if node.op == "call_module" else node.name
    return found
