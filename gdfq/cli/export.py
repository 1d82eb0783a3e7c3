"""``gdfq export``: a run's student as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gdfq.cli._common import EXIT_FAILED, print_error, print_table, print_text
from gdfq.cli._recipe_options import takes_fields
from gdfq.errors import InputError
from gdfq.export.files import Exported, FileOptions, export_file, options_for
from gdfq.export.form import Form
from gdfq.export.onnx_file import data_path
from gdfq.export.source import open_images, open_packed
from gdfq.report.text import plain_percent as percent
from gdfq.runs.run import Run


def export(
    run: Annotated[Path, typer.Argument(help="a run folder, or a packed safetensors file")],
    out: Annotated[
        Path | None,
        typer.Option(help="file to write; by default in the run folder", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="compare on so many test images; by default on all",
                     show_default=False),
    ] = None,
    keep_unfaithful: Annotated[
        bool,
        typer.Option(
            "--keep-unfaithful/--delete-unfaithful",
            help="keep a file that fails the comparison, or delete it",
        ),
    ] = True,
    **options: Any,
) -> None:  # fmt: skip
    """Write a student for other runtimes, then run the file and compare it with the student."""
    form = options_for(out, **{name: value for name, value in options.items() if value is not None})
    path = out or (run if run.is_dir() else run.parent) / form.file_name
    for taken in (path, data_path(path)):
        if taken.exists():
            raise InputError(f"out: {taken} exists; nothing is overwritten")
    if run.is_dir():
        opened = Run(run)
        recipe, student, test = opened.recipe, opened.student, opened.check_images(images)
    else:
        recipe, student = open_packed(run)
        test = open_images(recipe, run, images)
    written = export_file(student, path, form, test, recipe, keep_unfaithful)
    print_text(f"{path}: {written.size:,} bytes")
    if written.form is not None:
        _print_form(written.form)
        _print_parities(written)
    elif written.difference is not None:
        same = "bit for bit" if written.difference == 0 else f"to {written.difference:.2g}"
        print_text(f"Loaded again, it gives the student's logits on {written.images}, {same}.")
    if not written.faithful:
        fate = f"it {written.fate or 'is still there'}"
        reasons = "; ".join(written.wrong)
        print_error(f"gdfq: {path} does not predict as the student does, {fate}: {reasons}")
        raise typer.Exit(EXIT_FAILED)


takes_fields(export, ((None, *field) for field in FileOptions.model_fields.items()))


def _print_parities(written: Exported) -> None:
    parities = written.parities
    title = f"on {written.images}"
    table = Table("against the student", *(p.runtime for p in parities), title=title)
    table.add_row("same prediction", *(percent(p.agreement) for p in parities))
    table.add_row("median difference", *(f"{p.median_difference:.2g}" for p in parities))
    limit = max(p.limit for p in parities)
    beyond = f"images with one beyond {limit:.2g}"
    table.add_row(beyond, *(percent(p.noticeable) for p in parities))
    if parities[0].student_top1 is not None:
        student_top1 = percent(parities[0].student_top1)
        table.add_row(f"top-1 (student {student_top1})", *(percent(p.file_top1) for p in parities))
    print_table(table)


def _print_form(form: Form) -> None:
    stored: dict[str, int] = {}
    for part in form.parts:
        key = (
            "activation, uint8"
            if part.stored.startswith("uint8")
            else f"{part.kind}, {part.stored}"
        )
        stored[key] = stored.get(key, 0) + 1
    for what, count in stored.items():
        print_text(f"  {count} x {what}")
    for part in form.instead:
        print_text(f"  {part.name}: {part.note}")
