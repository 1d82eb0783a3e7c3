"""A network as a graph."""

from __future__ import annotations

import inspect
import operator
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
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
# fx replaces methods of nn.Module, of the whole process, while it traces.
_TRACING = threading.RLock()


def _recorded(name: str) -> Callable[[Any, Any], Any]:
    """``x += y`` and the like, recorded as what changes ``x``; fx itself records ``x + y``."""
    plain = name.removeprefix("i")

    def method(self: Any, other: Any) -> Any:
        target = getattr(operator, name)
        return self.tracer.create_proxy("call_function", target, (self, other), {}, plain)

    return method


class _Value(fx.Proxy):
    """A value of the traced network that knows operators in place."""

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
        """The class of the value, where that is known."""
        return self.tracer.kinds.get(self.node)

    def __getattr__(self, k: str) -> Any:
        if k == "node" or (not hasattr(Tensor, k) and self.kind is Tensor):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return _Attribute(self, k)


class _Attribute(fx.proxy.Attribute, _Value):
    """An attribute of a value, which is recorded where it is used."""


class StudentTracer(fx.Tracer):
    """Does not trace into quantized layers, activations, nor what the user named.

    Args:
        leaf_modules: classes and paths of modules that are one operation each.
        functions: that are one operation each.
        whole: trace the network's call and those of its modules, hooks and all; without, its
            ``forward``, as of a student that is read from a file.
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
        """The graph of ``root``, whose code may read modules and tensors of any name."""
        graph = super().trace(root, concrete_args)
        graph.set_codegen(Code())
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is called as one operation."""
        if self.is_named(m, module_qualified_name):
            return True
        # A forward of its own instance, or a weight that a hook computes: not what the class says.
        if "forward" in m.__dict__ or (type(m) in LAYERS and m._parameters.get("weight") is None):
            return False
        return (
            isinstance(m, (QConv2d, QLinear, QAct))
            or is_float_activation(m)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The value that ``node`` computes."""
        self.kinds[node] = value_type(self.root, node, self.kinds)
        return _Value(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The network's call, hooks and all, and its arguments: those that have no default."""
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
        """Call ``m``, or record its call, between its hooks, which are traced as its forward is."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(m)
        except NameError:
            # It is made in the call, such as a slice of an nn.Sequential.
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
        """A module's attribute, recorded if it is a parameter."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

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

    The error also names every module that must be left out for the rest to be traced.

    A function with control flow on tensors or their shapes, called by a module's ``forward``,
    becomes one operation of the graph. Arguments with defaults keep these. Forward hooks are part
    of the graph, and taken from ``root``; tensors that are constants become its buffers.
    """
    functions: list[Callable[..., Any]] = []
    failed: list[Exception] = []
    holders: list[str] = []  # of lines that cannot be traced
    while True:
        tracer = StudentTracer([*leaf_modules, *holders], functions, whole=True)
        # What a forward keeps of its input stays in a copy, which is thrown away.
        traced = copied(root, share=True)
        for module in traced.modules():
            module._backward_hooks.clear()  # which would look for tensors among what is recorded
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
            continue  # it is called as it is
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
    """Make buffers of ``root`` of the tensors that ``graph`` reads and that are in no state."""
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
    """Within, ``names[name]`` is ``value``."""
    before = {name: names[name]} if name in names else {}
    names[name] = value
    try:
        yield
    finally:
        del names[name]
        names.update(before)


@contextmanager
def _as_with_tensors(root: nn.Module) -> Iterator[None]:
    """Within, the code of ``root``'s forwards takes recorded values for the tensors they stand for.

    Batch norms do not look at their input's dimensions, as subclasses' forwards do.
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
    """The namespaces of the functions that run when ``modules`` are called."""
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
    """``type``, for which a recorded tensor is a tensor."""

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


def _holder(error: Exception, root: nn.Module) -> str:
    """The path of the module in whose forward tracing failed; "" where that is the network."""
    paths = {module: path for path, module in root.named_modules()}
    # A hook of a module has no ``self``; its call, in PyTorch's code, has.
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    holders = [
        paths[caller] for caller in callers if isinstance(caller, nn.Module) and caller in paths
    ]
    return holders[-1] if holders else ""


def _explanation(error: Exception, holders: list[str]) -> str:
    """What prevents tracing, and what to do; ``holders``: the modules that can be left out."""
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
