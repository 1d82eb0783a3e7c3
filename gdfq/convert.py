"""``quantize_model``: a float network in, its quantized student out."""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gdfq.coverage import CoverageReport, Operation, Status
from gdfq.errors import InputError
from gdfq.functional import Activation
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.statistics import BATCH_NORMS
from gdfq.ops._checks import Ste, check_bits, check_ste

# ---- what is known about operations: three tables ----

ACTIVATION_MODULES: dict[type, Activation] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
ACTIVATION_CALLS: dict[Any, Activation] = {
    F.relu: "relu",
    F.relu_: "relu",
    F.relu6: "relu6",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
}

IN_PLACE = (F.relu_, torch.relu_, "relu_")

_POOLS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.adaptive_avg_pool1d, torch.mean, "mean",
)  # fmt: skip
_MOVES = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.ChannelShuffle, nn.PixelShuffle, nn.ZeroPad2d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d, F.pad,
    torch.flatten, torch.reshape, torch.cat, torch.concat, torch.chunk, torch.split, torch.stack,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, getattr, operator.getitem,
    operator.floordiv, "flatten", "reshape", "view", "size", "dim", "chunk", "split", "permute",
    "transpose", "contiguous", "squeeze", "unsqueeze", "detach", "clone",
)  # fmt: skip
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
FLOAT_REASONS: dict[Any, str] = {
    **dict.fromkeys(_POOLS, "pooling: works on values that are quantized already"),
    **dict.fromkeys(_MOVES, "moves values, computes none"),
    **dict.fromkeys(
        BATCH_NORMS, "batch norm: a per-channel scale and shift with frozen statistics"
    ),
}


# ---- tracing ----


class _Tracer(fx.Tracer):
    def __init__(self, leaf_modules: Sequence[str | type] = ()) -> None:
        super().__init__()
        self.leaf_names = {leaf for leaf in leaf_modules if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaf_modules if isinstance(leaf, type))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (QConv2d, QLinear, QAct))
            or self.is_named(m, module_qualified_name)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def is_named(self, module: nn.Module, path: str) -> bool:
        """Whether the user asked to leave ``module`` as it is."""
        return path in self.leaf_names or isinstance(module, self.leaf_types)


def _check_leaves(root: nn.Module, leaf_modules: Sequence[str | type]) -> None:
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


def _trace(root: nn.Module, tracer: _Tracer) -> fx.Graph:
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


# ---- the student ----


class QuantizedModel(fx.GraphModule):
    """A converted network: the teacher's module tree, run by the traced graph.

    ``coverage`` is its :class:`~gdfq.coverage.CoverageReport`. ``state_dict`` has every name of
    the teacher's, plus the activation ranges. Copies and pickles like any module.
    """

    coverage: CoverageReport

    def __init__(self, root: nn.Module, graph: fx.Graph, coverage: CoverageReport) -> None:
        super().__init__(root, graph, class_name=type(self).__name__)
        # GraphModule keeps what the graph calls; the whole tree keeps every name.
        self._modules = root._modules
        self._parameters = root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.coverage = coverage
        self.training = root.training

    def _tree(self) -> nn.Module:
        root = nn.Module()
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(root, name, self.__dict__[name])
        root.training = self.training
        return root

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModel:
        root, graph = copy.deepcopy((self._tree(), self.graph), memo)
        return QuantizedModel(root, graph, self.coverage)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._tree(), self.coverage, super().__reduce__())


def _rebuild(root: nn.Module, coverage: CoverageReport, reduced: Any) -> QuantizedModel:
    make, arguments = reduced
    return QuantizedModel(root, make(*arguments).graph, coverage)


class _Converter:
    def __init__(self, root: nn.Module, graph: fx.Graph, make_act: Callable[..., QAct]) -> None:
        self.root = root
        self.graph = graph
        self.make_act = make_act
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.operations: list[Operation] = []
        self.taken = set(self.modules)
        self.replaced: dict[nn.Module, nn.Module] = {}
        self.sums: dict[str, fx.Node] = {}

    def paths_of(self, module: nn.Module) -> list[str]:
        return [path for path, other in self.modules.items() if other is module]

    def swap(self, module: nn.Module, quantized: nn.Module) -> None:
        for path in self.paths_of(module):
            self.root.set_submodule(path, quantized)
        self.replaced[module] = quantized

    def note(self, node: fx.Node, kind: str, status: Status, reason: str) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        self.operations.append(Operation(name, kind, status, reason))

    def explain_sum(self, operation: Operation) -> Operation:
        """``operation``; if it is a sum, with the reason that its users, known by now, give."""
        if operation.name not in self.sums:
            return operation
        users = self.sums[operation.name].users
        if any(
            user.op == "call_module" and isinstance(self.root.get_submodule(str(user.target)), QAct)
            for user in users
        ):
            reason = "a sum: quantized by the activation behind it"
        else:
            reason = "a sum without an activation: the method quantizes those of ReLUs only"
        return replace(operation, reason=reason)

    def free_name(self, path: str) -> str:
        name, suffix = path, 0
        while name in self.taken:
            suffix += 1
            name = f"{path}_{suffix}"
        self.taken.add(name)
        return name

    def redirect(self, node: fx.Node) -> None:
        """Have what reads ``node``'s input after it read its output: ``node`` works in place."""
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        position = {n: i for i, n in enumerate(self.graph.nodes)}
        for user in list(source.users):
            if position[user] > position[node]:
                user.replace_input_with(source, node)

    def use_act(self, node: fx.Node, name: str, act: Activation) -> QAct:
        """Make ``node`` call a new quantized activation called ``name``."""
        quantizer = self.make_act(act)
        self.root.set_submodule(name, quantizer)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(
                name, (node.args[0] if node.args else node.kwargs["input"],)
            )
        call.meta = node.meta
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)
        return quantizer


