"""The tables of a report, from the contents of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gdfq.report.contents import ClassImages, Confusion, Contents, LayerRow, NormStatistics, Result
from gdfq.report.figures import deviations
from gdfq.report.text import MISSING, compact, fixed, percent, size

# With more classes the matrix is unreadable; list the most frequent mistakes instead.
MATRIX_CLASSES = 25
PAIRS_SHOWN = 12

# From these shares of a class on, in percent, a mistake is in the next darker colour.
SHARES = (0.0, 0.5, 2.0, 5.0, 15.0)
DEVIATIONS = (0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass
class Column:
    """A column of a table; ``first`` is the order that the first click sorts into."""

    title: str
    unit: str = ""
    text: bool = False
    first: str = "descending"


@dataclass
class Matrix:
    """A heat map: per row a name and cells of a class of the style sheet and a text."""

    caption: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


# ---- accuracy and sizes ----


def file_bytes(run: Contents, name: str) -> int | None:
    """Return the bytes of a file by its name in ``run.sizes``."""
    return next((f.bytes for f in run.sizes if f.name == name), None)


def result_rows(run: Contents) -> list[dict[str, Any]]:
    """Return the rows of teacher, student before fine-tuning and student."""
    result = run.result
    whole, packed = file_bytes(run, "float"), file_bytes(run, "packed safetensors")
    weights = fixed_bits(result.average_weight_bits or result.weight_bits)
    weights += _with_scales(result, result.effective_weight_bits)
    acts = str(result.act_bits) + _with_scales(result, result.effective_act_bits)
    smaller = ratio(whole, packed)
    before, after = "Student before fine-tuning", "Student after fine-tuning"
    rows = [
        ("Teacher", result.teacher, MISSING, "32", "32", size(whole), MISSING),
        (before, result.before, _lost(result, result.before), weights, acts, MISSING, MISSING),
        (after, result.after, _lost(result, result.after), weights, acts, size(packed), smaller),
    ]  # fmt: skip
    return [
        {"name": name, "cells": [percent(value), *rest], "main": name == after}
        for name, value, *rest in rows
    ]


def comparison_rows(runs: Sequence[Contents]) -> list[dict[str, Any]]:
    """Return one row per run."""
    rows = []
    for i, run in enumerate(runs):
        result = run.result
        whole, packed = file_bytes(run, "float"), file_bytes(run, "packed safetensors")
        cells = [
            percent(result.teacher),
            percent(result.before),
            percent(result.after),
            _lost(result, result.after),
            f"W{result.weight_bits}A{result.act_bits}{_mark(result)}",
            fixed_bits(result.average_weight_bits)
            + _with_scales(result, result.effective_weight_bits),
            size(whole),
            size(packed),
            ratio(whole, packed),
            f"{result.steps:,}",
            str(result.seed),
        ]
        rows.append({"name": run.name, "series": i, "cells": cells})
    return rows


def _with_scales(result: Result, bits: float | None) -> str:
    """Return the bits with what dynamic ranges cost, to stand beside a width."""
    known = result.dynamic_ranges != "none" and bits is not None
    return f" ({fixed_bits(bits)} with scales)" if known else ""


def _mark(result: Result) -> str:
    return "" if result.dynamic_ranges == "none" else " dynamic, not for integers"


def file_rows(run: Contents) -> list[tuple[str, list[str]]]:
    """Return name, bytes and ratio of each file."""
    whole = file_bytes(run, "float")
    return [
        (
            file.name if file.exists else f"{file.name} (not written)",
            [f"{file.bytes:,}", MISSING if file.name == "float" else ratio(whole, file.bytes)],
        )
        for file in run.sizes
    ]


def fixed_bits(value: float | None) -> str:
    """Return a width, with two digits if it is not a whole number."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if abs(value - round(value)) < 0.005 else f"{value:.2f}"


def ratio(whole: int | None, part: int | None) -> str:
    """Return how many times smaller ``part`` is."""
    return fixed(whole / part, 1) if whole and part else MISSING


def _lost(result: Result, value: float | None) -> str:
    if value is None or result.teacher is None:
        return MISSING
    return fixed(result.teacher - value, 2)


# ---- layers ----

LAYER_COLUMNS = [
    Column("Layer", text=True, first="ascending"),
    Column("Bits", "weight / act."),
    Column("Weight SQNR", "dB", first="ascending"),
    Column("Act. SQNR", "dB", first="ascending"),
    Column("Range", "of the activation"),
    Column("Clipped", "percent"),
    Column("BN mismatch", "teacher"),
    Column("BN mismatch", "before"),
    Column("BN mismatch", "after"),
    Column("Sensitivity", "nats"),
]


