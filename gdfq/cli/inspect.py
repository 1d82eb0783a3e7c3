"""``gdfq inspect``: what is in a run folder, a packed file or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from gdfq.cli._common import console
from gdfq.export.inspection import inspect as inspect_path


def inspect(
    file: Annotated[Path, typer.Argument(help="run folder, packed safetensors file, or ONNX file")],
) -> None:
    """Print a student's layers with bits, ranges and sizes."""
    inspection = inspect_path(file)
    facts = Table(show_header=False)
    for key, value in inspection.facts.items():
        facts.add_row(key, value)
    console.print(facts)
    table = Table(Column("layer", overflow="fold"), "kind", "bits", "shape", "range", "bytes")
    if any(row.note for row in inspection.rows):
        table.add_column("stored as")
    for row in inspection.rows:
        table.add_row(
            row.name,
            row.kind,
            "" if row.bits is None else str(row.bits),
            "" if row.shape is None else "x".join(map(str, row.shape)),
            "" if row.low is None else f"{row.low:.4g} to {row.high:.4g}",
            f"{row.stored:,}" if row.stored else "",
            *([row.note] if row.note else []),
        )
    console.print(table)
