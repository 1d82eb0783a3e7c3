"""The graph to export: batch norms folded, QuantizeLinear and DequantizeLinear (Q/DQ) in place."""

from __future__ import annotations

import copy
import keyword
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.convert import SUMS, QuantizedModel
from gdfq.convert.calls import ModuleCalls
from gdfq.errors import InputError
from gdfq.export.emit import INPUT, OUTPUT, Convolution, Hold, Linear, Quantize
from gdfq.export.packed_layers import ConstantWeight, PackedCall
from gdfq.export.stored import (
    Grid,
    StoredWeight,
    Weights,
    act_grid,
    fold,
    range_grid,
    saturation,
    store,
    store_symmetric,
)
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.given import one_line
from gdfq.nn.statistics import BATCH_NORMS

Mode = Literal["exact", "integer"]

# In integer mode, batch-norm outputs are clipped at this many standard deviations.
DEVIATIONS = 4
# Operations whose outputs are input values, or their maxima.
_KEEP_GRID = (
    nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ChannelShuffle,
    nn.Flatten, torch.flatten, "flatten", "view", "reshape",
    nn.functional.max_pool2d, nn.functional.dropout, nn.functional.dropout2d,
)  # fmt: skip
_AVERAGES = (
    nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One layer of the exported network; ``note`` explains a deviation from the plain form."""

    name: str
    kind: str
    bits: int
    stored: str
    note: str = ""


@dataclass
class Form:
    """The network to export, and a :class:`Part` for each quantized layer."""

    network: fx.GraphModule
    parts: list[Part] = field(default_factory=list)

    @property
    def instead(self) -> list[Part]:
        """The layers that deviate from the plain form."""
        return [part for part in self.parts if part.note]


@dataclass
class _Known:
    """Known properties of a value: bounds; optionally grid, or mean and deviation per channel."""

    lo: float
    hi: float
    grid: Grid | None = None
    mean: Tensor | None = None
    spread: Tensor | None = None


def export_form(
    student: QuantizedModel,
    images: Tensor,
    mode: Mode,
    weights: Weights,
    input_range: tuple[float, float] | None,
) -> Form:
    """Return the graph of ``student`` with its quantized layers replaced by modules that emit Q/DQ.

    Exact mode reproduces the student's values up to float32 rounding. Integer mode adds 8-bit
    quantizers to inputs and outputs of convolutions and sums that lack them. Their ranges need no
    images: ``mean ± 4 sqrt(var)`` of the preceding batch norm, and ``input_range`` at the input.

    Args:
        student: with ranges set; not modified.
        images: a batch ``(N, C, H, W)``; only the shape matters.
        mode: ``"exact"`` or ``"integer"``.
        weights: type of the codes in the file.
        input_range: bounds of the images, for integer mode; None leaves the first convolution in
            float.
    """
    return _Forming(student, images, mode, weights, input_range).run()


def _use_plain_names(root: nn.Module, graph: fx.Graph) -> None:
    """Rename modules and tensors whose names are no identifiers, which ``torch.export`` rejects."""
    renamed: dict[nn.Module, dict[str, str]] = {}
    for module in root.modules():
        renamed[module] = {}
        for parts in (module._modules, module._parameters, module._buffers):
            owned: dict[str, Any] = parts
            for name in [*owned.keys()]:  # a script's iterates over pairs
                plain = re.sub(r"\W", "_", name, flags=re.ASCII) + "_" * keyword.iskeyword(name)
                if plain != name:
                    while hasattr(module, plain):
                        plain += "_"
                    owned[plain] = owned.pop(name)
                    renamed[module][name] = plain
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path: list[str] = []
            owner: Any = root
            for name in node.target.split("."):
                path.append(renamed.get(owner, {}).get(name, str(name)))
                owner = getattr(owner, path[-1])
            node.target = ".".join(path)


class _Forming(ModuleCalls):
    def __init__(
        self,
        student: QuantizedModel,
        images: Tensor,
        mode: Mode,
        weights: Weights,
        input_range: tuple[float, float] | None,
    ) -> None:
        model = copy.deepcopy(student).cpu().eval()
        self.root = model._tree()
        self.graph = model.graph
        self.dims = _dims_of_values(model, images)
        self.rename_tensors()
        self.mode: Mode = mode
        self.weights: Weights = weights
        self.input_range = input_range
        self.parts: list[Part] = []
        self.known: dict[fx.Node, _Known] = {}
        self.quantized: dict[fx.Node, fx.Node] = {}
        self.averages: list[fx.Node] = []

    def run(self) -> Form:
        # Shape assertions, as in timm's layers, would count as users of what they check.
        for node in list(self.graph.nodes):
            if node.target is torch._assert:
                self.graph.erase_node(node)
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes):
            if self.calls(node, (QConv2d, QLinear)) and self.module(node).input_quantizer:
                self.move_input_quantizer(node)
        for node in self.graph.nodes:
            if self.calls(node, PackedCall):
                self.root.set_submodule(str(node.target), ConstantWeight(self.module(node)))
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and self.input_range is not None:
                self.known[node] = _Known(*self.input_range)
            elif self.calls(node, QConv2d):
                self.convolution(node)
            elif self.calls(node, QLinear):
                self.linear(node)
            elif self.calls(node, QAct):
                self.activation(node)
            else:
                self.other(node)
        for node in self.averages:
            # Compute it on codes only if all its users quantize the result.
            if not all(self.quantized.get(user) is user for user in node.users):
                self.hold_inputs(node)
        _use_plain_names(self.root, self.graph)
        return Form(fx.GraphModule(self.root, self.graph).eval(), self.parts)

    # ---- the graph ----

    def rename_tensors(self) -> None:
        """Rename tensors of the network that collide with the file's input and output."""
        for name in (INPUT, OUTPUT):
            owned: tuple[dict[str, Any], ...] = self.root._parameters, self.root._buffers
            for tensors in owned:
                if name not in tensors:
                    continue
                path = name
                while hasattr(self.root, path):
                    path += "_tensor"
                tensors[path] = tensors.pop(name)
                for node in self.graph.nodes:
                    if node.op == "get_attr" and node.target == name:
                        node.target = path

    def replace(self, node: fx.Node, module: nn.Module, last: fx.Node, name: str) -> fx.Node:
        """Replace the nodes from ``node`` to ``last`` by a call of ``module``."""
        others = [n for n in self.graph.nodes if n.op == "call_module" and n is not node]
        path = self.free_path(name) if any(n.target == name for n in others) else name
        self.root.set_submodule(path, module)
        with self.graph.inserting_after(last):
            call = self.graph.call_module(path, (_input(node),))
        last.replace_all_uses_with(call)
        for dead in dict.fromkeys((last, node)):
            self.graph.erase_node(dead)
        return call

    def free_path(self, name: str) -> str:
        paths = {path for path, _ in self.root.named_modules(remove_duplicate=False)}
        path, suffix = name, 0
        while path in paths:
            suffix += 1
            path = f"{name}_{suffix}"
        return path

    def move_input_quantizer(self, node: fx.Node) -> None:
        """Turn a layer's input quantizer into a separate call before the layer."""
        path = self.free_path(f"{node.target}_input")
        self.root.set_submodule(path, self.module(node).input_quantizer)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(path, (_input(node),))
        node.args, node.kwargs = (call,), {}

    def note(self, node: fx.Node, kind: str, bits: int, stored: str, *notes: str) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        self.parts.append(Part(name, kind, bits, stored, "; ".join(n for n in notes if n)))

    # ---- layers ----

    def norm_behind(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm that is the only user of ``node`` and can be folded into it."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if not self.calls(user, _BatchNorm):
            return None
        # A batch norm scales dimension 1, which must be that of the outputs.
        if self.dims.get(node) != (4 if self.calls(node, QConv2d) else 2):
            return None
        norm = self.module(user)
        plain = type(norm) in BATCH_NORMS and not (norm._forward_hooks or norm._forward_pre_hooks)
        return user if plain and norm.running_mean is not None else None

    def convolution(self, node: fx.Node) -> None:
        layer, name = self.module(node), str(node.target)
        norm = self.norm_behind(node)
        folded = fold(layer, None if norm is None else self.module(norm))
        grid, problem = None, ""
        if self.mode == "integer":
            grid, problem = self.integer_input(node)
        if grid is None:
            stored = store(folded, layer.weight_bits, self.weights)
        else:
            stored = store_symmetric(folded, grid.last_code)
        saturates = self.saturation(node, stored)
        module = Convolution(layer, stored, folded.bias, None if grid is None else grid.step)
        call = self.replace(node, module, norm or node, name)
        if folded.mean is not None and folded.spread is not None:
            self.known[call] = _from_moments(folded.mean, folded.spread)
        if grid is not None and not self.is_quantized_behind(call):
            if call in self.known:
                self.quantize(call)
            else:
                problem = "output in float: no batch norm gives its range"
        notes = stored.note, problem, saturates
        self.note(call, "Conv", layer.weight_bits, _describe(stored), *notes)

    def saturation(self, node: fx.Node, stored: StoredWeight) -> str:
        """Return a note if integer kernels of some processors saturate in ``node``."""
        known = self.known.get(_input(node))
        if known is None or known.grid is None or known.grid.zero_point is None:
            return ""
        return saturation(stored, known.grid.last_code)

    def linear(self, node: fx.Node) -> None:
        layer, name = self.module(node), str(node.target)
        norm = self.norm_behind(node)
        folded = fold(layer, None if norm is None else self.module(norm))
        known = self.known.get(_input(node))
        on_grid = known is not None and known.grid is not None and known.grid.zero_point is not None
        # Without zero points, OpenVINO would round the floats in a product of floats and integers
        # to 8 bits.
        stored = store(folded, layer.weight_bits, self.weights, zero_points=not on_grid)
        saturates = self.saturation(node, stored)
        call = self.replace(node, Linear(stored, folded.bias), norm or node, name)
        self.note(call, "Linear", layer.weight_bits, _describe(stored), stored.note, saturates)

    def activation(self, node: fx.Node) -> None:
        act, name = self.module(node), str(node.target)
        grid = act_grid(act)
        call = self.replace(node, Quantize(grid, self.mode == "integer"), node, name)
        self.known[call] = _Known(grid.lo / grid.inv_scale, grid.hi / grid.inv_scale, grid)
        stored = "float" if grid.zero_point is None else "uint8"
        if grid.zero_point is not None:
            self.quantized[call] = call
            stored += f", {grid.lo + grid.zero_point} to {grid.hi + grid.zero_point}"
        self.note(call, "activation", grid.bits, stored, grid.note)

    # ---- integer mode: propagation of ranges, and added 8-bit quantizers ----

    def other(self, node: fx.Node) -> None:
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            self.sum(node)
            return
        kind: Any = node.target
        if node.op == "call_module":
            kind = type(self.module(node))
        averages = kind in _AVERAGES and not self.divisor(node)
        if self.mode == "integer" and averages:
            self.averages.append(node)
        elif kind is not nn.ZeroPad2d and kind not in _KEEP_GRID:
            self.hold_inputs(node)
        known = self.known.get(_input(node)) if node.args else None
        if node not in self.dims:
            return  # several values, e.g. a pooling with its indices
        if known is not None and (averages or kind in _KEEP_GRID):
            self.known[node] = _Known(known.lo, known.hi, None if averages else known.grid)
        elif known is not None and kind is nn.ZeroPad2d:
            grid = known.grid
            if grid is not None and not grid.lo <= 0 <= grid.hi:
                grid = None
            self.known[node] = _Known(min(known.lo, 0.0), max(known.hi, 0.0), grid)

    def hold_inputs(self, node: fx.Node) -> None:
        """Make ``node`` compute on values rather than codes."""
        for source in node.all_input_nodes:
            known = self.known.get(source)
            if known is None or known.grid is None or node.op == "output" or self.is_global(node):
                continue
            path = self.free_path(f"{node.name}_input")
            self.root.set_submodule(path, Hold(known.grid))
            with self.graph.inserting_before(node):
                call = self.graph.call_module(path, (source,))
            self.known[call] = _Known(known.lo, known.hi)
            node.replace_input_with(source, call)

    def is_global(self, node: fx.Node) -> bool:
        """Whether ``node`` averages whole channels, which OpenVINO always computes in float."""
        if node.target is nn.functional.adaptive_avg_pool2d:
            size = _argument(node, 1, "output_size")
        elif self.calls(node, nn.AdaptiveAvgPool2d):
            size = self.module(node).output_size
        else:
            return False
        return size in (1, (1, 1), [1, 1])

    def divisor(self, node: fx.Node) -> Any:
        """Return the ``divisor_override`` of an average pooling, if any."""
        if node.target is nn.functional.avg_pool2d:
            return _argument(node, 6, "divisor_override")
        return self.calls(node, nn.AvgPool2d) and self.module(node).divisor_override

    def sum(self, node: fx.Node) -> None:
        if self.mode == "exact":
            return
        terms: Any = node.args
        known = [self.known.get(term) if isinstance(term, fx.Node) else None for term in terms]
        if any(term is None for term in known):
            self.note(node, "sum", 8, "float", "float: the range of a term is not known")
            return
        for i, term in enumerate(terms):
            node.update_arg(i, self.quantize(term))
        first, second = known
        assert first is not None
        assert second is not None
        if first.mean is not None and second.mean is not None:
            assert first.spread is not None
            assert second.spread is not None
            spread = torch.hypot(first.spread, second.spread)
            self.known[node] = _from_moments(first.mean + second.mean, spread)
        else:
            self.known[node] = _Known(first.lo + second.lo, first.hi + second.hi)
        if not self.is_quantized_behind(node):
            self.quantize(node)

    def is_quantized_behind(self, node: fx.Node) -> bool:
        return all(self.calls(user, (QAct, Quantize)) for user in node.users)

    def integer_input(self, node: fx.Node) -> tuple[Grid | None, str]:
        """Quantize the input of ``node``; return its grid, or None and the reason."""
        source = _input(node)
        if source not in self.known:
            return None, "float: the range of its input is not known"
        quantized = self.quantize(source)
        node.args, node.kwargs = (quantized,), {}
        grid = self.known[quantized].grid
        assert grid is not None
        return grid, ""

    def quantize(self, node: fx.Node) -> fx.Node:
        """Insert Q/DQ after ``node``, on its grid or with 8 bits over its known range."""
        if node in self.quantized:
            return self.quantized[node]
        known = self.known[node]
        grid = known.grid
        if grid is None or grid.zero_point is None:
            grid = range_grid(known.lo, known.hi)
        path = self.free_path(f"quantize_{node.name}")
        self.root.set_submodule(path, Quantize(grid, True))
        readers = list(node.users)
        with self.graph.inserting_after(node):
            call = self.graph.call_module(path, (node,))
        for user in readers:
            user.replace_input_with(node, call)
        self.quantized[node] = self.quantized[call] = call
        self.known[call] = _Known(known.lo, known.hi, grid, known.mean, known.spread)
        return call


@torch.no_grad()
def _dims_of_values(model: QuantizedModel, images: Tensor) -> dict[fx.Node, int]:
    try:
        ShapeProp(model).propagate(images.detach().cpu().float())
    except RuntimeError as error:
        raise InputError(
            f"images: the student does not take {tuple(images.shape)}: {one_line(error)}"
        ) from error
    found = {node: node.meta.get("tensor_meta") for node in model.graph.nodes}
    return {node: len(m.shape) for node, m in found.items() if isinstance(m, TensorMetadata)}


def _from_moments(mean: Tensor, spread: Tensor) -> _Known:
    lo = float((mean - DEVIATIONS * spread).min())
    hi = float((mean + DEVIATIONS * spread).max())
    return _Known(lo, hi, None, mean, spread)


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else next(iter(node.kwargs.values()))


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _describe(stored: StoredWeight) -> str:
    if stored.kind == "float":
        return "float32"
    points = "0" if stored.zero_points is None else "per output"
    return f"{stored.kind}, zero point {points}"
