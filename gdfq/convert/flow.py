"""What a student's values are: quantized, in float, or no values of tensors at all."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gdfq.convert.tables import (
    JOINS,
    MOVING,
    POOLING,
    SHAPE_ATTRIBUTES,
    SHAPE_METHODS,
    float_reason,
)
from gdfq.nn import QAct


def shapes_only(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that compute with sizes, not with the values of tensors."""
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


def float_sources(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """The nodes whose values are not quantized, each with the name of what made them so.

    A quantizer makes values quantized. Pooling and what moves values passes on what it is given;
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
