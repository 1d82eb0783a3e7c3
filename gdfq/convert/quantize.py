"""``quantize_model``."""

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
from gdfq.settings import checked, with_fields


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

    Weights of all ``nn.Conv2d``, ``nn.Linear``, their subclasses, ``F.conv2d`` and ``F.linear``
    are fake-quantized, first and last layers included; biases stay float. All activations, modules
    or functions, get a quantized output, over a signed range if their values have both signs. ReLU
    and ReLU6 are fused with the quantizer, which follows other activations as a separate module. A
    module used at several places gets one range per use. As in the paper, sums, products (squeeze
    and excitation) and batch norms without an activation stay in float; the coverage report names
    each layer that reads such values.

    Forward hooks become part of the student's graph. Arguments of ``forward`` with defaults keep
    them. Reparametrized weights (``weight_norm``, ``spectral_norm``, ``prune``, parametrizations)
    become parameters with their value in evaluation mode, constant tensors become buffers.

    Args:
        model: any network that ``torch.fx`` can trace; not modified. A function with control flow
            on tensors, called by a ``forward``, becomes one operation.
        weight_bits: 2 to 8, per output channel.
        act_bits: 2 to 8, per tensor.
        bits: exceptions by name, ``{"layer1.*": {"weight": 8, "act": 6}, ...}``: glob patterns of
            paths in the student, with bits of weights, activations or both; the last match wins.
            ``student.coverage`` lists the names. A functional activation is named by its module and
            function (``layer1.0.relu_1``); ``act.quantizer``, which follows the module ``act``,
            also matches ``act``.
        leaf_modules: classes or paths of modules not to trace into; they stay in float.
        quantize_inputs: also quantize float inputs of layers (images, linear bottlenecks, sums,
            scaled channels), for pure integer engines. The quantizer of ``conv`` is
            ``conv.input``.
        strict: raise an error if an operation that should be quantized is not supported.
        settings: the other fields of :class:`gdfq.nn.Quantization`, by name:
            ``first_last_bits=8``, ``ste="clip"``, ``zero_in_range=True``,
            ``dynamic_ranges="act"``, ...

    Returns:
        The student in evaluation mode, with activation ranges not yet set. Frozen parameters
        (``requires_grad=False``) stay frozen, unless all are. ``student.coverage`` says for each
        operation whether it is quantized, and why not.

    Raises:
        InputError: an argument is invalid; a pattern matches nothing; the network cannot be
            traced, draws random numbers in evaluation mode, changes a buffer that it computes with,
            or has a part named like an attribute of ``fx.GraphModule``; nothing can be quantized;
            ``dynamic_ranges`` needs larger kernels; or ``strict`` and an operation is uncovered.

    Source: Xu et al., ECCV 2020, section 3.3.
    """
    how = Quantization(weight_bits=weight_bits, act_bits=act_bits, **settings)
    quantize_inputs = checked("quantize_inputs", quantize_inputs, bool)
    strict = checked("strict", strict, bool)
    widths = BitWidths(how.weight_bits, how.act_bits, {} if bits is None else bits)
    root = float_copy(plain_network(model, "model"))
    if not any(parameter.requires_grad for parameter in root.parameters()):
        # The whole network is frozen for inference, but the student is to be trained.
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
    """Raise InputError if no kernel of a layer has its own range."""
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


quantize_model.__signature__ = with_fields(quantize_model, Quantization)  # type: ignore[attr-defined]
