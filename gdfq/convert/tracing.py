"""A network as a graph."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.convert.tables import SHAPE_METHODS, is_float_activation
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear

_OWN = str(Path(__file__).parent)
_CONDITIONS = (
    getattr, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
    operator.ge, operator.mod, operator.and_, operator.or_, *SHAPE_METHODS,
)  # fmt: skip


class StudentTracer(fx.Tracer):
    """Does not trace into quantized layers, activations, nor what the user named.

    Args:
        leaf_modules: classes and paths of modules that are one operation each.
        functions: that are one operation each.
    """

    def __init__(
        self,
        leaf_modules: Sequence[str | type] = (),
        functions: Sequence[Callable[..., Any]] = (),
    ) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.leaf_names = {leaf for leaf in leaf_modules if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaf_modules if isinstance(leaf, type))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is called as one operation."""
        return (
            isinstance(m, (QConv2d, QLinear, QAct))
            or self.is_named(m, module_qualified_name)
            or is_float_activation(m)
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


def trace(root: nn.Module, leaf_modules: Sequence[str | type]) -> tuple[fx.Graph, StudentTracer]:
    """The graph of ``root``, without its checks; an InputError names a line that prevents it.

    A function with control flow on tensors or their shapes, called by a module's ``forward``,
    becomes one operation of the graph.
    """
    functions: list[Callable[..., Any]] = []
    while True:
        tracer = StudentTracer(leaf_modules, functions)
        try:
            with _without_dimension_checks(root):
                graph = tracer.trace(root)
        except Exception as error:
            frames = [
                frame for frame, _ in traceback.walk_tb(error.__traceback__) if _is_users(frame)
            ]
            function = _untraceable_function(frames)
            if function is None or function in functions:
                raise InputError(_explanation(error)) from error
            functions.append(function)
        else:
            _drop_checks(graph)
            return graph, tracer


@contextmanager
def _without_dimension_checks(root: nn.Module) -> Iterator[None]:
    """Within, batch norms do not look at their input's dimensions, as subclasses' forwards do."""
    norms = [module for module in root.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.__dict__["_check_input_dim"] = lambda input: None
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["_check_input_dim"]


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return f"{Path('/torch/')}" not in name and not name.startswith(("<", _OWN))


def _untraceable_function(frames: list[FrameType]) -> FunctionType | None:
    """The innermost function, in whose call tracing failed, that a ``forward`` can call as one."""
    forwards = [i for i, frame in enumerate(frames) if frame.f_code.co_name == "forward"]
    if not forwards:
        return None
    # fx replaces functions in the globals of the modules' forwards, and there only.
    known = frames[forwards[-1]].f_globals
    for frame in reversed(frames[forwards[-1] + 1 :]):
        function = frame.f_globals.get(frame.f_code.co_name)
        if (
            isinstance(function, FunctionType)
            and function.__code__ is frame.f_code
            and any(value is function for value in known.values())
        ):
            return function
    return None


def _explanation(error: Exception) -> str:
    frames = [
        entry
        for (frame, _), entry in zip(
            traceback.walk_tb(error.__traceback__),
            traceback.extract_tb(error.__traceback__),
            strict=True,
        )
        if _is_users(frame)
    ]
    where = "in its forward"
    if frames:
        where = f"at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)"
    what = next(iter(str(error).splitlines()), type(error).__name__)
    return (
        f"model: torch.fx cannot trace it {where}: {what}; name the "
        "module that holds this line in leaf_modules=[...] (its class or its path; on the command "
        "line --leaf-modules PATH) to leave it unquantized, or rewrite the line without control "
        "flow on tensors"
    )


def _drop_checks(graph: fx.Graph) -> None:
    """Remove the assertions of ``graph``, and what only they needed."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            unused = node.all_input_nodes
            graph.erase_node(node)
            while unused:
                source = unused.pop()
                if source.target in _CONDITIONS and not source.users:
                    unused += source.all_input_nodes
                    graph.erase_node(source)
