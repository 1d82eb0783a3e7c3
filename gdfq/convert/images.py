"""Protection of a student's inputs from changes in place."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from gdfq.convert.tables import MOVING, float_reason

# Views beyond the operations with the reason MOVING.
_VIEWS = ("to", "float", "type", "narrow", "select", "movedim", "__getitem__")
_OPERATORS = (
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.imod, operator.ipow,
)  # fmt: skip
_KNOWN = ("torch", "gdfq", "_operator", "operator", "builtins", "math")


def copy_changed_inputs(root: nn.Module, graph: fx.Graph) -> None:
    """Make ``graph`` work on a copy of each input that it may change in place."""
    for node in list(graph.nodes):
        if node.op == "placeholder" and _may_be_changed(root, node):
            with graph.inserting_after(node):
                copy = graph.call_method("clone", (node,))
            node.replace_all_uses_with(copy, delete_user_cb=lambda user, own=copy: user is not own)


def _may_be_changed(root: nn.Module, node: fx.Node) -> bool:
    """Whether a user of ``node``, or of a view of it, may write to it."""
    return any(
        _writes(root, user, node) or (_is_view(root, user) and _may_be_changed(root, user))
        for user in node.users
    )


def _writes(root: nn.Module, user: fx.Node, node: fx.Node) -> bool:
    target: Any = user.target
    if user.op == "output":
        return False
    if user.op == "call_module":
        module = root.get_submodule(str(target))
        return not _is_known(type(module)) or bool(getattr(module, "inplace", False))
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if user.kwargs.get("inplace") or user.kwargs.get("out") is node or target in _OPERATORS:
        return True
    if user.op == "call_function" and not _is_known(target) and float_reason(target) is None:
        return True
    return name in ("__setitem__", "set_") or (name.endswith("_") and not name.endswith("__"))


def _is_known(made: Any) -> bool:
    return (getattr(made, "__module__", None) or "torch").partition(".")[0] in _KNOWN


def _is_view(root: nn.Module, node: fx.Node) -> bool:
    target: Any = node.target
    operation = type(root.get_submodule(target)) if node.op == "call_module" else target
    return operation in _VIEWS or float_reason(operation) == MOVING
