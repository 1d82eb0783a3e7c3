"""A network as a graph."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from torch import fx, nn

from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear


class StudentTracer(fx.Tracer):
    """Does not trace into quantized layers, nor into modules that the user named."""

    def __init__(self, leaf_modules: Sequence[str | type] = ()) -> None:
        super().__init__()
        self.leaf_names = {leaf for leaf in leaf_modules if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaf_modules if isinstance(leaf, type))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is called as one operation."""
        return (
            isinstance(m, (QConv2d, QLinear, QAct))
            or self.is_named(m, module_qualified_name)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def is_named(self, module: nn.Module, path: str) -> bool:
        """Whether the user asked to leave ``module`` as it is."""
        return path in self.leaf_names or isinstance(module, self.leaf_types)


def check_leaves(root: nn.Module, leaf_modules: Sequence[str | type]) -> None:
    """Raise an InputError for the first entry that is no path and no class of modules."""
    if isinstance(leaf_modules, str):
        raise InputError(f"leaf_modules: must be a sequence, got the string {leaf_modules!r}")
    paths = {path for path, _ in root.named_modules(remove_duplicate=False)}
    for leaf in leaf_modules:
        if isinstance(leaf, str) and leaf not in paths:
            raise InputError(f"leaf_modules: the model has no module {leaf!r}")
        if not isinstance(leaf, str) and not (
            isinstance(leaf, type) and issubclass(leaf, nn.Module)
        ):
            raise InputError(
                f"leaf_modules: entries must be paths or nn.Module classes, got {leaf!r}"
            )


def trace(root: nn.Module, tracer: StudentTracer) -> fx.Graph:
    """The graph of ``root``; an InputError names the line that cannot be traced."""
    try:
        return tracer.trace(root)
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if f"{Path('/torch/')}" not in frame.filename
            and not frame.filename.startswith("<")
            and frame.filename != __file__
        ]
        where = "in its forward"
        if frames:
            where = f"at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)"
        raise InputError(
            f"model: torch.fx cannot trace it {where}: {str(error).splitlines()[0]}; name the "
            "module that holds this line in leaf_modules=[...] (its class or its path) to leave "
            "it unquantized, or rewrite the line without control flow on tensors"
        ) from error
