"""Replacement of a graph's operations by quantized counterparts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import fx, nn

from gdfq.convert.bits import BitWidths
from gdfq.convert.coverage import Operation
from gdfq.convert.flow import float_sources, shapes_only
from gdfq.convert.tables import (
    ACTIVATION_CALLS,
    ACTIVATION_MODULES,
    ARITHMETIC,
    CLAMP_BOUNDS,
    CLAMPS,
    DRAWS,
    DROPOUTS,
    FLOAT_ACTIVATION_CALLS,
    LAYER_CALLS,
    LAYERS,
    float_reason,
    is_float_activation,
)
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.quantization import Quantization
from gdfq.nn.weight import WeightQuantizer
from gdfq.ops._checks import Activation


class Converter:
    """Replaces layers and activations one by one, and records every operation.

    Args:
        root: whose modules are replaced.
        graph: of ``root``.
        how: settings of the quantizers.
        bits: bit widths by name; those in ``how`` are its defaults.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        how: Quantization,
        bits: BitWidths,
    ) -> None:
        self.root = root
        self.graph = graph
        self.how = how
        self.bits = bits
        self.device = next((p.device for p in root.parameters()), None)
        self.modules = dict(root.named_modules(remove_duplicate=False))
        tensors = chain(root.named_parameters(), root.named_buffers())
        self.taken = {*self.modules, *(name for name, _ in tensors)}
        self.replaced: dict[nn.Module, nn.Module] = {}
        self.shapes = shapes_only(graph)
        self.operations: list[Operation] = []
        # Indices and nodes of operations whose record depends on the finished graph.
        self.arithmetic: dict[int, fx.Node] = {}
        self.readers: dict[int, fx.Node] = {}

    # ---- names and records ----

    def paths_of(self, module: nn.Module) -> list[str]:
        """Return all paths of ``module``."""
        return [path for path, other in self.modules.items() if other is module]

    def free_name(self, path: str) -> str:
        """Return ``path``, with a number appended if it is taken."""
        name, suffix = path, 0
        while name in self.taken:
            suffix += 1
            name = f"{path}_{suffix}"
        self.taken.add(name)
        return name

    def scope_of(self, node: fx.Node) -> str:
        """Return the path of the module whose forward called ``node``."""
        stack = node.meta.get("nn_module_stack") or {}
        return list(stack.values())[-1][0] if stack else ""

    def scoped_name(self, node: fx.Node, name: str) -> str:
        """Return a free name in the module whose forward called ``node``."""
        scope = self.scope_of(node)
        return self.free_name(f"{scope}.{name}" if scope else name)

    @property
    def per_act(self) -> str:
        """Granularity of activation ranges, in words."""
        dynamic = self.how.is_dynamic("act")
        return "per sample and channel, on the fly" if dynamic else "per tensor"

    def note_act(self, name: str, kind: str, bits: int) -> None:
        """Record a quantized output."""
        reason = f"output, {bits} bits {self.per_act}"
        self.operations.append(Operation(name, kind, "quantized", reason, bits))

    def note_layer(self, node: fx.Node, name: str, kind: str, bits: int, per_kernel: bool) -> None:
        """Record a quantized weight of the layer that ``node`` calls."""
        reason = f"weight, {bits} bits per {'kernel' if per_kernel else 'output channel'}"
        self.readers[len(self.operations)] = node
        self.operations.append(Operation(name, kind, "quantized", reason, bits))

    def note_float(self, name: str, kind: str, reason: str | None) -> None:
        """Record a float operation; without ``reason``, one that should be quantized."""
        self.operations.append(
            Operation(name, kind, "float", reason)
            if reason
            else Operation(name, kind, "uncovered", "no quantized counterpart; stays in float")
        )

    # ---- changes of the graph ----

    def make_act(self, bits: int, act: Activation) -> QAct:
        """Create a quantized activation."""
        return QAct(bits, act, device=self.device, **self.how.of_acts).eval()

    def swap(self, module: nn.Module, quantized: nn.Module) -> None:
        """Replace ``module`` by ``quantized``."""
        for path in self.paths_of(module):
            self.root.set_submodule(path, quantized)
        self.replaced[module] = quantized

    def use_act(self, node: fx.Node, name: str, bits: int, act: Activation) -> None:
        """Replace ``node`` by a call of a new quantized activation ``name``."""
        self.root.set_submodule(name, self.make_act(bits, act))
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, (_input(node),))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def quantize_behind(
        self, node: fx.Node, name: str, kind: str, aliases: Iterable[str] = ()
    ) -> None:
        """Quantize the output of ``node``; patterns match ``name`` and ``aliases``."""
        bits = self.bits.act(name, aliases)
        self.root.set_submodule(name, self.make_act(bits, "none"))
        with self.graph.inserting_after(node):
            call = self.graph.call_module(name, (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
        self.note_act(name, kind, bits)

    # ---- operations ----

    def convert_module(self, node: fx.Node) -> None:
        """Convert and record the module that ``node`` calls."""
        path = str(node.target)
        module = self.modules[path]
        kind = type(module).__name__
        if type(module) in LAYERS:
            bits = self.bits.weight(path, self.paths_of(module), key=module)
            if module not in self.replaced:
                layer = QConv2d if type(module) is nn.Conv2d else QLinear
                self.swap(module, layer.from_float(module, bits, **self.how.of_weights))
            quantized: Any = self.replaced[module]
            self.note_layer(node, path, kind, bits, quantized.per_kernel)
        elif type(module) in ACTIVATION_MODULES:
            act = ACTIVATION_MODULES[type(module)]
            # A module used at several places gets one range for each.
            again = module in self.replaced
            name = self.free_name(path) if again else path
            bits = self.bits.act(name)
            if again:
                self.use_act(node, name, bits, act)
            else:
                self.swap(module, self.make_act(bits, act))
            self.note_act(name, kind, bits)
        elif is_float_activation(module):
            self.quantize_behind(
                node, self.free_name(f"{path}.quantizer"), kind, self.paths_of(module)
            )
        elif isinstance(module, (QConv2d, QLinear, QAct)):
            if not isinstance(module, QAct):
                self.readers[len(self.operations)] = node
            reason = "already, by the model itself"
            self.operations.append(Operation(path, kind, "quantized", reason))
        else:
            self.note_float(path, kind, float_reason(type(module)))

    def convert_call(self, node: fx.Node) -> None:
        """Convert and record the function or method that ``node`` calls."""
        target: Any = node.target
        kind = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if _is_random(node):
            raise InputError(
                f"model: {self.scope_of(node) or 'its forward'} calls {kind}, which draws random "
                "numbers in evaluation mode too, so that a student would differ from call "
                "to call; call it in training alone, a dropout with training=self.training"
            )
        act = ACTIVATION_CALLS.get(target)
        if target in CLAMPS:
            act = CLAMP_BOUNDS.get(_bounds(node))
        if node in self.shapes:
            self.note_float(node.name, kind, "computes with shapes, not with values")
        elif act is not None:
            name = self.scoped_name(node, act)
            bits = self.bits.act(name)
            self.use_act(node, name, bits, act)
            self.note_act(name, kind, bits)
        elif target in FLOAT_ACTIVATION_CALLS:
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
        quantizer = WeightQuantizer(bits, self.how)
        self.root.set_submodule(name, quantizer.eval())
        with self.graph.inserting_before(node):
            quantized = self.graph.call_module(name, (weight,))
        node.replace_input_with(weight, quantized)
        own = weight.op == "get_attr"  # the shape of a computed weight is unknown
        per_kernel = own and quantizer.per_kernel_of(attrgetter(str(weight.target))(self.root))
        self.note_layer(node, name, kind, bits, per_kernel)

    def layers(self) -> list[nn.Module | fx.Node]:
        """Return layers, as modules or as nodes of function calls, in order of execution."""
        found: list[nn.Module | fx.Node] = []
        for node in self.graph.nodes:
            if node.op == "call_module" and type(self.modules[str(node.target)]) in LAYERS:
                found.append(self.modules[str(node.target)])
            elif node.op == "call_function" and node.target in LAYER_CALLS:
                found.append(node)
        return found

    # ---- the finished graph ----

    def finish(self, quantize_inputs: bool) -> list[Operation]:
        """Complete and return the records; optionally quantize float inputs of layers."""
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
        """Quantize the input of ``node`` by a quantizer ``name``."""
        bits = self.bits.act(name)
        self.root.set_submodule(name, self.make_act(bits, "none"))
        source = _input(node)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, (source,))
        node.replace_input_with(source, call)
        reason = f"input of the {kind}, {bits} bits {self.per_act}"
        self.operations.append(Operation(name, "input", "quantized", reason, bits))


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    given = {**dict(zip(("input", "min", "max"), node.args, strict=False)), **node.kwargs}
    return given.get("min"), given.get("max")


def _is_random(node: fx.Node) -> bool:
    target: Any = node.target
    if target not in DROPOUTS:
        return target in DRAWS
    given: dict[str, Any] = dict(zip(("input", "p", "training"), node.args, strict=False))
    given |= node.kwargs
    return bool(given.get("training", DROPOUTS[target])) and bool(given.get("p") != 0)
