"""Report of which operations of a network are quantized, and why others are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["quantized", "float", "uncovered"]


@dataclass(frozen=True)
class Operation:
    """One operation of the traced network.

    Attributes:
        name: path in the student of the quantized module, or the operation's name.
        kind: class or function.
        status: ``"quantized"``, ``"float"`` (by the method, or because no quantizer is needed) or
            ``"uncovered"`` (should be quantized, but is not supported).
        reason: of the status.
        bits: width of the quantizer.
        float_input: for a layer with a float input, the operation that computes it; else empty.
    """

    name: str
    kind: str
    status: Status
    reason: str
    bits: int | None = None
    float_input: str = ""


@dataclass(frozen=True)
class CoverageReport:
    """Every operation of a converted network, in order of execution."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def uncovered(self) -> list[Operation]:
        """Operations that should be quantized but are not."""
        return [op for op in self.operations if op.status == "uncovered"]

    @property
    def float_inputs(self) -> list[Operation]:
        """Layers with a quantized weight and a float input."""
        return [op for op in self.operations if op.float_input]

    def counts(self) -> dict[str, int]:
        """Count operations by status."""
        counts = {"quantized": 0, "float": 0, "uncovered": 0}
        for op in self.operations:
            counts[op.status] += 1
        return counts

    def __str__(self) -> str:
        rows = [("operation", "kind", "status", "why")]
        for op in self.operations:
            reads = f"; reads float values, from {op.float_input}" if op.float_input else ""
            rows.append((op.name, op.kind, op.status, op.reason + reads))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + f"  {row[3]}"
            for row in rows
        ]
        counts = ", ".join(f"{number} {status}" for status, number in self.counts().items())
        reading = f"{len(self.float_inputs)} layers read float values"
        return "\n".join([*lines, f"{counts}; {reading}"])
