"""The layers, bits, ranges and sizes of a student, a packed file or an ONNX file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.export.onnx_file import METADATA_KEY, require
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.weight import dequantize
from gdfq.ops.pack_codes import unpack_codes


@dataclass(frozen=True)
class Row:
    """A layer or activation.

    ``lo`` and ``hi``: bounds of the range, for a weight over all channels. ``stored``: bytes of
    codes, scales and zero points in the file; for a student in memory, in a packed file.
    """

    name: str
    kind: str
    bits: int | None
    shape: tuple[int, ...] | None
    lo: float | None
    hi: float | None
    stored: int
    note: str = ""


@dataclass
class Inspection:
    """Facts about a file or folder, and a row for each layer."""

    facts: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def inspect_file(path: str | Path) -> Inspection:
    """Inspect ``path``, a packed safetensors file or an ONNX file.

    Raises:
        InputError: it is neither, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"file: there is no file or folder {path}")
    if path.suffix == ".pt2":
        raise InputError(
            f"file: {path} is a program of torch.export: torch.export.load(path) shows it"
        )
    if path.suffix == ".onnx":
        return _inspect_onnx(path)
    return _inspect_packed(path)


def inspect_student(student: QuantizedModel, facts: dict[str, str]) -> Inspection:
    """Inspect a student in memory; its size is appended to ``facts``."""
    rows = [row for name, module in student.named_modules() for row in _module_rows(name, module)]
    rows += [
        _weight_row(name, "call", quantizer.weight_bits, *quantizer.codes_of(weight))
        for name, (quantizer, weight) in packed.weights_of_calls(student).items()
    ]
    facts["packed, its tensors"] = in_bytes(_packed_size(student, rows))
    facts["a weight with its scales"] = _effective_bits(rows)
    return Inspection(facts, rows)


def in_bytes(size: int) -> str:
    """Return a size in words."""
    return f"{size:,} bytes"


def _module_rows(name: str, module: nn.Module) -> list[Row]:
    if isinstance(module, (QConv2d, QLinear)):
        codes, inv_scale, zero = module.weight_codes()
        kind = "conv2d" if isinstance(module, QConv2d) else "linear"
        return [_weight_row(name, kind, module.weight_bits, codes, inv_scale, zero)]
    if isinstance(module, QAct):
        if module.dynamic_range:
            return [_dynamic_row(name, module.act, module.act_bits)]
        return [_act_row(name, module.act, module.act_bits, module.lo, module.hi)]
    return []


def _weight_row(
    name: str, kind: str, bits: int, codes: Tensor, inv_scale: Tensor, zero: Tensor
) -> Row:
    values = dequantize(codes, inv_scale, zero)
    size = codes.numel() * bits
    stored = -(-size // 8) + 4 * (inv_scale.numel() + zero.numel())
    lo, hi = float(values.min()), float(values.max())
    note = f"a range per kernel, {inv_scale.numel():,}" if inv_scale.dim() == 2 else ""
    return Row(name, kind, bits, tuple(codes.shape), lo, hi, stored, note)


def _act_row(name: str, act: str, bits: int, lo: Tensor, hi: Tensor) -> Row:
    return Row(name, act, bits, None, float(lo.detach()), float(hi.detach()), 0)


def _dynamic_row(name: str, act: str, bits: int) -> Row:
    return Row(name, act, bits, None, None, None, 0, "dynamic ranges")


def _effective_bits(rows: list[Row]) -> str:
    """Format the average bits per weight, scales and zero points included."""
    values = sum(torch.Size(row.shape).numel() for row in rows if row.shape)
    return f"{8 * sum(row.stored for row in rows) / values:.2f} bits" if values else "none"


def _packed_size(student: QuantizedModel, rows: list[Row]) -> int:
    weights = {
        f"{name}.weight" for name, m in student.named_modules() if isinstance(m, (QConv2d, QLinear))
    }
    rest = {id(v): v for k, v in student.state_dict(keep_vars=True).items() if k not in weights}
    for _, weight in packed.weights_of_calls(student).values():
        rest.pop(id(weight), None)
    return sum(row.stored for row in rows) + sum(
        value.numel() * value.element_size() for value in rest.values()
    )


def _inspect_packed(path: Path) -> Inspection:
    header, state = packed.read(path)
    recipe = header.parsed_recipe()
    facts = {
        "packed student": "of no recipe" if recipe is None else f"of recipe {recipe.name}",
        "size": in_bytes(path.stat().st_size),
        "of it, weights": "",
    }
    rows = []
    try:
        for name, layer in header.layers.items():
            codes = state[f"{name}.codes"]
            if codes.dtype == torch.uint8:
                codes = unpack_codes(codes, layer.weight_bits, layer.shape)
            inv_scale, zero = state[f"{name}.scale"], state[f"{name}.zero"]
            rows.append(_weight_row(name, layer.kind, layer.weight_bits, codes, inv_scale, zero))
        for name, act in header.acts.items():
            if act.dynamic_range:
                rows.append(_dynamic_row(name, act.act, act.act_bits))
                continue
            lo, hi = state[f"{name}.lo"], state[f"{name}.hi"]
            rows.append(_act_row(name, act.act, act.act_bits, lo, hi))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"file: {path} is damaged: {error}") from error
    weights = sum(row.stored for row in rows)
    values = sum(torch.Size(row.shape).numel() for row in rows if row.shape)
    facts["of it, weights"] = f"{in_bytes(weights)}, {values:,} values"
    facts["a weight with its scales"] = _effective_bits(rows)
    return Inspection(facts, rows)


