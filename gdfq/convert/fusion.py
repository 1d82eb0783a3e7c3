"""Fusion of layers in a student's graph: fewer passes over memory, same parameters and results."""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.convert import SUMS
from gdfq.convert.calls import ModuleCalls
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.fused import FusedBatchNormAct, QuantizedWeights
from gdfq.nn.qact import observing_copy
from gdfq.nn.statistics import BATCH_NORMS

_LAYERS = (QConv2d, QLinear)
Kind = tuple[torch.Size, torch.dtype]


@dataclass(frozen=True)
class Place:
    """An activation quantizer or batch norm; ``what`` it is fused with, or why it is not."""

    name: str
    fused: bool
    what: str


class FusedModel(fx.GraphModule):
    """A student's graph with fused layers; shares all modules with the student."""

    @property
    def places(self) -> list[Place]:
        """All batch norms and activation quantizers of the graph."""
        return self.meta["places"]

    @property
    def not_fused(self) -> list[Place]:
        """The places that are not fused."""
        return [place for place in self.places if not place.fused]

    @contextmanager
    def weights_kept(self) -> Iterator[None]:
        """Quantize every weight only once for all forward passes within."""
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, QuantizedWeights):
                    stack.enter_context(module.kept())
            yield

    def summary(self) -> str:
        """Say in one line how many places are fused, and which are not."""
        fused = sum(place.fused for place in self.places)
        left = "".join(f"; {place.name}: {place.what}" for place in self.not_fused)
        return f"{fused} of {len(self.places)} batch norms and activations fused{left}"


def fuse(student: fx.GraphModule, images: Tensor) -> FusedModel:
    """Fuse the layers of ``student``: same results and parameters, less memory traffic.

    Batch norm, an optional residual sum, activation and quantizer become one
    :class:`~gdfq.nn.fused.FusedBatchNormAct`; one call quantizes all weights. Places that do not
    match this pattern are kept and listed in ``places``.

    Args:
        student: from :func:`gdfq.quantize_model`; not modified. The result shares its modules, so
            training one trains the other.
        images: a small batch ``(N, C, H, W)``, N >= 2, to find shapes.

    Returns:
        The fused network, with the forward signature of ``student``.

    Raises:
        InputError: ``images`` has fewer than two images.
    """
    if images.shape[0] < 2:
        raise InputError(f"images: needs two or more, got shape {tuple(images.shape)}")
    trial = _Trial(student)
    trial.run_on(images)
    graph = copy.deepcopy(student.graph)
    root = nn.Module()
    root._modules = dict(student._modules)
    root._parameters = student._parameters
    root._buffers = student._buffers
    for node in graph.nodes:
        # Rename modules that collide with attributes of FusedModel.
        first, *rest = str(node.target).split(".")
        if node.op == "call_module" and hasattr(FusedModel, first):
            root._modules[f"{first}_"] = student._modules[first]
            node.target = ".".join([f"{first}_", *rest])
    fusing = _Fusing(root, graph, trial)
    fusing.drop_identities()
    fusing.weights()
    places = [fusing.activation(node) for node in list(graph.nodes) if fusing.calls(node, QAct)]
    places += [
        Place(str(node.target), False, "batch norm without a quantizer behind")
        for node in graph.nodes
        if fusing.calls(node, _BatchNorm)
    ]
    fused = FusedModel(root, graph)
    fused.meta["places"] = places
    fused.training = student.training
    return fused


