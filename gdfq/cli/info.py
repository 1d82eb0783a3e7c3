"""``gdfq info``: what was built, and what runs where."""

from __future__ import annotations

from rich.table import Table

from gdfq.cli._common import console
from gdfq.environment import environment, not_built


def info() -> None:
    """Print what was built, which kernels run on CPU and CUDA tensors, and versions."""
    table = Table(show_header=False)
    for key, value in environment().items():
        table.add_row(key, "-" if value is None else str(value))
    console.print(table)
    if rest := not_built():
        console.print(rest, soft_wrap=True, highlight=False, markup=False)
