"""``gdfq export``: a run's student as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from gdfq import packed
from gdfq.cli._common import EXIT_FAILED, console, percent, print_error
from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export import export_onnx, export_pt2
from gdfq.export.form import Form
from gdfq.export.onnx_file import check_options, require
from gdfq.export.parity import REQUIRED_AGREEMENT, Parity, compare, difference
from gdfq.export.source import Images, open_images, open_student

FORMATS = ("onnx", "pt2", "safetensors")


def export(
    run: Annotated[Path, typer.Argument(help="a run folder, or a packed safetensors file")],
    format: Annotated[str, typer.Option(help=", ".join(FORMATS))] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="file to write; by default in the run folder", show_default=False),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="onnx: exact keeps every answer; integer computes convolutions and sums in "
            "integers, which changes some"
        ),
    ] = "exact",
    weights: Annotated[
        str, typer.Option(help="onnx: int8, or int4 for half the size (2 to 4 bits, exact mode)")
    ] = "int8",
    decompose: Annotated[
        bool, typer.Option(help="pt2: PyTorch's own operators, loads without this package")
    ] = False,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="compare on so many test images; by default on all",
                     show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Write a student for other runtimes, then run the file and compare it with the student."""
    if format not in FORMATS:
        raise InputError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")
    for name, used, formats in (
        ("mode", mode != "exact", "onnx"),
        ("weights", weights != "int8", "onnx"),
        ("decompose", decompose, "pt2"),
    ):
        if used and format != formats:
            raise InputError(f"{name}: is for --format {formats} only")
    kind, codes = check_options(mode, weights)
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package)
    path = out or (run if run.is_dir() else run.parent) / _file_name(
        format, mode, weights, decompose
    )
    if path.exists():
        raise InputError(f"out: {path} exists; nothing is overwritten")
    recipe, student = open_student(run)
    test = open_images(run, recipe, images)
    if format == "onnx":
        form = export_onnx(
            student, path, test.example, mode=kind, weights=codes, input_range=test.range
        )
        _print_file(path)
        _print_form(form)
        parities = _compare_onnx(student, path, test)
        if mode == "exact" and any(p.agreement < REQUIRED_AGREEMENT for p in parities):
            print_error(
                f"gdfq: {path} does not answer as the student does: agreement is below "
                f"{REQUIRED_AGREEMENT}%"
            )
            raise typer.Exit(EXIT_FAILED)
        return
    if format == "pt2":
        export_pt2(student, path, test.example, decompose=decompose)
        network: Any = torch.export.load(path).module()
    else:
        packed.save(student, path, recipe)
        network = packed.load(path)
    _print_file(path)
    largest = difference(student, network, test.batches)
    same = "bit for bit" if largest == 0 else f"to {largest:.2g}"
    console.print(
        f"Loaded again, it gives the student's logits on {test.name}, {same}.", highlight=False
    )
    if largest and format == "safetensors":
        raise typer.Exit(EXIT_FAILED)


def _file_name(format: str, mode: str, weights: str, decompose: bool) -> str:
    if format == "safetensors":
        return "packed.safetensors"
    integer = "-integer" if mode == "integer" else ""
    int4 = "-int4" if weights == "int4" else ""
    plain = "-decomposed" if decompose else ""
    return f"student{integer}{int4}{plain}.{format}"


def _compare_onnx(student: QuantizedModel, path: Path, test: Images) -> list[Parity]:
    parities = compare(student, path, test.batches)
    title = f"on {test.name}"
    table = Table("against the student", *(p.runtime for p in parities), title=title)
    table.add_row("same answer", *(percent(p.agreement) for p in parities))
    table.add_row("median difference", *(f"{p.median_difference:.2g}" for p in parities))
    table.add_row("images with one beyond 1e-3", *(percent(p.noticeable) for p in parities))
    if parities[0].student_top1 is not None:
        student_top1 = percent(parities[0].student_top1)
        table.add_row(f"top-1 (student {student_top1})", *(percent(p.file_top1) for p in parities))
    console.print(table)
    return parities


def _print_file(path: Path) -> None:
    console.print(f"{path}: {path.stat().st_size:,} bytes", highlight=False, soft_wrap=True)


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
        console.print(f"  {count} x {what}", highlight=False)
    for part in form.instead:
        console.print(f"  {part.name}: {part.note}", highlight=False, soft_wrap=True)
