"""Export to ONNX."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch._dynamo.exc import UserError

from gdfq.convert import QuantizedModel
from gdfq.convert.flow import shapes_only
from gdfq.errors import InputError
from gdfq.export.emit import INPUT, OPSET, OUTPUT
from gdfq.export.form import Form, Mode, export_form
from gdfq.export.formulas import FORMULAS
from gdfq.export.packed import check_student, read_weights
from gdfq.export.packed_layers import PackedWeight
from gdfq.export.pooling import POOLING, refuse_indices
from gdfq.export.rewrites import REWRITES
from gdfq.export.stored import Weights
from gdfq.files import write_file
from gdfq.nn import QAct
from gdfq.nn.given import one_line
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer
from gdfq.settings import Settings, with_fields

if TYPE_CHECKING:
    from typing_extensions import Self

METADATA_KEY = "gdfq"
LIMIT = 2_000_000_000  # bytes of tensors in one file: protobuf allows 2 GiB, graph included
PAGE = 4096


def require(*packages: str) -> ModuleType:
    """Import the first of the optional ``packages``; raise InputError if any is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"export: needs {', '.join(missing)}, not installed: pip install 'gdfq[export]'"
        )
    return importlib.import_module(packages[0])


class OnnxOptions(Settings):
    """The form of an ONNX file."""

    mode: Mode = Field(
        "exact",
        description="onnx: 'exact' (the default) keeps the student's predictions, 'integer' "
        "computes convolutions and sums in integers, which changes some",
    )
    weights: Weights = Field(
        "int8",
        description="onnx: 'int8' (the default), or in exact mode 'int4', half the size for "
        "weights of 2 to 4 bits",
    )

    @model_validator(mode="after")
    def _can_be_combined(self) -> Self:
        if self.mode == "integer" and self.weights == "int4":
            raise InputError(
                "weights: must be 'int8' in integer mode: integer kernels take no int4"
            )
        return self


def check_ranges(student: QuantizedModel) -> None:
    """Raise InputError if ``student`` has ranges per image or per kernel."""
    for name, module in student.named_modules():
        if isinstance(module, QAct) and module.dynamic_range:
            what = f"the activation {name} computes its ranges in each call"
        elif isinstance(module, (QuantizedWeight, PackedWeight)) and module.per_kernel:
            what = f"the weight of {name} has a scale for each kernel"
        elif isinstance(module, WeightQuantizer) and module.dynamic_range:
            what = f"the weight {name} has a scale for each kernel"
        else:
            continue
        raise InputError(
            f"student: dynamic_ranges: {what}, and a convolution in integers has no place for "
            "scales inside its sum; ONNX cannot hold it, the formats pt2 and safetensors can"
        )


def _check_readers(student: QuantizedModel) -> None:
    """Raise InputError if the network reads a layer's float weight, which the file lacks."""
    read = read_weights(student).items()
    weights = {f"{path}.weight" for module, path in read if isinstance(module, QuantizedWeight)}
    shapes = shapes_only(student.graph)
    for node in student.graph.nodes:
        named = node.op == "get_attr" and str(node.target) in weights
        if named and any(user not in shapes for user in node.users):
            raise InputError(
                f"student: the network reads {node.target} itself, beside calling its layer, and "
                "an ONNX file has its codes only; write .pt2 or .safetensors"
            )


