"""``gdfq evaluate``: top-1 of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gdfq.cli._common import (
    DEVICE,
    WORKERS,
    print_table,
    print_warning,
)
from gdfq.data import open_batches, top1
from gdfq.environment import resolve_device
from gdfq.memory import keep_freed_memory
from gdfq.report.text import plain_percent
from gdfq.runs.run import Run


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run folder, written by `gdfq quantize`")],
    data: Annotated[
        str | None, typer.Option(help="another data set than the recipe's", show_default=False)
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="where the data set is", show_default=False)
    ] = None,
    workers: Annotated[int | None, WORKERS] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Measure a run's student and its teacher on the recipe's test images."""
    opened, world = Run(run, device=resolve_device(device)), context.obj
    student = opened.student
    given = {"data": data, "data_path": data_path}
    recipe = opened.recipe.with_options({k: v for k, v in given.items() if v is not None})
    keep_freed_memory()
    batches = open_batches(recipe, opened.preprocessing, workers, world)
    if batches.note:
        print_warning(batches.note)
    table = Table("", f"top-1 on {world.total(batches.pictures):,} test images of {batches.name}")
    table.add_row("teacher", plain_percent(top1(opened.teacher, batches, world)))
    name = f"student, {opened.latest_result.label}"
    table.add_row(name, plain_percent(top1(student, batches, world)))
    print_table(table)
