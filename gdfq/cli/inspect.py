"""``gdfq inspect``: the content of a run folder, a packed file or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gdfq.cli._common import console, natural_width, print_table, print_text
from gdfq.export.inspection import Row, inspect_file
from gdfq.runs.run import Run


def inspect(
    file: Annotated[Path, typer.Argument(help="run folder, packed safetensors file, or ONNX file")],
) -> None:
    """Print a student's layers with bits, ranges and sizes."""
    inspection = Run(file).inspect() if file.is_dir() else inspect_file(file)
    facts = Table(show_header=False)
    for key, value in inspection.facts.items():
        facts.add_row(key, value)
    print_table(facts)
    table = Table("layer", "kind", "bits", "shape", "range", "bytes")
    if any(row.note for row in inspection.rows):
        table.add_column("stored as")
    for row in inspection.rows:
        table.add_row(row.name, *_cells(row))
    if console.is_terminal and natural_width(table) > console.width:
        for row in inspection.rows:
            _print_below(row)
    else:
        print_table(table)


def _cells(row: Row) -> list[str]:
    cells = [
        row.kind,
        "" if row.bits is None else str(row.bits),
        "" if row.shape is None else "x".join(map(str, row.shape)),
        "" if row.lo is None else f"{row.lo:.4g} to {row.hi:.4g}",
        f"{row.stored:,}" if row.stored else "",
    ]
    return [*cells, row.note] if row.note else cells


def _print_below(row: Row) -> None:
    """Print a row as two lines, for terminals that the table is too wide for."""
    kind, bits, shape, ends, size, *note = _cells(row)
    facts = [kind, bits and f"{bits} bits", shape, ends, size and f"{size} bytes", *note]
    print_text(row.name, "bold")
    console.print(Padding(Text("  ".join(filter(None, facts))), (0, 0, 0, 2)))