def export_onnx(
    student: QuantizedModel,
    path: str | Path,
    images: Tensor,
    *,
    input_range: tuple[float, float] | None = None,
    **options: Any,
) -> Form:
    """Write ``student`` as ONNX with QuantizeLinear and DequantizeLinear, opset 21.

    Batch norms are folded into weights, which are stored as integers ``code + zero``. Activations
    are clamped to their grid of ``act_bits`` and quantized to uint8. The batch size is dynamic.

    Exact mode keeps the student's predictions: biases are added in float after each convolution.
    Integer mode gives every convolution and sum 8-bit inputs and outputs, so that ONNX Runtime
    computes it in integers; this changes predictions.

    Args:
        student: from :func:`gdfq.quantize_model` or :func:`gdfq.load`, with ranges set.
        path: of the file; replaced if it exists.
        images: a batch ``(N, C, H, W)``; only its shape matters.
        input_range: lower and upper bound of the images, for integer mode; None leaves the first
            convolution in float.
        options: the fields of :class:`OnnxOptions`, by name: ``mode="integer"`` or
            ``weights="int4"``.

    Returns:
        The exported network; ``parts`` lists how each layer is stored, ``instead`` those that
        deviate from the plain form.

    Raises:
        InputError: an argument is invalid, ``student`` has dynamic ranges, a package is missing,
            torch.onnx cannot export an operation, or the file cannot be written.
    """
    given = OnnxOptions(**options)
    if input_range is not None and not input_range[0] < input_range[1]:
        raise InputError(f"input_range: must be (lo, hi), lo < hi, got {input_range!r}")
    check_student(student)
    _check_readers(student)
    check_ranges(student)
    require("onnx", "onnxscript")
    form = export_form(student, images, given.mode, given.weights, input_range)
    model = _to_proto(form, images)
    _delete_exporter_notes(model)
    if given.weights == "int4":
        _store_as_int4(model)
    facts = {"mode": given.mode, "parts": [asdict(part) for part in form.parts]}
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(facts))
    try:
        _write(model, Path(path))
    except OSError as error:
        raise InputError(f"path: cannot write {path}: {error.strerror}") from error
    return form


export_onnx.__signature__ = with_fields(export_onnx, OnnxOptions)  # type: ignore[attr-defined]


def _to_proto(form: Form, images: Tensor) -> Any:
    # torch.export makes a batch size of 1 a constant.
    example = torch.zeros((max(2, images.shape[0]), *images.shape[1:]), dtype=torch.float32)
    # It warns about torchvision's operators if torchvision is not installed.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # This package's operators remain where a network calls a layer as a function.
            traced = torch.export.export(
                form.network.float(),
                (example,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            ).run_decompositions(FORMULAS | POOLING | REWRITES)
            refuse_indices(traced)
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, UserError) as error:
        cause = error.__cause__ or error
        raise InputError(f"student: torch.onnx cannot export it: {one_line(cause)}") from error
    finally:
        registration.removeFilter(_is_error)
    assert program is not None
    return program.model_proto


def data_path(path: Path) -> Path:
    """Return the file of tensors that belongs to an ONNX file ``path`` above 2 GB."""
    return path.with_name(f"{path.name}.data")


def _write(model: Any, path: Path) -> None:
    """Write the file; above protobuf's limit, with its large tensors in a second one."""
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= PAGE]
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT:
        from onnx.external_data_helper import set_external_data

        parts: list[bytes] = []
        end = 0
        for tensor in large:
            raw = tensor.raw_data
            set_external_data(tensor, data_path(path).name, end, len(raw))
            tensor.ClearField("raw_data")
            parts += [raw, bytes(-len(raw) % PAGE)]  # page-aligned for memory mapping
            end += len(raw) + -len(raw) % PAGE
        write_file(data_path(path), *parts)
    write_file(path, model.SerializeToString())


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _delete_exporter_notes(model: Any) -> None:
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _store_as_int4(model: Any) -> None:
    """Store weights that fit, and their zero points, as int4."""
    from onnx import helper, numpy_helper

    int4 = helper.tensor_dtype_to_np_dtype(helper.TensorProto.INT4)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        # Codes, and zero points if any; the exporter shares equal tensors between layers.
        at = [i for i in (0, 2) if i < len(node.input)]
        if node.op_type != "DequantizeLinear" or any(node.input[i] not in constants for i in at):
            continue
        arrays = [numpy_helper.to_array(constants[node.input[i]]) for i in at]
        if any(a.dtype != "int8" or a.min() < -8 or a.max() > 7 for a in arrays):
            continue
        for i, array in zip(at, arrays, strict=True):
            name = f"{node.input[i]}.int4"
            if name not in constants:
                constants[name] = numpy_helper.from_array(array.astype(int4), name)
            node.input[i] = name
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