def layer_rows(rows: Sequence[LayerRow]) -> list[dict[str, Any]]:
    """Return per row a name, a description of the layer, and cells of a text and a number."""
    return [{"name": r.name, "what": _what(r), "cells": _layer_cells(r)} for r in rows]


def _what(row: LayerRow) -> str:
    shape = " " + "\N{MULTIPLICATION SIGN}".join(map(str, row.shape)) if row.shape else ""
    inner = row.name.rpartition(".")[0] + "."  # said once, where the neighbours have it too
    names = [(name, name.removeprefix(inner)) for name in (row.norm, row.act) if name]
    short = (name if rest.isdigit() else rest for name, rest in names)
    return ", ".join([f"{row.kind}{shape}", *short])


def _layer_cells(row: LayerRow) -> list[tuple[str, float | None]]:
    bits = None
    if row.weight_bits or row.act_bits:
        bits = 100.0 * (row.weight_bits or 0) + (row.act_bits or 0)
    width, ends = None, MISSING
    if row.act_low is not None and row.act_high is not None:
        width = row.act_high - row.act_low
        ends = f"{compact(row.act_low)} to {compact(row.act_high)}"
    numbers = (row.mismatch_teacher, row.mismatch_before, row.mismatch_after, row.sensitivity)
    clipped = None if row.clipped is None else 100 * row.clipped
    cells = [
        (_bits(row), bits),
        (fixed(row.weight_sqnr, 1), row.weight_sqnr),
        (fixed(row.act_sqnr, 1), row.act_sqnr),
        (ends, width),
        (compact(clipped), clipped),
        *((compact(value), value) for value in numbers),
    ]
    return [(text, None if text == MISSING else value) for text, value in cells]


def _bits(row: LayerRow) -> str:
    if not row.weight_bits and not row.act_bits:
        return MISSING
    return f"{row.weight_bits or MISSING} / {row.act_bits or MISSING}"


# ---- heat maps ----


def _step(value: float, thresholds: Sequence[float]) -> str:
    return f"h{sum(value > t for t in thresholds)}"


def confusion_matrix(
    confusion: Confusion, counts: Sequence[Sequence[int]], who: str
) -> Matrix | None:
    """Return test images by class and by prediction; None with too many classes."""
    if not counts or len(counts) > MATRIX_CLASSES:
        return None
    rows = []
    for i, (name, row) in enumerate(zip(confusion.classes, counts, strict=True)):
        total = sum(row) or 1
        cells = [
            ("hit" if i == j else _step(100 * n / total, SHARES), f"{n:,}")
            for j, n in enumerate(row)
        ]
        rows.append((name, cells))
    caption = f"Test images of a class (row) by what the {who} took them for (column)."
    return Matrix(caption, "Class", list(confusion.classes), rows)


def confusion_key() -> list[tuple[str, str]]:
    """Return the key to the colours of a confusion matrix."""
    texts = [f"up to {high:g}%" for high in SHARES[1:]] + [
        f"more than {SHARES[-1]:g}% of the class"
    ]
    return [("hit", "right"), *((f"h{i + 1}", text) for i, text in enumerate(texts))]


def pair_rows(confusion: Confusion) -> list[dict[str, Any]]:
    """Return the most frequent mistakes."""
    order = {name: i for i, name in enumerate(confusion.classes)}
    return [
        {
            "label": pair.label,
            "label_order": order.get(pair.label, len(order)),
            "predicted": pair.predicted,
            "predicted_order": order.get(pair.predicted, len(order)),
            "student": pair.student,
            "teacher": pair.teacher,
        }
        for pair in confusion.pairs[:PAIRS_SHOWN]
    ]


def deviation_matrix(
    norms: Sequence[NormStatistics], classes: Sequence[ClassImages]
) -> Matrix | None:
    """Return each class's root-mean-square deviation over channels, per batch norm."""
    if not norms or not classes:
        return None
    rows = []
    for i, which in enumerate(classes):
        cells = []
        for norm in norms:
            found = deviations(norm, norm.by_class[i]) if i < len(norm.by_class) else []
            known = [v for v in found if v is not None]
            if known:
                value = math.sqrt(sum(v * v for v in known) / len(known))
                cells.append((_step(value, DEVIATIONS), fixed(value, 2)))
            else:
                cells.append(("none", MISSING))
        rows.append((which.name, cells))
    caption = (
        "How far the means of each class's images are from the stored ones: "
        "root mean square over the channels, in stored standard deviations."
    )
    return Matrix(caption, "Class", [norm.name for norm in norms], rows)


def deviation_key() -> list[tuple[str, str]]:
    """Return the key to the colours of the table of deviations."""
    texts = [f"up to {high:g}" for high in DEVIATIONS] + [f"more than {DEVIATIONS[-1]:g}"]
    return [(f"h{i}", text) for i, text in enumerate(texts)]