class _Fusing(ModuleCalls):
    def __init__(self, root: nn.Module, graph: fx.Graph, trial: _Trial) -> None:
        self.root = root
        self.graph = graph
        self.kinds = trial.kinds
        self.changed = trial.changed
        # PyTorch does not count writes through .data, so the trial cannot see them. Parameters are
        # harmless: they are not inputs of layers.
        self.reads_data = any(
            node.target is getattr and node.args[1] == "data" and node.args[0].op != "get_attr"
            for node in graph.nodes
        )

    def add_module(self, name: str, module: nn.Module) -> str:
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return name

    def drop_identities(self) -> None:
        """Remove ``nn.Identity``, which can separate a batch norm from its activation."""
        for node in list(self.graph.nodes):
            if self.calls(node, nn.Identity) and type(self.module(node)) is nn.Identity:
                node.replace_all_uses_with(node.all_input_nodes[0])
                self.graph.erase_node(node)

    def weights(self) -> None:
        """Quantize all weights by one call for each estimator, kind of range and device."""
        groups: dict[Any, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            if self.calls(node, _LAYERS) and type(self.module(node)) in _LAYERS:
                layer = self.module(node)
                if layer.weight_lo is not None or layer.per_kernel:
                    continue  # its range is not the minimum and maximum per output channel
                groups[QuantizedWeights.group(layer)].append(node)
        first = next(iter(self.graph.nodes))
        for nodes in groups.values():
            layers = list({self.module(node): None for node in nodes})
            module = QuantizedWeights(layers)
            name = self.add_module("quantized_weights", module)
            with self.graph.inserting_before(first):
                quantized = self.graph.call_module(name)
                weights = [
                    self.graph.call_function(operator.getitem, (quantized, i))
                    for i in range(len(layers))
                ]
            for node in nodes:
                layer = self.module(node)
                node.kwargs = {**node.kwargs, "quantized_weight": weights[layers.index(layer)]}

    def activation(self, node: fx.Node) -> Place:
        """Fuse the quantizer that ``node`` calls with the preceding layers if they match."""
        name = str(node.target)
        if self.module(node)._forward_hooks or self.module(node)._forward_pre_hooks:
            return Place(name, False, "it has hooks")
        if self.module(node).learned:
            return Place(name, False, "its range is learned")
        if self.module(node).dynamic_range:
            return Place(name, False, "its ranges are dynamic")
        source: Any = node.args[0] if node.args else None
        norm, residual, problem = self.match(source)
        if norm is None:
            return Place(name, False, problem)
        module = FusedBatchNormAct(self.module(norm), self.module(node))
        target = self.add_module(f"fused_{node.name}", module)
        arguments = (norm.args[0],) if residual is None else (norm.args[0], residual)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(target, arguments)
        self.kinds[call.name] = self.kinds[node.name]
        if node.name in self.changed:
            self.changed.add(call.name)
        node.replace_all_uses_with(call)
        for dead in (node, *([source] if residual is not None else []), norm):
            self.graph.erase_node(dead)
        with_residual = "" if residual is None else f" and the sum with {residual.name}"
        return Place(name, True, f"with {norm.target}{with_residual}")

    def match(self, source: Any) -> tuple[fx.Node | None, fx.Node | None, str]:
        """Return batch norm and residual that compute ``source``, or why it does not match."""
        if self.reads_data:
            return None, None, "the network takes .data of a tensor, which may be changed unseen"
        if self.calls(source, _BatchNorm):
            problem = self.unfit(source)
            return (None, None, problem) if problem else (source, None, "")
        if not isinstance(source, fx.Node) or source.target not in SUMS:
            return None, None, "no batch norm before the activation"
        if len(source.users) > 1:
            return None, None, "the sum before the activation is used elsewhere too"
        options = dict(source.kwargs)
        by_name = [options.pop(name) for name in ("input", "other") if name in options]
        terms = [*source.args, *by_name]
        if "out" in options:
            return None, None, "the sum before the activation is written to a given tensor"
        if options or len(terms) != 2:
            return None, None, "the sum before the activation is scaled"
        problem = "no batch norm before the sum"
        pairs: list[tuple[Any, Any]] = [(terms[0], terms[1]), (terms[1], terms[0])]
        for norm, residual in pairs:
            if not self.calls(norm, _BatchNorm):
                continue
            problem = self.unfit(norm)
            if not isinstance(residual, fx.Node) or self.kinds.get(residual.name) != self.kinds.get(
                norm.name
            ):
                problem = "the sum before the activation broadcasts or promotes"
            elif residual is norm:
                problem = "the batch norm's output is used elsewhere too"
            elif residual.name in self.changed:
                problem = "the residual is changed in place"
            if not problem:
                return norm, residual, ""
        return None, None, problem

    def unfit(self, norm: fx.Node) -> str:
        """Say why the batch norm that ``norm`` calls cannot be fused; empty if it can."""
        module = self.module(norm)
        if type(module) not in BATCH_NORMS:  # a subclass may compute something else
            return f"a {type(module).__name__}, which may compute something else"
        if module._forward_hooks or module._forward_pre_hooks:
            return "the batch norm has hooks"
        if module.training:
            return "the batch norm is in training mode"
        if len(norm.users) > 1:
            return "the batch norm's output is used elsewhere too"
        if module.running_mean is None:
            return "the batch norm keeps no running statistics"
        if len(norm.args) != 1:
            return "the batch norm is called by keyword"
        if getattr(norm.args[0], "name", None) in self.changed:
            return "the batch norm's input is changed in place"
        return ""


class _Trial(fx.Interpreter):
    """Runs a copy of a student's graph to find shapes and tensors that are changed in place.

    Attributes:
        kinds: shape and dtype of each node's tensor.
        changed: nodes whose tensor is changed later, directly or through a view; PyTorch counts
            such changes for autograd.
    """

    def __init__(self, student: fx.GraphModule) -> None:
        super().__init__(observing_copy(student))
        self.kinds: dict[str, Kind] = {}
        self.changed: set[str] = set()
        self.versions: dict[str, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.kinds[n.name] = result.shape, result.dtype
            self.versions[n.name] = result, result._version
        return result

    def run_on(self, images: Tensor) -> None:
        # Inference mode does not count changes.
        with torch.inference_mode(False), torch.no_grad():
            self.run(images.clone())
        for name, (tensor, version) in self.versions.items():
            if tensor._version != version:
                self.changed.add(name)
        self.versions.clear()