def quantize_model(
    model: nn.Module,
    weight_bits: int = 4,
    act_bits: int = 4,
    *,
    ste: Ste = "identity",
    momentum: float = 0.9,
    leaf_modules: Sequence[str | type] = (),
    strict: bool = False,
) -> QuantizedModel:
    """Convert a trained network into its quantized student.

    Every ``nn.Conv2d`` and ``nn.Linear`` gets a fake-quantized weight (first and last layer too,
    biases stay float), every ReLU and ReLU6, module or function, a quantized output. A module used
    at several places gets one activation range per use.

    Args:
        model: any network that ``torch.fx`` can trace; it is copied, never modified.
        weight_bits: 2 to 8, per output channel.
        act_bits: 2 to 8, per tensor.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        momentum: of the activation ranges' moving average, in [0, 1).
        leaf_modules: classes or paths of modules not to trace into; they stay in float.
        strict: raise if an operation that should be quantized cannot be.

    Returns:
        The student, in evaluation mode, its activation ranges not yet set. ``student.coverage``
        says of each operation whether it is quantized, and why not.

    Raises:
        InputError: an argument is out of range, the network cannot be traced, nothing in it can
            be quantized, or ``strict`` and something is uncovered.

    Source: Xu et al., ECCV 2020, section 3.3.
    """
    check_bits(weight_bits, "weight_bits")
    check_bits(act_bits, "act_bits")
    check_ste(ste)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be an nn.Module, got {type(model).__name__}")
    root = copy.deepcopy(model).eval()
    _check_leaves(root, leaf_modules)
    tracer = _Tracer(leaf_modules)
    graph = _trace(root, tracer)
    device = next((p.device for p in root.parameters()), None)

    def make_act(act: Activation) -> QAct:
        return QAct(act_bits, act, ste, momentum, device=device).eval()

    converter = _Converter(root, graph, make_act)
    for node in list(graph.nodes):
        if node.op == "call_module" and tracer.is_named(
            converter.modules[str(node.target)], str(node.target)
        ):
            kind = type(converter.modules[str(node.target)]).__name__
            converter.note(node, kind, "uncovered", "left in float by leaf_modules")
        elif node.op == "call_module":
            _convert_module(converter, node, weight_bits, act_bits, ste)
        elif node.op in ("call_function", "call_method"):
            _convert_call(converter, node, act_bits)
    coverage = CoverageReport([converter.explain_sum(op) for op in converter.operations])
    if not coverage.counts()["quantized"]:
        raise InputError("model: has no Conv2d, Linear or ReLU that could be quantized")
    if strict and coverage.uncovered:
        listed = "; ".join(f"{op.name} ({op.kind}): {op.reason}" for op in coverage.uncovered)
        raise InputError(f"model: strict=True, and not everything can be quantized: {listed}")
    return QuantizedModel(root, graph, coverage)


def _convert_module(
    converter: _Converter, node: fx.Node, weight_bits: int, act_bits: int, ste: Ste
) -> None:
    path = str(node.target)
    module = converter.modules[path]
    kind = type(module).__name__
    if type(module) in (nn.Conv2d, nn.Linear):
        if module not in converter.replaced:
            layer = QConv2d if type(module) is nn.Conv2d else QLinear
            converter.swap(module, layer.from_float(module, weight_bits, ste=ste))
        converter.note(node, kind, "quantized", f"weight, {weight_bits} bits per output channel")
    elif type(module) in ACTIVATION_MODULES:
        act = ACTIVATION_MODULES[type(module)]
        if module.inplace:
            converter.redirect(node)
        if module in converter.replaced:
            name = converter.free_name(path)
            converter.use_act(node, name, act)
            reason = f"output, {act_bits} bits, with a range of its own at {name}"
        else:
            converter.swap(module, converter.make_act(act))
            reason = f"output, {act_bits} bits per tensor"
        converter.note(node, kind, "quantized", reason)
    elif isinstance(module, (QConv2d, QLinear, QAct)):
        converter.note(node, kind, "quantized", "already, by the model itself")
    elif type(module) in FLOAT_REASONS:
        converter.note(node, kind, "float", FLOAT_REASONS[type(module)])
    else:
        converter.note(node, kind, "uncovered", "no quantized counterpart; stays in float")


def _convert_call(converter: _Converter, node: fx.Node, act_bits: int) -> None:
    target: Any = node.target
    kind = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target in ACTIVATION_CALLS:
        stack = node.meta.get("nn_module_stack") or {}
        scope = list(stack.values())[-1][0] if stack else ""
        act = ACTIVATION_CALLS[target]
        if target in IN_PLACE or node.kwargs.get("inplace") or True in node.args[1:]:
            converter.redirect(node)
        name = converter.free_name(f"{scope}.{act}" if scope else act)
        converter.note(node, kind, "quantized", f"output, {act_bits} bits per tensor, at {name}")
        converter.use_act(node, name, act)
    elif target in FLOAT_REASONS:
        converter.note(node, kind, "float", FLOAT_REASONS[target])
    elif target in SUMS:
        converter.sums[node.name] = node
        converter.note(node, kind, "float", "")
    else:
        converter.note(node, kind, "uncovered", "no quantized counterpart; stays in float")
