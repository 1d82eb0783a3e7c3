"""From a float network's graph to its student's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from gdfq.convert.bits import BitWidths
from gdfq.convert.canonical import use_modules
from gdfq.convert.flow import float_sources, shapes_only
from gdfq.convert.model import QuantizedModel
from gdfq.convert.tables import (
    ACTIVATION_CALLS,
    ACTIVATION_MODULES,
    ARITHMETIC,
    CLAMP_BOUNDS,
    CLAMPS,
    FLOAT_ACTIVATION_CALLS,
    IN_PLACE,
    LAYER_CALLS,
    LAYERS,
    OUT_OF_PLACE,
    float_reason,
    is_float_activation,
)
from gdfq.convert.tracing import check_leaves, trace
from gdfq.coverage import CoverageReport, Operation
from gdfq.errors import InputError
from gdfq.functional import Activation
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.weight import WeightQuantizer
from gdfq.ops._checks import Ste, check_bits, check_ste


class _Converter:
    """Replaces layers and activations one by one, and notes every operation."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        bits: BitWidths,
        make_act: Callable[[int, Activation], QAct],
        ste: Ste,
    ) -> None:
        self.root = root
        self.graph = graph
        self.bits = bits
        self.make_act = make_act
        self.ste = ste
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.taken = set(self.modules) | root.state_dict().keys()
        self.replaced: dict[nn.Module, nn.Module] = {}
        self.shapes = shapes_only(graph)
        self.operations: list[Operation] = []
        # Notes that depend on the finished graph: the operation's place, and its node.
        self.arithmetic: dict[int, fx.Node] = {}
        self.readers: dict[int, fx.Node] = {}

    # ---- names and notes ----

    def paths_of(self, module: nn.Module) -> list[str]:
        return [path for path, other in self.modules.items() if other is module]

    def free_name(self, path: str) -> str:
        name, suffix = path, 0
        while name in self.taken:
            suffix += 1
            name = f"{path}_{suffix}"
        self.taken.add(name)
        return name

    def scoped_name(self, node: fx.Node, name: str) -> str:
        """A free name in the module whose forward called ``node``."""
        stack = node.meta.get("nn_module_stack") or {}
        scope = list(stack.values())[-1][0] if stack else ""
        return self.free_name(f"{scope}.{name}" if scope else name)

    def note_act(self, name: str, kind: str, bits: int) -> None:
        reason = f"output, {bits} bits per tensor"
        self.operations.append(Operation(name, kind, "quantized", reason, bits))

    def note_layer(self, node: fx.Node, name: str, kind: str, bits: int) -> None:
        reason = f"weight, {bits} bits per output channel"
        self.readers[len(self.operations)] = node
        self.operations.append(Operation(name, kind, "quantized", reason, bits))

    def note_float(self, name: str, kind: str, reason: str | None) -> None:
        """``reason``: None is none, an operation that a quantized network would want quantized."""
        self.operations.append(
            Operation(name, kind, "float", reason)
            if reason
            else Operation(name, kind, "uncovered", "no quantized counterpart; stays in float")
        )

    # ---- changes ----

    def swap(self, module: nn.Module, quantized: nn.Module) -> None:
        for path in self.paths_of(module):
            self.root.set_submodule(path, quantized)
        self.replaced[module] = quantized

    def redirect(self, node: fx.Node) -> None:
        """Have what reads ``node``'s input after it read its output: ``node`` works in place."""
        source = _input(node)
        position = {n: i for i, n in enumerate(self.graph.nodes)}
        for user in list(source.users):
            if position[user] > position[node]:
                user.replace_input_with(source, node)

    def use_act(self, node: fx.Node, name: str, bits: int, act: Activation) -> None:
        """Make ``node`` call a new quantized activation called ``name``."""
        self.root.set_submodule(name, self.make_act(bits, act))
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, (_input(node),))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def quantize_behind(self, node: fx.Node, name: str, kind: str) -> None:
        """Quantize what ``node`` computes by a quantizer called ``name``."""
        bits = self.bits.act(name)
        self.root.set_submodule(name, self.make_act(bits, "none"))
        with self.graph.inserting_after(node):
            call = self.graph.call_module(name, (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
        self.note_act(name, kind, bits)

    # ---- operations ----

    def convert_module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self.modules[path]
        kind = type(module).__name__
        if type(module) in LAYERS:
            bits = self.bits.weight(path, self.paths_of(module), key=module)
            if module not in self.replaced:
                layer = QConv2d if type(module) is nn.Conv2d else QLinear
                self.swap(module, layer.from_float(module, bits, ste=self.ste))
            self.note_layer(node, path, kind, bits)
        elif type(module) in ACTIVATION_MODULES:
            act = ACTIVATION_MODULES[type(module)]
            if module.inplace:
                self.redirect(node)
            # A module used at several places gets a range of its own at each.
            again = module in self.replaced
            name = self.free_name(path) if again else path
            bits = self.bits.act(name)
            if again:
                self.use_act(node, name, bits, act)
            else:
                self.swap(module, self.make_act(bits, act))
            self.note_act(name, kind, bits)
        elif is_float_activation(module):
            if _works_in_place(module):
                self.redirect(node)
            self.quantize_behind(node, self.free_name(f"{path}.quantizer"), kind)
        elif isinstance(module, (QConv2d, QLinear, QAct)):
            if not isinstance(module, QAct):
                self.readers[len(self.operations)] = node
            reason = "already, by the model itself"
            self.operations.append(Operation(path, kind, "quantized", reason))
        else:
            self.note_float(path, kind, float_reason(type(module)))

    def convert_call(self, node: fx.Node) -> None:
        target: Any = node.target
        kind = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        act = ACTIVATION_CALLS.get(target)
        if target in CLAMPS:
            act = CLAMP_BOUNDS.get(_bounds(node))
        in_place = (
            target in IN_PLACE
            or target in OUT_OF_PLACE
            or bool(node.kwargs.get("inplace"))
            or any(value is True for value in node.args[1:])
        )
        if node in self.shapes:
            self.note_float(node.name, kind, "computes with shapes, not with values")
        elif act is not None:
            if in_place:
                self.redirect(node)
            name = self.scoped_name(node, act)
            bits = self.bits.act(name)
            self.use_act(node, name, bits, act)
            self.note_act(name, kind, bits)
        elif OUT_OF_PLACE.get(target, target) in FLOAT_ACTIVATION_CALLS:
            if in_place:
                self.redirect(node)
                _take_out_of_place(node)
            self.quantize_behind(node, self.scoped_name(node, kind.rstrip("_")), kind)
        elif target in LAYER_CALLS:
            self.convert_layer_call(node, kind)
        elif target in ARITHMETIC:
            self.arithmetic[len(self.operations)] = node
            self.note_float(node.name, kind, ARITHMETIC[target])
        else:
            self.note_float(node.name, kind, float_reason(target))

    def convert_layer_call(self, node: fx.Node, kind: str) -> None:
        """Quantize the weight of a layer called as a function."""
        weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        assert isinstance(weight, fx.Node)
        name = self.scoped_name(node, f"{kind}_weight")
        bits = self.bits.weight(name, key=node)
        self.root.set_submodule(name, WeightQuantizer(bits, self.ste).eval())
        with self.graph.inserting_before(node):
            quantized = self.graph.call_module(name, (weight,))
        node.replace_input_with(weight, quantized)
        self.note_layer(node, name, kind, bits)

    def layers(self) -> list[nn.Module | fx.Node]:
        """What has a quantized weight, in order of execution: modules, and calls of functions."""
        found: list[nn.Module | fx.Node] = []
        for node in self.graph.nodes:
            if node.op == "call_module" and type(self.modules[str(node.target)]) in LAYERS:
                found.append(self.modules[str(node.target)])
            elif node.op == "call_function" and node.target in LAYER_CALLS:
                found.append(node)
        return found

    # ---- what the finished graph says ----

    def finish(self, quantize_inputs: bool) -> list[Operation]:
        """The notes, completed; with quantizers for what layers read in float, if asked for."""
        for place, node in self.arithmetic.items():
            what = self.operations[place].reason
            behind = any(
                user.op == "call_module"
                and isinstance(self.root.get_submodule(str(user.target)), QAct)
                for user in node.users
            )
            why = (
                "quantized by the activation behind it"
                if behind
                else "no activation behind it; the method quantizes activations only"
            )
            self.operations[place] = replace(self.operations[place], reason=f"{what}: {why}")
        sources = float_sources(self.root, self.graph)
        notes, self.operations = self.operations, []
        for place, note in enumerate(notes):
            reader = self.readers.get(place)
            source = None if reader is None else _input(reader)
            if reader is None or source not in sources:
                self.operations.append(note)
                continue
            layer = self.root.get_submodule(note.name)
            if getattr(layer, "input_quantizer", None) is not None:
                self.operations.append(note)
            elif quantize_inputs:
                self.quantize_input(reader, self.free_name(f"{note.name}.input"), note.kind)
                self.operations.append(note)
            else:
                self.operations.append(replace(note, float_input=sources[source]))
        return self.operations

    def quantize_input(self, node: fx.Node, name: str, kind: str) -> None:
        bits = self.bits.act(name)
        self.root.set_submodule(name, self.make_act(bits, "none"))
        source = _input(node)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, (source,))
        node.replace_input_with(source, call)
        reason = f"what the {kind} reads, {bits} bits per tensor"
        self.operations.append(Operation(name, "input", "quantized", reason, bits))


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    given = {**dict(zip(("input", "min", "max"), node.args, strict=False)), **node.kwargs}
    return given.get("min"), given.get("max")


@torch.no_grad()
def _works_in_place(module: nn.Module) -> bool:
    """Whether an activation module changes its input; it does not any more thereafter."""
    if not getattr(module, "inplace", False):
        return False
    # Not every class's ``inplace`` speaks of its input.
    values = torch.linspace(-4, 4, 8)
    given = values.clone()
    module(given)
    module.inplace = False  # type: ignore[assignment]
    return not torch.equal(given, values)


def _take_out_of_place(node: fx.Node) -> None:
    """Have the activation function that ``node`` calls leave its input as it is."""
    node.target = OUT_OF_PLACE.get(node.target, node.target)
    node.args = tuple(False if value is True else value for value in node.args)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}


