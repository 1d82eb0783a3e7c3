"""``gdfq info``: which kernels were built, and which run where."""

from __future__ import annotations

from rich.table import Table

from gdfq.cli._common import print_table, print_text
from gdfq.environment import environment, not_built


def info() -> None:
    """Print what was built, which kernels run on CPU and CUDA tensors, and versions."""
    table = Table(show_header=False)
    for key, value in environment().items():
        table.add_row(key, "-" if value is None else str(value))
    print_table(table)
    if rest := not_built():
        print_text(rest)
