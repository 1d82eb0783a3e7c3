"""Conversion of in-place operations to out-of-place ones.

A student's quantized activations have separate outputs. Whatever reads a tensor after an in-place
operation, under any alias, must read that output instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gdfq.convert.calls import ModuleCalls
from gdfq.convert.flow import shapes_only
from gdfq.convert.tables import (
    ACTIVATION_CALLS,
    ACTIVATION_MODULES,
    ARITHMETIC,
    CLAMPS,
    DROPOUTS,
    DROPS_BY_NAME,
    FLOAT_ACTIVATION_CALLS,
    JOINS,
    LAYER_CALLS,
    LAYERS,
    OUT_OF_PLACE,
    POOLING,
    SPLITS,
    float_reason,
    is_float_activation,
)
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.statistics import BATCH_NORMS

# Augmented assignments, which change tensors in place but not numbers.
_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.ipow: operator.pow, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
_NEW_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, QConv2d, QLinear, QAct, *LAYERS, *BATCH_NORMS,
)  # fmt: skip
_NEW_CALLS = {
    *ACTIVATION_CALLS, *FLOAT_ACTIVATION_CALLS, *LAYER_CALLS, *CLAMPS, *ARITHMETIC, *JOINS,
    F.batch_norm, torch.batch_norm, F.pad, F.interpolate, F.pixel_shuffle, torch.roll, "clone",
}  # fmt: skip


def remove_in_place(root: nn.Module, graph: fx.Graph) -> None:
    """Make in-place activations and operators (``+=``) of ``graph`` work out of place.

    Later readers of the changed tensor, under any alias of the whole tensor, then read the
    operation's output. If a view of it is read later, the output is copied back into the tensor.
    """
    in_place = _InPlace(root, graph)
    for node in list(graph.nodes):
        if node in in_place.numbers:
            node.target = _OPERATORS.get(node.target, node.target)
            in_place.seen.add(node)
            continue
        source = in_place.changed_by(node)
        if source is not None:
            in_place.remove(node, source)
        in_place.record(node)


class _InPlace(ModuleCalls):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.graph = graph
        self.numbers = shapes_only(graph)
        self.flags: dict[nn.Module, bool] = {}
        self.seen: set[fx.Node] = set()
        self.same: dict[fx.Node, fx.Node] = {}  # the first node with the same tensor
        self.group: dict[fx.Node, set[fx.Node]] = {}  # nodes that may share memory
        self.parts: dict[fx.Node, dict[fx.Node, int]] = {}  # by split, the part that holds it

    # ---- memory effects of a node ----

    def changed_by(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose tensor ``node`` changes in place, if any."""
        if node in self.numbers:
            return None
        target: Any = node.target
        source = node.kwargs.get("out")
        if source is None:
            if node.op == "call_module":
                changes = self._module_changes(self.module(node))
            elif node.op in ("call_function", "call_method"):
                name = target if isinstance(target, str) else getattr(target, "__name__", "")
                changes = (
                    target in _OPERATORS
                    or target is operator.setitem
                    or (name.endswith("_") and not name.startswith("_"))
                    or bool(node.kwargs.get("inplace"))
                    or (self._activates(node) and any(value is True for value in node.args[1:]))
                )
            else:
                changes = False
            if not changes:
                return None
            source = node.args[0] if node.args else node.kwargs.get("input")
        return source if isinstance(source, fx.Node) else None

    def _module_changes(self, module: nn.Module) -> bool:
        if module not in self.flags:
            if type(module) in ACTIVATION_MODULES:
                self.flags[module] = bool(module.inplace)
            else:
                self.flags[module] = is_float_activation(module) and _works_in_place(module)
        return self.flags[module]

    def _activates(self, node: fx.Node) -> bool:
        """Whether ``node`` is an activation; the student quantizes its output."""
        target: Any = node.target
        if node.op == "call_module":
            module = self.module(node)
            return type(module) in ACTIVATION_MODULES or is_float_activation(module)
        target = OUT_OF_PLACE.get(target, target)
        return target in ACTIVATION_CALLS or target in FLOAT_ACTIVATION_CALLS or target in CLAMPS

    def passes_on(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose tensor ``node`` returns, if any."""
        target: Any = node.target
        if node.op == "call_module":
            module = self.module(node)
            if type(module) is nn.Identity or isinstance(module, nn.modules.dropout._DropoutNd):
                return node.all_input_nodes[0]
        elif target in DROPOUTS or getattr(target, "__name__", None) in DROPS_BY_NAME:
            return node.all_input_nodes[0]
        return self.changed_by(node)

    def is_new(self, node: fx.Node) -> bool:
        """Whether ``node`` is known to return newly allocated memory."""
        target: Any = node.target
        if node.op == "call_module":
            module = self.module(node)
            known = isinstance(module, _NEW_MODULES) or is_float_activation(module)
            return known or float_reason(type(module)) == POOLING
        return node.op.startswith("call_") and (
            target in _NEW_CALLS or float_reason(target) == POOLING
        )

    # ---- aliases ----

    def record(self, node: fx.Node) -> None:
        """Record which memory ``node`` returns; all earlier nodes must be recorded."""
        self.seen.add(node)
        same, group, parts = self.same, self.group, self.parts
        same[node], group[node], parts[node] = node, {node}, {}
        passed = self.passes_on(node)
        if passed in same:
            same[node] = same[passed]
        elif self.is_new(node):
            return
        for read in node.all_input_nodes if passed is None else [passed]:
            if read not in group:
                continue
            if group[read] is not group[node]:
                group[read] |= group[node]
                for member in group[node]:
                    group[member] = group[read]
            parts[node] |= parts[read]
        part: Any = node.args[1] if self._splits(node) else -1
        if part >= 0:  # a negative index may be any part
            parts[node][node.all_input_nodes[0]] = part

    def remove(self, node: fx.Node, source: fx.Node) -> None:
        """Make readers of the tensor of ``source`` after ``node`` read the output of ``node``."""
        if "out" in node.kwargs or not (self._activates(node) or node.target in _OPERATORS):
            return  # stays in place in the student
        names = {other for other in self.same if self.same[other] is self.same.get(source)}
        within = self.parts.get(source, {}).items()
        views = {
            view
            for view in self.group.get(source, set()) - names
            if all(self.parts[view].get(split, part) == part for split, part in within)
        }

        def later(name: fx.Node) -> list[fx.Node]:
            read = {*name.users} - self.seen - self.numbers - {node}
            return [user for user in name.users if user in read]

        shared = any(later(view) for view in views)
        if shared and not self._activates(node):
            return
        if shared and any(map(self._splits, names)):
            stack = node.meta.get("nn_module_stack") or {"": ("", None)}
            where = list(stack.values())[-1][0] or "its forward"
            kind = getattr(node.target, "__name__", node.target)
            raise InputError(
                f"model: {where} changes a part of a tensor in place by {kind}, and the tensor is "
                "read later; a student cannot be trained through that: use it out of place"
            )
        if shared:
            self.write_back(node, source)
        else:
            for name in names:
                for user in later(name):
                    user.replace_input_with(name, node)
            node.target = _OPERATORS.get(node.target, node.target)
        _make_out_of_place(node)

    def _splits(self, node: fx.Node) -> bool:
        return (
            node.target is operator.getitem
            and isinstance(node.args[1], int)
            and node.all_input_nodes[0].target in SPLITS
        )

    def write_back(self, node: fx.Node, source: fx.Node) -> None:
        """Compute ``node`` on a copy of ``source``, and copy the result into ``source``."""
        with self.graph.inserting_before(node):
            copied = self.graph.call_method("clone", (source,))
        with self.graph.inserting_after(node):
            written = self.graph.call_method("copy_", (source, node))
        written.meta = copied.meta = node.meta
        self.record(copied)
        node.replace_all_uses_with(written, delete_user_cb=lambda user: user is not written)
        node.replace_input_with(source, copied)
        self.record(written)


def _make_out_of_place(node: fx.Node) -> None:
    node.target = OUT_OF_PLACE.get(node.target, node.target)
    node.args = tuple(False if value is True else value for value in node.args)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}


@torch.no_grad()
def _works_in_place(module: nn.Module) -> bool:
    """Whether an activation module changes its input in place; also turns that off."""
    if not getattr(module, "inplace", False):
        return False
    # In some classes ``inplace`` does not concern the input.
    parameter = next(module.parameters(), None)
    values = torch.linspace(
        -4, 4, 8, device=None if parameter is None else parameter.device, dtype=torch.float32
    )
    given = values.clone()
    module(given)
    module.inplace = False  # type: ignore[assignment]
    return not torch.equal(given, values)