def _inspect_onnx(path: Path) -> Inspection:
    onnx = require("onnx")
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError) as error:
        raise InputError(f"file: {path} is not an ONNX file: {error}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    facts = {
        "ONNX": ", ".join(
            f"opset {entry.version}" + (f" of {entry.domain}" if entry.domain else "")
            for entry in model.opset_import
        ),
        "size": in_bytes(path.stat().st_size),
    }
    parts = {}
    if METADATA_KEY in metadata:
        written = json.loads(metadata[METADATA_KEY])
        facts["mode"] = written["mode"]
        parts = {part["name"]: part for part in written["parts"]}
    kinds: dict[str, int] = {}
    for node in model.graph.node:
        kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    facts["nodes"] = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return Inspection(facts, _onnx_rows(onnx, model, parts))


def _onnx_rows(onnx: Any, model: Any, parts: dict[str, Any]) -> list[Row]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, node.op_type)
    rows = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            tensor = constants[node.input[0]]
            codes = torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("int32"))
            name = tensor.name.removesuffix(".int4").removesuffix(".weight")
            kind = readers.get(node.output[0], "?")
            rows.append(_stored_row(onnx, node, constants, codes, name, kind, parts.get(name)))
        elif node.op_type == "QuantizeLinear":
            step = _constant(onnx, constants, node.input[1])
            name = node.input[1].removesuffix(".step")
            part = parts.get(name)
            lo, hi = _act_bounds(onnx, constants, node, step, part)
            bits = part["bits"] if part else None
            rows.append(Row(name, "activation", bits, None, lo, hi, 0, "uint8"))
    return rows


def _stored_row(
    onnx: Any, node: Any, constants: Any, codes: Tensor, name: str, kind: str, part: Any
) -> Row:
    scale = _constant(onnx, constants, node.input[1])
    zero = torch.tensor(0)
    if len(node.input) > 2:
        zero = _constant(onnx, constants, node.input[2])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if codes.dim() > 1 and scale.dim() == 1:
        shape = [1] * codes.dim()
        shape[axis] = -1
        scale = scale.view(shape)
        zero = zero.view(shape) if zero.dim() == 1 else zero
    values = (codes - zero) * scale
    type_name = onnx.TensorProto.DataType.Name(constants[node.input[0]].data_type).lower()
    note = f"{type_name}, {int(codes.min())} to {int(codes.max())}"
    if part and part["note"]:
        note += f"; {part['note']}"
    size = len(constants[node.input[0]].raw_data)
    bits = part["bits"] if part else None
    lo, hi = float(values.min()), float(values.max())
    return Row(name, kind, bits, tuple(codes.shape), lo, hi, size, note)


def _constant(onnx: Any, constants: Any, name: str) -> Tensor:
    if name not in constants:
        raise InputError(f"file: scale or zero point {name} is computed in the graph")
    array = onnx.numpy_helper.to_array(constants[name])
    return torch.from_numpy(array.astype("float32" if array.dtype.kind == "f" else "int32"))


def _act_bounds(
    onnx: Any, constants: Any, node: Any, step: Tensor, part: Any
) -> tuple[float | None, float | None]:
    """Return the bounds of an activation's grid, from the metadata or for all uint8 codes."""
    zero = int(_constant(onnx, constants, node.input[2])) if len(node.input) > 2 else 0
    lo, hi = 0, 255
    if part:
        lo, hi = (int(code) for code in part["stored"].removeprefix("uint8, ").split(" to "))
    return float(step * (lo - zero)), float(step * (hi - zero))
