"""A report of runs: from their folders, or at the end of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from gdfq.errors import InputError
from gdfq.files import write_file
from gdfq.recipes import Recipe, load_recipe
from gdfq.report.contents import (
    Accuracy,
    AccuracyPoint,
    Contents,
    Curve,
    FileSize,
    Measured,
)
from gdfq.report.measures import measure
from gdfq.report.page import render
from gdfq.runs.state import RunState, open_run, read_json

MEASURED = "report.json"
PAGE = "report.html"
_JSON = TypeAdapter(Measured)

Tell = Callable[[str], None]


def write_report(
    folders: Sequence[Path],
    out: Path,
    phase: Tell = lambda name: None,
    warning: Tell = lambda text: None,
    device: str = "cpu",
    network: nn.Module | None = None,
    again: bool = False,
) -> None:
    """Write one page about the runs in ``folders`` to ``out``, in place of any file there.

    What a finished run left in ``report.json`` is used; where there is none, it is measured, which
    needs the teacher, and the test images for the confusion matrix, and left there.

    Args:
        folders: of runs, finished or not; at least one.
        out: a file, of HTML.
        phase: told what is measured next.
        warning: told what is not as it should be.
        device: what is measured on.
        network: the teacher of those runs that were given it in Python.
        again: measure also where ``report.json`` is there.

    Raises:
        InputError: a folder holds no run, its teacher cannot be built, or ``out`` cannot be
            written.
    """
    if not folders:
        raise InputError("runs: at least one run folder is needed")
    names = _names(folders)
    contents = [
        contents_of(folder, name, phase, warning, device, network, again)
        for folder, name in zip(folders, names, strict=True)
    ]
    try:
        write_file(out, render(contents).encode())
    except OSError as error:
        raise InputError(f"out: cannot write {out}: {error.strerror}") from error


def close(run: RunState, phase: Tell = lambda name: None) -> None:
    """Measure a run that has just come to its end; leave ``report.json`` and ``report.html``.

    Raises:
        OSError: they cannot be written.
    """
    measured = measure(run, phase)
    _save(run.folder, measured)
    content = _contents(run.folder, run.folder.name, run.recipe, run.result, measured)
    write_file(run.folder / PAGE, render([content]).encode())


def contents_of(
    folder: Path,
    name: str,
    phase: Tell = lambda name: None,
    warning: Tell = lambda text: None,
    device: str = "cpu",
    network: nn.Module | None = None,
    again: bool = False,
) -> Contents:
    """What a report shows of the run in ``folder`` under ``name``; see :func:`write_report`."""
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    result = read_json(folder / "result.json")
    measured = None if again else _stored(folder, result)
    if measured is not None:
        recipe = load_recipe(str(folder / "recipe.toml"))
        return _contents(folder, name, recipe, result, measured)
    in_memory = load_recipe(str(folder / "recipe.toml")).teacher.in_memory
    run = open_run(folder, warning, device, network if in_memory else None)
    measured = measure(run, lambda what: phase(f"{name}: measuring {what}"))
    for note in measured.notes:
        warning(f"{name}: {note}")
    if result.get("finished"):
        try:
            _save(folder, measured)
        except OSError as error:
            warning(f"cannot write {folder / MEASURED}: {error.strerror}")
    return _contents(folder, name, run.recipe, run.result, measured)


def _stored(folder: Path, result: dict[str, Any]) -> Measured | None:
    """What was measured of a finished run, if that is there and of the student that is there."""
    try:
        measured = _JSON.validate_json((folder / MEASURED).read_bytes())
    except (OSError, ValidationError):
        return None
    if not result.get("finished") or measured.step != result.get("steps"):
        return None
    return measured


def _save(folder: Path, measured: Measured) -> None:
    write_file(folder / MEASURED, _JSON.dump_json(measured))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or as much of their paths as makes them different."""
    paths = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _contents(
    folder: Path, name: str, recipe: Recipe, result: dict[str, Any], measured: Measured
) -> Contents:
    spec = recipe.quantization
    step = measured.step
    finished = bool(result.get("finished"))
    average = result.get("average_weight_bits")
    accuracy = Accuracy(*(result.get(key) for key in ("teacher", "before", "after")))
    warmup = recipe.training.warmup_epochs * recipe.training.steps_per_epoch
    points = []
    if accuracy.before is not None:
        points.append(AccuracyPoint(warmup, accuracy.before))
    if accuracy.after is not None:
        points.append(AccuracyPoint(step, accuracy.after))
    return Contents(
        name=name,
        sentence=_sentence(recipe, average, step, finished),
        finished=finished,
        failure=result.get("failure"),
        step=step,
        seed=recipe.training.seed,
        weight_bits=spec.weight_bits,
        act_bits=spec.act_bits,
        average_weight_bits=average,
        training_seconds=result.get("training_seconds"),
        evaluation=result.get("evaluation", "not measured"),
        accuracy=accuracy,
        sizes=_sizes(folder, measured),
        curves=_curves(folder / "metrics.jsonl"),
        points=points,
        start=recipe.start.build().describe(),
        parts=recipe.parts.build().describe(),
        environment=environment_line(read_json(folder / "environment.json")),
        measured=measured,
        dynamic_ranges=spec.dynamic_ranges,
        float_weight_share=result.get("float_weight_share", 0.0),
        effective_weight_bits=result.get("effective_weight_bits"),
        effective_act_bits=result.get("effective_act_bits"),
    )


def _sentence(recipe: Recipe, average: float | None, step: int, finished: bool) -> str:
    spec = recipe.quantization
    bits = f"{spec.weight_bits}-bit weights"
    if average is not None and average != spec.weight_bits:
        bits = f"weights of {average:.2f} bits on average"
    total = recipe.training.epochs * recipe.training.steps_per_epoch
    trained = f"{step:,} steps" if finished else f"{step:,} of {total:,} steps so far"
    return (
        f"{recipe.teacher.model} quantized to {bits} and {spec.act_bits}-bit activations without "
        f"its training data: {trained} on images that a generator learned from the network itself."
    )


def _sizes(folder: Path, measured: Measured) -> list[FileSize]:
    sizes = []
    if measured.float_bytes is not None:
        sizes.append(FileSize("float", measured.float_bytes, exists=False))
    packed = folder / "packed.safetensors"
    if packed.is_file():
        sizes.append(FileSize("packed safetensors", packed.stat().st_size, exists=True))
    elif measured.packed_bytes is not None:
        sizes.append(FileSize("packed safetensors", measured.packed_bytes, exists=False))
    for pattern in ("*.onnx", "*.pt2"):
        for path in sorted(folder.glob(pattern)):
            sizes.append(FileSize(path.name, path.stat().st_size, exists=True))
    return sizes


def _curves(path: Path) -> list[Curve]:
    """Every number that ``metrics.jsonl`` has by epoch."""
    curves: dict[str, Curve] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
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
    """Versions and machine of a run, from its ``environment.json``; empty where not known."""
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
