"""Which modules a graph's nodes call, for what changes the graph."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


class ModuleCalls:
    """A base for a class that works on ``graph``, whose modules are those of ``root``."""

    root: nn.Module
    graph: fx.Graph

    def module(self, node: fx.Node) -> Any:
        """The module that ``node`` calls."""
        return self.root.get_submodule(str(node.target))

    def calls(self, node: Any, kind: Any) -> bool:
        """Whether ``node`` is one that calls a module of ``kind``, a class or a tuple of them."""
        return (
            isinstance(node, fx.Node)
            and node.op == "call_module"
            and isinstance(self.module(node), kind)
        )
