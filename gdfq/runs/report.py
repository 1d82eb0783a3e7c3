"""Reports: ``report.json`` and pages of HTML about runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from gdfq.errors import InputError
from gdfq.export.files import PACKED
from gdfq.files import write_file
from gdfq.recipes import Recipe
from gdfq.report.contents import AccuracyPoint, Contents, Curve, FileSize, Measured, Result
from gdfq.report.page import render
from gdfq.runs.folder import MEASURED, PAGE
from gdfq.runs.measures import StatusCallback, measure

if TYPE_CHECKING:
    from gdfq.runs.run import Run

_JSON = TypeAdapter(Measured)


def write_report(
    runs: Sequence[Run],
    out: Path,
    on_status: StatusCallback = lambda text: None,
    on_warning: StatusCallback = lambda text: None,
    again: bool = False,
) -> None:
    """Write one page about ``runs`` to ``out``, in place of any file there.

    The measurements that a finished run left in ``report.json`` are used; if there are none, they
    are made, which needs the teacher, and the test images for the confusion matrix, and left there.

    Args:
        runs: finished or not; at least one.
        out: a file, of HTML.
        on_status: called with the name of each measurement before it begins.
        on_warning: called with a line about each thing that went wrong.
        again: measure also if ``report.json`` is there.

    Raises:
        InputError: a folder holds no run, its teacher cannot be built, or ``out`` cannot be
            written.
    """
    if not runs:
        raise InputError("runs: at least one run folder is needed")
    names = _names([run.folder for run in runs])
    contents = [
        contents_of(run, name, on_status, on_warning, again)
        for run, name in zip(runs, names, strict=True)
    ]
    try:
        write_file(out, render(contents).encode())
    except OSError as error:
        raise InputError(f"out: cannot write {out}: {error.strerror}") from error


def write_run_report(run: Run) -> None:
    """Measure a run that has just finished; leave ``report.json`` and ``report.html`` with it.

    Raises:
        OSError: they cannot be written.
    """
    measured = measure(run)
    _save(run.folder, measured)
    content = _contents(run, run.folder.name, run.result, measured)
    write_file(run.folder / PAGE, render([content]).encode())


def contents_of(
    run: Run,
    name: str,
    on_status: StatusCallback = lambda text: None,
    on_warning: StatusCallback = lambda text: None,
    again: bool = False,
) -> Contents:
    """Return what a page shows of ``run`` under ``name``; see :func:`write_report`."""
    measured = None if again else _stored(run)
    if measured is not None:
        return _contents(run, name, run.result, measured)
    _, missing = run.kept_student
    if missing is not None:
        on_warning(missing)
    measured = measure(run, lambda what: on_status(f"{name}: measuring {what}"))
    for note in measured.notes:
        on_warning(f"{name}: {note}")
    if run.result.finished:
        try:
            _save(run.folder, measured)
        except OSError as error:
            on_warning(f"cannot write {run.folder / MEASURED}: {error.strerror}")
    return _contents(run, name, run.latest_result, measured)


def _stored(run: Run) -> Measured | None:
    """Return cached measurements if they match the current student."""
    try:
        measured = _JSON.validate_json((run.folder / MEASURED).read_bytes())
    except (OSError, ValidationError):
        return None
    if not run.result.finished or measured.step != run.result.steps:
        return None
    return measured


def _save(folder: Path, measured: Measured) -> None:
    write_file(folder / MEASURED, _JSON.dump_json(measured))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or as much of their paths as makes them different."""
    paths = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _contents(run: Run, name: str, result: Result, measured: Measured) -> Contents:
    recipe = run.recipe
    measured_at = ((recipe.training.warmup_steps, result.before), (measured.step, result.after))
    return Contents(
        name=name,
        sentence=_sentence(recipe, result, measured.step),
        result=result,
        measured=measured,
        sizes=_sizes(run.folder, measured),
        curves=_curves(run.history),
        points=[AccuracyPoint(step, top1) for step, top1 in measured_at if top1 is not None],
        environment=environment_line(run.environment),
        start=recipe.start.describe(),
        parts=recipe.parts.describe(),
    )


def _sentence(recipe: Recipe, result: Result, step: int) -> str:
    spec, average = recipe.quantization, result.average_weight_bits
    bits = f"{spec.weight_bits}-bit weights"
    if average is not None and average != spec.weight_bits:
        bits = f"weights of {average:.2f} bits on average"
    total = recipe.training.steps
    trained = f"{step:,} steps" if result.finished else f"{step:,} of {total:,} steps so far"
    return (
        f"{recipe.teacher.model} quantized to {bits} and {spec.act_bits}-bit activations without "
        f"its training data: {trained} on images that a generator learned from the network itself."
    )


def _sizes(folder: Path, measured: Measured) -> list[FileSize]:
    sizes = []
    if measured.float_bytes is not None:
        sizes.append(FileSize("float", measured.float_bytes, exists=False))
    packed = folder / PACKED
    if packed.is_file():
        sizes.append(FileSize("packed safetensors", packed.stat().st_size, exists=True))
    elif measured.packed_bytes is not None:
        sizes.append(FileSize("packed safetensors", measured.packed_bytes, exists=False))
    for pattern in ("*.onnx", "*.pt2"):
        for path in sorted(folder.glob(pattern)):
            sizes.append(FileSize(path.name, path.stat().st_size, exists=True))
    return sizes


def _curves(history: Sequence[dict[str, Any]]) -> list[Curve]:
    """Return every number that the history has by epoch."""
    curves: dict[str, Curve] = {}
    for record in history:
        step = record.get("step")
        for name, value in record.items():
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if name in ("epoch", "step") or not number or step is None:
                continue
            kind = "rate" if name.endswith("_lr") else "loss"
            curve = curves.setdefault(name, Curve(name, kind, [], []))
            curve.steps.append(step)
            curve.values.append(float(value))
    return list(curves.values())


def environment_line(facts: dict[str, Any]) -> str:
    """Return versions and machine of a run, from its ``environment.json``; empty if not known."""
    if not facts:
        return ""
    parts = [f"gdfq {facts.get('gdfq', '?')}", f"torch {facts.get('torch', '?')}"]
    on_gpu = facts.get("device") == "cuda"
    parts.append(str(facts.get("gpu") if on_gpu else facts.get("cpu", "?")))
    if not on_gpu:
        parts.append(f"{facts.get('threads', '?')} threads")
    if facts.get("processes", 1) != 1:
        parts.append(f"{facts['processes']} processes")
    return ", ".join([*parts, str(facts.get("system", ""))]).rstrip(", ")
