"""Tracing of a network into a graph."""

from __future__ import annotations

import inspect
import operator
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.convert.code import Code
from gdfq.convert.copying import TAKEN
from gdfq.convert.flow import value_type
from gdfq.convert.tables import LAYERS, SHAPE_METHODS, is_float_activation
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.copying import copied
from gdfq.nn.given import one_line

_NOT_USERS = tuple(f"{Path(path).parent / '_'}"[:-1] for path in (torch.__file__, __file__))
_CONDITIONS = (
    getattr, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
    operator.ge, operator.mod, operator.and_, operator.or_, *SHAPE_METHODS,
)  # fmt: skip
# While fx traces, it replaces methods of nn.Module in the whole process.
_TRACING = threading.RLock()


def _recorded(name: str) -> Callable[[Any, Any], Any]:
    """Record ``x += y`` as an in-place operation; fx itself records ``x + y``."""
    plain = name.removeprefix("i")

    def method(self: Any, other: Any) -> Any:
        target = getattr(operator, name)
        return self.tracer.create_proxy("call_function", target, (self, other), {}, plain)

    return method


class _Value(fx.Proxy):
    """A value of the traced network, with in-place operators."""

    __iadd__ = _recorded("iadd")
    __isub__ = _recorded("isub")
    __imul__ = _recorded("imul")
    __itruediv__ = _recorded("itruediv")
    __ifloordiv__ = _recorded("ifloordiv")
    __imod__ = _recorded("imod")
    __ipow__ = _recorded("ipow")
    __iand__ = _recorded("iand")
    __ior__ = _recorded("ior")
    __ixor__ = _recorded("ixor")

    tracer: StudentTracer

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    @property
    def kind(self) -> type | None:
        """Class of the value, if it is known."""
        return self.tracer.kinds.get(self.node)

    def __getattr__(self, k: str) -> Any:
        if k == "node" or (not hasattr(Tensor, k) and self.kind is Tensor):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return _Attribute(self, k)


class _Attribute(fx.proxy.Attribute, _Value):
    """An attribute of a value, recorded when it is used."""


class StudentTracer(fx.Tracer):
    """Tracer that keeps quantized layers, activations and the user's leaf modules as operations.

    Args:
        leaf_modules: classes and paths of modules to keep as operations.
        functions: functions to keep as operations.
        whole: trace calls of modules including their hooks; False traces only ``forward``, for
            students.
    """

    def __init__(
        self,
        leaf_modules: Sequence[str | type] = (),
        functions: Sequence[Callable[..., Any]] = (),
        whole: bool = False,
    ) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.leaf_names = {leaf for leaf in leaf_modules if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaf_modules if isinstance(leaf, type))
        self.whole = whole
        self.thread = threading.get_ident()
        self.called: set[str] = set()
        self.kinds: dict[fx.Node, type | None] = {}

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Return the graph of ``root``, with code for modules and tensors of any name."""
        graph = super().trace(root, concrete_args)
        graph.set_codegen(Code())
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is kept as one operation."""
        if self.is_named(m, module_qualified_name):
            return True
        # The instance's forward, or a weight computed by a hook, differs from the class's.
        if "forward" in m.__dict__ or (type(m) in LAYERS and m._parameters.get("weight") is None):
            return False
        return (
            isinstance(m, (QConv2d, QLinear, QAct))
            or is_float_activation(m)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the value that ``node`` computes."""
        self.kinds[node] = value_type(self.root, node, self.kinds)
        return _Value(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the network's call including its hooks, and its arguments without defaults."""
        if not self.whole:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        root: Any = self.root
        parameters = [*inspect.signature(root.forward).parameters.values()]
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in by_place if p.default is p.empty] or [p.name for p in by_place[:1]]
        values = [self.create_proxy("placeholder", name, (), {}) for name in names or ["x"]]
        self.called.add("")
        own_call = type(root).__call__ is not nn.Module.__call__
        return root.__call__ if own_call else root._call_impl, values

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``m`` or record its call; its hooks are traced like its forward."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(m)
        except NameError:
            # Created during the call, such as a slice of an nn.Sequential.
            return forward(*args, **kwargs)
        self.called.add(path)
        hooked = m._forward_hooks or m._forward_pre_hooks
        own = hooked and self.whole and not self.is_named(m, path)
        if not own or not self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        with _replaced(
            m.__dict__, "forward", lambda *a, **k: self.create_proxy("call_module", path, a, k)
        ):
            return forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a module's attribute, recorded if it is a parameter."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_named(self, module: nn.Module, path: str) -> bool:
        """Whether ``module`` is one of the user's leaf modules."""
        return path in self.leaf_names or isinstance(module, self.leaf_types)


