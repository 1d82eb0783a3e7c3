"""The rows of a report's table: a student's layers, with what belongs to each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.convert import SUMS, QuantizedModel
from gdfq.nn import QAct
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer
from gdfq.report.contents import LayerRow


@dataclass
class Place:
    """A row, and where in the student its subject is.

    Attributes:
        row: with names, kind, shape and bits; nothing measured yet.
        weight: path of the weight that is quantized, where it is a tensor of the network's own.
    """

    row: LayerRow
    weight: str = ""


def places(student: QuantizedModel) -> list[Place]:
    """Return a place per quantized layer, batch norm and quantizer of ``student``.

    A batch norm belongs to the layer whose output it reads. A quantizer belongs to the layer or
    batch norm that it comes behind: only sums, and operations with one input, are between. In
    order of execution; what the graph does not show comes last.
    """
    found = _Rows(student)
    for node in student.graph.nodes:
        found.add(node)
    seen = {name for place in found.places for name in (place.row.name, place.row.act)}
    for name, module in student.named_modules():
        if name not in seen and isinstance(module, QuantizedWeight):
            found.places.append(_layer(name, type(module).__name__, module))
        elif name not in seen and isinstance(module, QAct):
            found.places.append(Place(LayerRow(name, module.act)))
            _give_act(found.places[-1].row, name, module)
    return found.places


class _Rows:
    def __init__(self, student: QuantizedModel) -> None:
        self.student = student
        self.kinds = {op.name: op.kind for op in student.coverage.operations}
        self.places: list[Place] = []
        self.of: dict[fx.Node, LayerRow] = {}

    def add(self, node: fx.Node) -> None:
        """Note what ``node`` calls, if it is for the table."""
        if node.op != "call_module":
            return
        name = str(node.target)
        module = self.student.get_submodule(name)
        kind = self.kinds.get(name, type(module).__name__)
        if isinstance(module, QuantizedWeight):
            self.append(node, _layer(name, kind, module))
        elif isinstance(module, WeightQuantizer):
            weight = node.args[0]
            assert isinstance(weight, fx.Node)
            path = str(weight.target) if weight.op == "get_attr" else ""
            row = LayerRow(name, kind, weight_bits=module.weight_bits)
            # What the function that takes the weight computes is the layer's output.
            self.append(next(iter(node.users), node), Place(row, path))
        elif isinstance(module, _BatchNorm):
            before = self.of.get(node.all_input_nodes[0])
            if before is None or before.norm:
                before = LayerRow(name, kind)
                self.append(node, Place(before))
            before.norm = name
            self.of[node] = before
        elif isinstance(module, QAct):
            behind = None if kind == "input" else self.behind(node.all_input_nodes[0])
            if behind is None or behind.act:
                behind = LayerRow(name, kind)
                self.append(node, Place(behind))
            _give_act(behind, name, module)

    def append(self, node: fx.Node, place: Place) -> None:
        self.places.append(place)
        self.of[node] = place.row

    def behind(self, node: fx.Node) -> LayerRow | None:
        """Return the row of the layer whose values ``node`` has."""
        while node not in self.of:
            inputs = node.all_input_nodes
            if self.calls_quantizer(node):
                return None
            if len(inputs) == 1:
                node = inputs[0]
            elif inputs and node.target in SUMS:
                rows = (self.behind(source) for source in inputs)
                return next((row for row in rows if row is not None), None)
            else:
                return None
        return self.of[node]

    def calls_quantizer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.student.get_submodule(str(node.target)), QAct
        )


def _layer(name: str, kind: str, module: QuantizedWeight) -> Place:
    row = LayerRow(name, kind, list(module.weight.shape), weight_bits=module.weight_bits)
    return Place(row, f"{name}.weight")


def _give_act(row: LayerRow, name: str, module: QAct) -> None:
    row.act = name
    row.act_bits = module.act_bits
    if module.has_range and not module.dynamic_range:
        row.act_low, row.act_high = float(module.lo.detach()), float(module.hi.detach())


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms with running statistics in ``network``, by path."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
