"""Base of classes that transform a graph and look up the modules it calls."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


class ModuleCalls:
    """Base of a class that transforms ``graph``, which calls modules of ``root``."""

    root: nn.Module
    graph: fx.Graph

    def module(self, node: fx.Node) -> Any:
        """Return the module that ``node`` calls."""
        return self.root.get_submodule(str(node.target))

    def calls(self, node: Any, kind: Any) -> bool:
        """Whether ``node`` calls a module of ``kind``, a class or a tuple of classes."""
        return (
            isinstance(node, fx.Node)
            and node.op == "call_module"
            and isinstance(self.module(node), kind)
        )
