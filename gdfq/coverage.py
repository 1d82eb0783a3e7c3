"""Which operations of a network are quantized, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["quantized", "float", "uncovered"]


@dataclass(frozen=True)
class Operation:
    """One operation of the traced network.

    ``status`` is ``"quantized"``, ``"float"`` (needs no quantizer, or keeps to float by the
    method) or ``"uncovered"`` (a quantized network would want one, and there is none). ``name`` is
    the path in the student of what is quantized, ``bits`` the width that it got.
    """

    name: str
    kind: str
    status: Status
    reason: str
    bits: int | None = None


@dataclass(frozen=True)
class CoverageReport:
    """Every operation of a converted network, in order of execution."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def uncovered(self) -> list[Operation]:
        """The operations that should be quantized and are not."""
        return [op for op in self.operations if op.status == "uncovered"]

    def counts(self) -> dict[str, int]:
        """Number of operations by status."""
        counts = {"quantized": 0, "float": 0, "uncovered": 0}
        for op in self.operations:
            counts[op.status] += 1
        return counts

    def __str__(self) -> str:
        rows = [("operation", "kind", "status", "why")]
        rows += [(op.name, op.kind, op.status, op.reason) for op in self.operations]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + f"  {row[3]}"
            for row in rows
        ]
        counts = ", ".join(f"{number} {status}" for status, number in self.counts().items())
        return "\n".join([*lines, counts])