def check_leaves(root: nn.Module, leaf_modules: Sequence[str | type]) -> None:
    """Raise InputError for the first entry that is neither a path nor a class of modules."""
    kinds = "a list, each entry a path or an nn.Module class"
    if isinstance(leaf_modules, str) or not isinstance(leaf_modules, Collection):
        raise InputError(f"leaf_modules: must be {kinds}, got {leaf_modules!r}")
    paths = {path for path, _ in root.named_modules(remove_duplicate=False)}
    for leaf in leaf_modules:
        if isinstance(leaf, str) and leaf not in paths:
            raise InputError(f"leaf_modules: the model has no module {leaf!r}")
        if not isinstance(leaf, str) and not (
            isinstance(leaf, type) and issubclass(leaf, nn.Module)
        ):
            raise InputError(f"leaf_modules: must be {kinds}, got the entry {leaf!r}")


def trace(root: nn.Module, leaf_modules: Sequence[str | type]) -> tuple[fx.Graph, StudentTracer]:
    """Trace ``root`` without its assertions.

    A function with control flow on tensors or shapes, called by a ``forward``, becomes one
    operation. Arguments with defaults keep them. Forward hooks become part of the graph and are
    removed from ``root``; constant tensors become buffers of ``root``.

    Raises:
        InputError: a line cannot be traced; the message names it, and all modules that must become
            leaf modules for the rest to be traced.
    """
    functions: list[Callable[..., Any]] = []
    failed: list[Exception] = []
    holders: list[str] = []  # modules with lines that cannot be traced
    while True:
        tracer = StudentTracer([*leaf_modules, *holders], functions, whole=True)
        # A forward may store values in its module, so trace a copy and discard it.
        traced = copied(root, share=True)
        for module in traced.modules():
            module._backward_hooks.clear()  # they would look for tensors among recorded values
        try:
            with _TRACING, _as_with_tensors(traced):
                graph = tracer.trace(traced)
        except Exception as error:
            frames = [
                frame for frame, _ in traceback.walk_tb(error.__traceback__) if _is_users(frame)
            ]
            function = _untraceable_function(frames)
            if function is not None and function not in functions:
                functions.append(function)
                continue
            holder = _holder(error, traced)
            if not holder or holder in holders:
                raise InputError(_explanation(error, [])) from error
            failed.append(error)
            holders.append(holder)
        else:
            break
    if failed:
        raise InputError(_explanation(failed[0], holders)) from failed[0]
    _drop_checks(graph)
    for path in tracer.called:
        module = root.get_submodule(path)
        if tracer.is_named(module, path):
            continue
        for hooks in _forward_hooks(module):
            hooks.clear()
        if not tracer.is_leaf_module(module, path):
            module.__dict__.pop("forward", None)
    _keep_constants(root, traced, graph)
    return graph, tracer


def _forward_hooks(module: nn.Module) -> list[Any]:
    return [
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
    ]


def _keep_constants(root: nn.Module, traced: nn.Module, graph: fx.Graph) -> None:
    """Register tensors that ``graph`` reads, and no state holds, as buffers of ``root``."""
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        owner, value = root.get_submodule(path), getattr(traced.get_submodule(path), name)
        if not isinstance(value, Tensor) or name in owner._parameters:
            continue
        if name in owner._buffers:
            if not torch.equal(value, getattr(owner, name)):
                raise InputError(
                    f"model: its forward changes the buffer {node.target!r}, which it computes "
                    "with, in evaluation mode; a student would not: change it in training alone"
                )
            continue
        owner.__dict__.pop(name, None)
        while hasattr(owner, name) or (not path and name in TAKEN):
            name += "_"
        owner.register_buffer(name, value.detach().clone())
        node.target = f"{path}.{name}" if path else name


