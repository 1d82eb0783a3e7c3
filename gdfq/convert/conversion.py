"""From a float network's graph to its student's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from gdfq.convert.bits import BitWidths
from gdfq.convert.model import QuantizedModel
from gdfq.convert.tables import (
    ACTIVATION_CALLS,
    ACTIVATION_MODULES,
    FLOAT_REASONS,
    IN_PLACE,
    LAYERS,
    SUMS,
)
from gdfq.convert.tracing import StudentTracer, check_leaves, trace
from gdfq.coverage import CoverageReport, Operation, Status
from gdfq.errors import InputError
from gdfq.functional import Activation
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.ops._checks import Ste, check_bits, check_ste


class _Converter:
    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        bits: BitWidths,
        make_act: Callable[[int, Activation], QAct],
    ) -> None:
        self.root = root
        self.graph = graph
        self.bits = bits
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

    def note(self, name: str, kind: str, status: Status, reason: str) -> None:
        self.operations.append(Operation(name, kind, status, reason))

    def note_act(self, name: str, kind: str, bits: int) -> None:
        reason = f"output, {bits} bits per tensor"
        self.operations.append(Operation(name, kind, "quantized", reason, bits))

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

    def use_act(self, node: fx.Node, name: str, bits: int, act: Activation) -> None:
        """Make ``node`` call a new quantized activation called ``name``."""
        self.root.set_submodule(name, self.make_act(bits, act))
        with self.graph.inserting_before(node):
            call = self.graph.call_module(
                name, (node.args[0] if node.args else node.kwargs["input"],)
            )
        call.meta = node.meta
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def layers(self) -> list[str]:
        """Paths of the layers whose weights are quantized, in order of execution."""
        return [
            str(node.target)
            for node in self.graph.nodes
            if node.op == "call_module" and type(self.modules[str(node.target)]) in LAYERS
        ]


def quantize_model(
    model: nn.Module,
    weight_bits: int = 4,
    act_bits: int = 4,
    *,
    bits: Mapping[str, Mapping[str, int]] | None = None,
    first_last_bits: int | None = None,
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
        bits: exceptions by name, ``{"layer1.*": {"weight": 8, "act": 6}, ...}``: glob patterns of
            paths in the student, each with bits of weights, of activations or of both. Of several
            patterns that match, the last wins. ``student.coverage`` lists the names; a functional
            activation has that of its module and its function (``layer1.0.relu_1``).
        first_last_bits: of the weights of the first and of the last layer, in order of execution,
            where no pattern says otherwise; 8 is customary. Activations keep ``act_bits``.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        momentum: of the activation ranges' moving average, in [0, 1).
        leaf_modules: classes or paths of modules not to trace into; they stay in float.
        strict: raise if an operation that should be quantized cannot be.

    Returns:
        The student, in evaluation mode, its activation ranges not yet set. ``student.coverage``
        says of each operation whether it is quantized, and why not.

    Raises:
        InputError: an argument is out of range, a pattern matches nothing, the network cannot be
            traced, nothing in it can be quantized, or ``strict`` and something is uncovered.

    Source: Xu et al., ECCV 2020, section 3.3.
    """
    widths = BitWidths(weight_bits, act_bits, {} if bits is None else bits)
    if first_last_bits is not None:
        check_bits(first_last_bits, "first_last_bits")
    check_ste(ste)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be an nn.Module, got {type(model).__name__}")
    root = copy.deepcopy(model).eval()
    check_leaves(root, leaf_modules)
    tracer = StudentTracer(leaf_modules)
    graph = trace(root, tracer)
    device = next((p.device for p in root.parameters()), None)

    def make_act(act_bits: int, act: Activation) -> QAct:
        return QAct(act_bits, act, ste, momentum, device=device).eval()

    converter = _Converter(root, graph, widths, make_act)
    layers = converter.layers()
    if first_last_bits is not None and layers:
        widths.fix_weights((layers[0], layers[-1]), first_last_bits)
    for node in list(graph.nodes):
        if node.op == "call_module" and tracer.is_named(
            converter.modules[str(node.target)], str(node.target)
        ):
            kind = type(converter.modules[str(node.target)]).__name__
            converter.note(str(node.target), kind, "uncovered", "left in float by leaf_modules")
        elif node.op == "call_module":
            _convert_module(converter, node, ste)
        elif node.op in ("call_function", "call_method"):
            _convert_call(converter, node)
    widths.require_matches()
    coverage = CoverageReport([converter.explain_sum(op) for op in converter.operations])
    if not coverage.counts()["quantized"]:
        raise InputError("model: has no Conv2d, Linear or ReLU that could be quantized")
    if strict and coverage.uncovered:
        listed = "; ".join(f"{op.name} ({op.kind}): {op.reason}" for op in coverage.uncovered)
        raise InputError(f"model: strict=True, and not everything can be quantized: {listed}")
    return QuantizedModel(root, graph, coverage)


def _convert_module(converter: _Converter, node: fx.Node, ste: Ste) -> None:
    path = str(node.target)
    module = converter.modules[path]
    kind = type(module).__name__
    if type(module) in LAYERS:
        bits = converter.bits.weight(path, converter.paths_of(module))
        if module not in converter.replaced:
            layer = QConv2d if type(module) is nn.Conv2d else QLinear
            converter.swap(module, layer.from_float(module, bits, ste=ste))
        reason = f"weight, {bits} bits per output channel"
        converter.operations.append(Operation(path, kind, "quantized", reason, bits))
    elif type(module) in ACTIVATION_MODULES:
        act = ACTIVATION_MODULES[type(module)]
        if module.inplace:
            converter.redirect(node)
        # A module used at several places gets a range of its own at each.
        again = module in converter.replaced
        name = converter.free_name(path) if again else path
        bits = converter.bits.act(name)
        if again:
            converter.use_act(node, name, bits, act)
        else:
            converter.swap(module, converter.make_act(bits, act))
        converter.note_act(name, kind, bits)
    elif isinstance(module, (QConv2d, QLinear, QAct)):
        converter.note(path, kind, "quantized", "already, by the model itself")
    elif type(module) in FLOAT_REASONS:
        converter.note(path, kind, "float", FLOAT_REASONS[type(module)])
    else:
        converter.note(path, kind, "uncovered", "no quantized counterpart; stays in float")


def _convert_call(converter: _Converter, node: fx.Node) -> None:
    target: Any = node.target
    kind = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target in ACTIVATION_CALLS:
        stack = node.meta.get("nn_module_stack") or {}
        scope = list(stack.values())[-1][0] if stack else ""
        act = ACTIVATION_CALLS[target]
        if target in IN_PLACE or node.kwargs.get("inplace") or True in node.args[1:]:
            converter.redirect(node)
        name = converter.free_name(f"{scope}.{act}" if scope else act)
        bits = converter.bits.act(name)
        converter.use_act(node, name, bits, act)
        converter.note_act(name, kind, bits)
    elif target in FLOAT_REASONS:
        converter.note(node.name, kind, "float", FLOAT_REASONS[target])
    elif target in SUMS:
        converter.sums[node.name] = node
        converter.note(node.name, kind, "float", "")
    else:
        converter.note(node.name, kind, "uncovered", "no quantized counterpart; stays in float")
