"""From a float network to its student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gdfq.convert.bits import BitWidths
from gdfq.convert.canonical import restore_layers
from gdfq.convert.conversion import Converter
from gdfq.convert.copying import float_copy
from gdfq.convert.coverage import CoverageReport, Operation
from gdfq.convert.images import copy_changed_inputs
from gdfq.convert.in_place import remove_in_place
from gdfq.convert.model import QuantizedModel
from gdfq.convert.tracing import check_leaves, trace
from gdfq.errors import InputError
from gdfq.nn import QAct
from gdfq.nn.given import plain_network
from gdfq.nn.quantization import Quantization
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer


@torch.inference_mode(False)
def quantize_model(
    model: nn.Module,
    weight_bits: int = 4,
    act_bits: int = 4,
    *,
    bits: Mapping[str, Mapping[str, int]] | None = None,
    leaf_modules: Sequence[str | type] = (),
    quantize_inputs: bool = False,
    strict: bool = False,
    **settings: Any,
) -> QuantizedModel:
    """Convert a trained network into its quantized student.

    Every ``nn.Conv2d`` and ``nn.Linear``, subclasses and ``F.conv2d`` and ``F.linear`` too, gets a
    fake-quantized weight (first and last layer as well, biases stay float); every activation,
    module or function, a quantized output, over a signed range where its values have both signs.
    ReLU and ReLU6 are one operator with their quantizer; any other activation function keeps its
    place, with a quantizer behind it. A module used at several places gets one range per use.
    Sums, products (squeeze and excitation) and batch norms without an activation behind them stay
    in float, as in the paper; the coverage report names each layer that reads such values.

    Forward hooks are part of the student's graph. Arguments of the network's ``forward`` that have
    defaults keep these. Weights that are computed of others before each forward (``weight_norm``,
    ``spectral_norm``, ``prune``, parametrizations) are parameters of the student, with the value
    that they have in evaluation mode; tensors that are constants are buffers of it.

    Args:
        model: any network that ``torch.fx`` can trace; it is copied, never modified. A function
            with control flow on tensors, called by a ``forward``, becomes one operation.
        weight_bits: 2 to 8, per output channel.
        act_bits: 2 to 8, per tensor.
        bits: exceptions by name, ``{"layer1.*": {"weight": 8, "act": 6}, ...}``: glob patterns of
            paths in the student, each with bits of weights, of activations or of both. Of several
            patterns that match, the last wins. ``student.coverage`` lists the names; a functional
            activation has that of its module and its function (``layer1.0.relu_1``); the quantizer
            ``act.quantizer`` behind the module ``act`` is found by ``act`` too.
        leaf_modules: classes or paths of modules not to trace into; they stay in float.
        quantize_inputs: quantize what a layer reads where that is in float still: the images,
            linear bottlenecks, sums, scaled channels. The quantizer of the layer ``conv`` is
            ``conv.input``. For engines that multiply integers everywhere.
        strict: raise if an operation that should be quantized cannot be.
        settings: the other fields of :class:`gdfq.nn.Quantization`, by name:
            ``first_last_bits=8``, ``ste="clip"``, ``zero_in_range=True``,
            ``dynamic_ranges="act"``, ...

    Returns:
        The student, in evaluation mode, its activation ranges not yet set. What the model keeps
        frozen (``requires_grad=False``) stays so, unless that is all of it. ``student.coverage``
        says of each operation whether it is quantized, and why not.

    Raises:
        InputError: an argument is out of range, a pattern matches nothing, the network cannot be
            traced, draws random numbers in evaluation mode, changes a buffer that it computes with
            or has a part named like an attribute of ``fx.GraphModule``, nothing in it can be
            quantized, no kernel is large enough for a range of its own where ``dynamic_ranges``
            asks for them, or ``strict`` and something is uncovered.

    Source: Xu et al., ECCV 2020, section 3.3.
    """
    how = Quantization(weight_bits=weight_bits, act_bits=act_bits, **settings)
    widths = BitWidths(how.weight_bits, how.act_bits, {} if bits is None else bits)
    root = float_copy(plain_network(model, "model"))
    if not any(parameter.requires_grad for parameter in root.parameters()):
        # Frozen as a whole, as networks are for inference: the student is made to be trained.
        for parameter in root.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    check_leaves(root, leaf_modules)
    graph, tracer = trace(root, leaf_modules)
    restore_layers(root, graph)
    remove_in_place(root, graph)
    converter = Converter(root, graph, how, widths)
    layers = converter.layers()
    if how.first_last_bits is not None and layers:
        widths.fix_weights((layers[0], layers[-1]), how.first_last_bits)
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
    copy_changed_inputs(root, graph)
    widths.require_matches()
    if not coverage.counts()["quantized"]:
        raise InputError("model: has no Conv2d, Linear or activation that could be quantized")
    if strict and coverage.uncovered:
        listed = "; ".join(f"{op.name} ({op.kind}): {op.reason}" for op in coverage.uncovered)
        raise InputError(f"model: strict=True, and not everything can be quantized: {listed}")
    student = QuantizedModel(root, graph, coverage)
    if how.is_dynamic("weight"):
        _require_kernel_ranges(student, how.dynamic_ranges)
    for module in student.modules():
        if isinstance(module, QAct) and how.learns("act"):
            module.learn_range()
        if isinstance(module, QuantizedWeight) and how.learns("weight"):
            module.keep_weight_range(learned=True)
    return student


def _require_kernel_ranges(student: nn.Module, dynamic_ranges: str) -> None:
    """Raise an InputError if it is known that no kernel has a range of its own."""
    for module in student.modules():
        if isinstance(module, WeightQuantizer) or (
            isinstance(module, QuantizedWeight) and module.per_kernel
        ):
            return
    instead = "'act'" if dynamic_ranges == "both" else "'none'"
    raise InputError(
        f"dynamic_ranges: {dynamic_ranges!r} gives a range to each kernel of at least "
        f"2**weight_bits elements, and the model has none; use {instead} or fewer weight_bits"
    )
