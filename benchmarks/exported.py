"""Shared code of both measurements of exported files: files, latencies and tables."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gdfq.export import runtimes
from gdfq.export.emit import OPSET
from gdfq.export.source import CheckImages

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
BATCHES = (1, 32)
FILES: dict[str, dict[str, Any]] = {
    "exact": {"mode": "exact"},
    "exact, int4": {"mode": "exact", "weights": "int4"},
    "integer": {"mode": "integer"},
}
RUNTIMES = list(runtimes.NAMES.values())
# Each kind of file targets one runtime, in which it should be so many times faster than float.
AIMS = {"exact": ("OpenVINO", 2.0), "integer": ("ONNX Runtime", 1.5)}
INTEGER_TYPES = ("uint8", "int8", "u8", "i8")
COMPUTING = ("Conv", "QLinearConv", "Convolution", "Gemm", "FullyConnected", "Add", "QLinearAdd",
             "Eltwise")  # fmt: skip


def versions() -> dict[str, str]:
    """Return the runtimes' versions."""
    import onnxruntime
    import openvino

    return {
        "ONNX Runtime": onnxruntime.__version__,
        "OpenVINO": openvino.__version__.split("-")[0],
    }


def export_float(network: nn.Module, images: CheckImages, path: Path) -> None:
    """Write the float model for the comparison."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images.example,), path, dynamo=True, opset_version=OPSET, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip


def latencies(models: dict[str, Callable[[Any], Any]], images: Any, rounds: int) -> dict[str, Any]:
    """Return median and fastest milliseconds of each model, interleaved."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            if turn >= 3:  # the first ones warm up
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": statistics.median(times), "fastest_ms": min(times)}
        for name, times in taken.items()
    }


# ---- tables ----


@dataclass(frozen=True)
class Row:
    """A file in a runtime: its comparison, and the latencies of all files by batch, if known."""

    student: str
    file: str
    runtime: str
    answers: dict[str, Any]
    latencies: dict[str, Any] | None = None

    def speedup(self, size: int) -> float | None:
        """Return the float model's fastest time divided by the file's."""
        taken = (self.latencies or {}).get(f"batch {size}")
        if taken is None or self.file not in taken:
            return None
        return taken["float"]["fastest_ms"] / taken[self.file]["fastest_ms"]

    def time(self, size: int) -> str:
        """Return milliseconds, with the speed-up in brackets."""
        speedup = self.speedup(size)
        if speedup is None:
            return "-" if self.file in FILES else ""
        taken = (self.latencies or {})[f"batch {size}"][self.file]["fastest_ms"]
        return f"{taken:.2f} ({speedup:.2f})"


def table(rows: Iterable[Row], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """Return a Markdown table: a line per row, with ``columns`` of its comparison, then times."""
    head = ["student", "file", "runtime", *columns, *(f"batch {size}, ms" for size in BATCHES)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        answers = (show(row.answers) for show in columns.values())
        times = (row.time(size) for size in BATCHES)
        cells = [row.student, row.file, row.runtime, *answers, *times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


SAME_ANSWER: dict[str, Callable[[dict[str, Any]], str]] = {
    "top-1 agreement": lambda p: f"{p['agreement']:.2f}%",
    "median difference": lambda p: f"{p['median_difference']:.1e}",
}


def aims(rows: list[Row]) -> str:
    """Return a Markdown table of each file's speed-up over float in its target runtime."""
    head = ["file", "runtime", "aim", *(f"batch {size}" for size in BATCHES)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for file, (runtime, aim) in AIMS.items():
        cells = []
        for size in BATCHES:
            of = [r for r in rows if (r.file, r.runtime) == (file, runtime)]
            found = {r.student: r.speedup(size) for r in of}
            known = {student: ratio for student, ratio in found.items() if ratio is not None}
            slower = ", ".join(student for student, ratio in known.items() if ratio < aim)
            span = f"{min(known.values()):.2f} to {max(known.values()):.2f}" if known else "-"
            cells.append(span + (f"; missed by {slower}" if slower else ""))
        lines.append(f"| {file} | {runtime} | {aim:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def integers(executed: dict[str, int]) -> str:
    """Count the computing nodes that ran in integers."""
    computing = {k.split(", ")[0] for k in executed} & set(COMPUTING)
    parts = []
    for kind in sorted(computing):
        counts = {k.split(", ")[1]: n for k, n in executed.items() if k.split(", ")[0] == kind}
        parts.append(
            f"{sum(n for t, n in counts.items() if t in INTEGER_TYPES)} of "
            f"{sum(counts.values())} {kind}"
        )
    return ", ".join(parts)


def sizes(students: dict[str, Any]) -> str:
    """Return a Markdown table of the bytes of each student's files."""
    names = list(next(iter(students.values()))["bytes"])
    lines = ["| student | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for student, result in students.items():
        sizes = (f"{count:,}" for count in result["bytes"].values())
        lines.append(f"| {student} | " + " | ".join(sizes) + " |")
    return "\n".join(lines)
