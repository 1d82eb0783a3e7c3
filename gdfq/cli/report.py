"""``gdfq report``: a page about one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gdfq.cli._common import DEVICE, print_text, print_warning
from gdfq.environment import resolve_device
from gdfq.errors import InputError
from gdfq.memory import keep_freed_memory
from gdfq.runs.folder import PAGE
from gdfq.runs.report import write_report
from gdfq.runs.run import Run


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="run folders, finished or not; several are compared")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write; by default report.html in the folder of the one run, or here "
            "for several",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    again: Annotated[
        bool,
        typer.Option("--again", help="measure anew what a finished run has in report.json"),
    ] = False,
) -> None:
    """Write one HTML file that shows runs: accuracy, losses, images, and every layer."""
    for path in runs:
        if not path.is_dir():
            raise InputError(f"run: there is no folder {path}")
    target = out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    keep_freed_memory()
    opened = [Run(path, device=resolve_device(device), on_warning=print_warning) for path in runs]
    write_report(opened, target, print_text, print_warning, again)
    print_text(f"{target}: {target.stat().st_size:,} bytes")