@contextmanager
def _replaced(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    before = {name: names[name]} if name in names else {}
    names[name] = value
    try:
        yield
    finally:
        del names[name]
        names.update(before)


@contextmanager
def _as_with_tensors(root: nn.Module) -> Iterator[None]:
    """Make ``isinstance`` and ``type`` in the forwards of ``root`` see recorded values as tensors.

    Also disables the check of input dimensions in batch norms.
    """
    modules = [*root.modules()]
    with ExitStack() as stack:
        for norm in modules:
            if isinstance(norm, _BatchNorm):
                stack.enter_context(
                    _replaced(norm.__dict__, "_check_input_dim", lambda input: None)
                )
        stack.enter_context(_replaced(torch.__dict__, "is_tensor", _is_tensor))
        for names in _users_globals(modules):
            for name, value in (("isinstance", _isinstance), ("type", _Type)):
                if name not in names:
                    stack.enter_context(_replaced(names, name, value))
        yield


def _users_globals(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Return the global namespaces of forwards and hooks of ``modules``."""
    found: dict[int, dict[str, Any]] = {}
    for module in modules:
        functions = [c.__dict__.get("forward") for c in type(module).__mro__]
        functions += [module.__dict__.get("forward")]
        functions += [hook for hooks in _forward_hooks(module) for hook in hooks.values()]
        for function in functions:
            plain = inspect.unwrap(getattr(function, "__func__", function))  # type: ignore[arg-type]
            if isinstance(plain, FunctionType) and not _is_torchs(plain.__code__.co_filename):
                found[id(plain.__globals__)] = plain.__globals__
    return [*found.values()]


def _isinstance(value: Any, classes: Any) -> bool:
    if isinstance(value, classes):
        return True
    return isinstance(value, _Value) and value.kind is not None and issubclass(value.kind, classes)


class _TypeOfTypes(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)


class _Type(metaclass=_TypeOfTypes):
    """``type`` that returns Tensor for a recorded tensor."""

    def __new__(cls, value: Any, *rest: Any, **options: Any) -> Any:
        if rest or options or not isinstance(value, _Value):
            return type(value, *rest, **options)
        return value.kind or type(value)


def _is_tensor(obj: Any) -> bool:
    return _isinstance(obj, Tensor)


def _is_torchs(filename: str) -> bool:
    return filename.startswith(_NOT_USERS)


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith("<") and not _is_torchs(name)


def _untraceable_function(frames: list[FrameType]) -> FunctionType | None:
    """Return the innermost function in the failed call that could be kept as one operation."""
    forwards = [i for i, frame in enumerate(frames) if frame.f_code.co_name == "forward"]
    if not forwards:
        return None
    # fx replaces functions only in the globals of the modules' forwards.
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


def _holder(error: Exception, root: nn.Module) -> str:
    """Return the path of the module whose forward cannot be traced; "" for the network itself."""
    paths = {module: path for path, module in root.named_modules()}
    # A hook has no ``self``, but PyTorch's call of it has.
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    holders = [
        paths[caller] for caller in callers if isinstance(caller, nn.Module) and caller in paths
    ]
    return holders[-1] if holders else ""


def _explanation(error: Exception, holders: list[str]) -> str:
    """Explain what prevents tracing and what to do; ``holders``: possible leaf modules."""
    found = [
        entry
        for (frame, _), entry in zip(
            traceback.walk_tb(error.__traceback__),
            traceback.extract_tb(error.__traceback__),
            strict=True,
        )
        if _is_users(frame)
    ]
    where = "in its forward"
    if found:
        where = f"at {found[-1].filename}:{found[-1].lineno} (`{found[-1].line}`)"
    rewrite = "rewrite the line"
    if isinstance(error, fx.proxy.TraceError):
        rewrite += " without control flow on tensors"
    if len(holders) > 1:
        advice = (
            f"name the modules that hold such lines in leaf_modules={holders} (their classes or "
            f"their paths; on the command line --leaf-modules PATH for each) to leave them "
            f"unquantized, or {rewrite}"
        )
    elif holders:
        advice = (
            f"name the module that holds this line in leaf_modules={holders} (its class or "
            f"its path; on the command line --leaf-modules PATH) to leave it unquantized, "
            f"or {rewrite}"
        )
    else:
        advice = (
            f"{rewrite}, or move it into a module of its own, which leaf_modules=[...] (on the "
            "command line --leaf-modules PATH) can leave unquantized"
        )
    problem = one_line(error)
    if isinstance(error, NameError) and problem.endswith("is not a member of this module"):
        advice = (
            "it computes with a layer that is not the network's own: make that a part of the "
            "network (nn.ModuleList), and read it from self or from a hook's module, not from a "
            "global variable, which a copy of the network shares"
        )
    for kind in (_Value, _Attribute):
        problem = problem.replace(f"'{kind.__name__}' object", "'Tensor' object")
    return f"model: torch.fx cannot trace it {where}: {problem}; {advice}"


def _drop_checks(graph: fx.Graph) -> None:
    """Remove assertions from ``graph``, and operations used only by them."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            unused = node.all_input_nodes
            graph.erase_node(node)
            while unused:
                source = unused.pop()
                if source.target in _CONDITIONS and not source.users:
                    unused += source.all_input_nodes
                    graph.erase_node(source)