def quantize_model(
    model: nn.Module,
    weight_bits: int = 4,
    act_bits: int = 4,
    *,
    bits: Mapping[str, Mapping[str, int]] | None = None,
    first_last_bits: int | None = None,
    quantize_inputs: bool = False,
    ste: Ste = "identity",
    momentum: float = 0.9,
    leaf_modules: Sequence[str | type] = (),
    strict: bool = False,
) -> QuantizedModel:
    """Convert a trained network into its quantized student.

    Every ``nn.Conv2d`` and ``nn.Linear``, subclasses and ``F.conv2d`` and ``F.linear`` too, gets a
    fake-quantized weight (first and last layer as well, biases stay float); every activation,
    module or function, a quantized output, over a signed range where its values have both signs.
    ReLU and ReLU6 are one operator with their quantizer; any other activation function keeps its
    place, with a quantizer behind it. A module used at several places gets one range per use.
    Sums, products (squeeze and excitation) and batch norms without an activation behind them stay
    in float, as in the paper; the coverage report names each layer that reads such values.

    Args:
        model: any network that ``torch.fx`` can trace; it is copied, never modified. A function
            with control flow on tensors, called by a ``forward``, becomes one operation.
        weight_bits: 2 to 8, per output channel.
        act_bits: 2 to 8, per tensor.
        bits: exceptions by name, ``{"layer1.*": {"weight": 8, "act": 6}, ...}``: glob patterns of
            paths in the student, each with bits of weights, of activations or of both. Of several
            patterns that match, the last wins. ``student.coverage`` lists the names; a functional
            activation has that of its module and its function (``layer1.0.relu_1``).
        first_last_bits: of the weights of the first and of the last layer, in order of execution,
            where no pattern says otherwise; 8 is customary. Activations keep ``act_bits``.
        quantize_inputs: quantize what a layer reads where that is in float still: the images,
            linear bottlenecks, sums, scaled channels. The quantizer of the layer ``conv`` is
            ``conv.input``. For engines that multiply integers everywhere.
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
    graph, tracer = trace(root, leaf_modules)
    use_modules(root, graph)
    device = next((p.device for p in root.parameters()), None)

    def make_act(act_bits: int, act: Activation) -> QAct:
        return QAct(act_bits, act, ste, momentum, device=device).eval()

    converter = _Converter(root, graph, widths, make_act, ste)
    layers = converter.layers()
    if first_last_bits is not None and layers:
        widths.fix_weights((layers[0], layers[-1]), first_last_bits)
    for node in list(graph.nodes):
        if node.op == "call_module" and tracer.is_named(
            converter.modules[str(node.target)], str(node.target)
        ):
            kind = type(converter.modules[str(node.target)]).__name__
            reason = "left in float by leaf_modules"
            converter.operations.append(Operation(str(node.target), kind, "uncovered", reason))
        elif node.op == "call_module":
            converter.convert_module(node)
        elif node.op in ("call_function", "call_method"):
            converter.convert_call(node)
    coverage = CoverageReport(converter.finish(quantize_inputs))
    widths.require_matches()
    if not coverage.counts()["quantized"]:
        raise InputError("model: has no Conv2d, Linear or activation that could be quantized")
    if strict and coverage.uncovered:
        listed = "; ".join(f"{op.name} ({op.kind}): {op.reason}" for op in coverage.uncovered)
        raise InputError(f"model: strict=True, and not everything can be quantized: {listed}")
    return QuantizedModel(root, graph, coverage)
