"""``gdfq evaluate``: top-1 of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gdfq.cli._common import console, percent, student_name
from gdfq.data import load_test_images, top1
from gdfq.errors import InputError
from gdfq.nn import average_weight_bits
from gdfq.run import load_run


def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder, written by `gdfq quantize`")],
) -> None:
    """Measure a run's student and its teacher on the recipe's test images."""
    recipe, teacher, student = load_run(run)
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError(f"data: the recipe of {run} names no data set to measure on")
    images, labels = load_test_images(spec.data, spec.mean, spec.std)
    table = Table("", f"top-1 on {len(labels):,} test images of {spec.data}")
    table.add_row("teacher", percent(top1(teacher, images, labels)))
    student_row = student_name(average_weight_bits(student), recipe.quantization.act_bits)
    table.add_row(student_row, percent(top1(student, images, labels)))
    console.print(table)
