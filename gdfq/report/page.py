"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdfq.errors import InputError
from gdfq.report.contents import ClassImages, Contents, Result, png
from gdfq.report.figures import layer_figures, norm_figure, training_figures
from gdfq.report.html import fill
from gdfq.report.tables import (
    LAYER_COLUMNS,
    comparison_rows,
    confusion_key,
    confusion_matrix,
    deviation_key,
    deviation_matrix,
    file_bytes,
    file_rows,
    fixed_bits,
    layer_rows,
    pair_rows,
    ratio,
    result_rows,
)
from gdfq.report.text import MISSING, duration, percent, size

# Small images are shown at twice their size, large ones no larger than this.
SMALL, LARGEST = 40, 112


@dataclass(frozen=True)
class _Run:
    name: str
    sentence: str
    series: int


def render(runs: Sequence[Contents]) -> str:
    """Render the page of one run, or of several that are compared.

    Args:
        runs: at least one, of different names.

    Returns:
        The HTML file's text: style, script, plots and images are in it, and it reads without the
        script.

    Raises:
        InputError: ``runs`` is empty.
    """
    if not runs:
        raise InputError("runs: a report needs at least one run")
    several = len(runs) > 1
    named = [_Run(run.name, run.sentence, i) for i, run in enumerate(runs)]
    parts: dict[str, Any] = {
        "training": _training(runs, named),
        "images": _images(runs, named),
        "norms": _norms(runs, named),
        "layers": _layers(runs, named),
        "confusion": _confusion(runs, named),
    }
    titles = {
        "training": ("training", "Training"),
        "images": ("images", "Generated images"),
        "norms": ("statistics", "Statistics"),
        "layers": ("layers", "Layers"),
        "confusion": ("confusion", "Confusion"),
    }
    sections = [("result", "Comparison" if several else "Result")]
    sections += [titles[name] for name, content in parts.items() if content]
    sections += [("facts", "Details")]
    return fill(
        "page.html",
        kicker="gdfq report",
        title=f"{len(runs)} runs compared" if several else runs[0].name,
        lead=_lead(runs) if several else runs[0].sentence,
        warnings=_warnings(runs),
        sections=sections,
        several=several,
        runs=named,
        result=_result(runs),
        facts=[
            {"run": run, "facts": _facts(content), "files": file_rows(content)}
            for run, content in zip(named, runs, strict=True)
        ],
        **parts,
    )


def _lead(runs: Sequence[Contents]) -> str:
    names = [run.name for run in runs]
    return f"Quantized without training data: {', '.join(names[:-1])} and {names[-1]}."


def _warnings(runs: Sequence[Contents]) -> list[tuple[str, str]]:
    found = []
    for run in runs:
        name = run.name if len(runs) > 1 else ""
        result, step = run.result, f"{run.result.steps:,}"
        if result.failure:
            found.append((name, f"This run failed at step {step}: {result.failure}"))
        elif not result.finished:
            found.append((name, f"This run has not finished: the student is that of step {step}."))
        if run.measured.step != result.steps:
            earlier = f"The table of layers was measured at step {run.measured.step:,}"
            found.append((name, f"{earlier}; the run is at step {step}."))
        found += [(name, note) for note in run.measured.notes]
    return found


def _result(runs: Sequence[Contents]) -> dict[str, Any]:
    measured = any(
        value is not None
        for run in runs
        for value in (run.result.teacher, run.result.before, run.result.after)
    )
    evaluations = {run.result.evaluation for run in runs}
    if not measured:
        reasons = "; ".join(sorted(evaluations))
        caption = f"Accuracy was not measured: {reasons}."
    elif len(evaluations) == 1:
        caption = f"Top-1 accuracy on {evaluations.pop()}."
    else:
        caption = "Top-1 accuracy; what it was measured on is among the details."
    if len(runs) > 1:
        return {"caption": caption, "rows": comparison_rows(runs)}
    return {"caption": caption, "rows": result_rows(runs[0]), "summary": _summary(runs[0])}


def _summary(run: Contents) -> str:
    top1, parts = run.result, []
    if top1.after is not None:
        text = f"The student classifies {percent(top1.after)} of {top1.evaluation} correctly"
        if top1.teacher is not None:
            lost = top1.teacher - top1.after
            word = "fewer" if lost >= 0 else "more"
            text += f", {abs(lost):.2f} points {word} than its teacher"
        if top1.before is not None:
            text += f"; before fine-tuning it was {percent(top1.before)}"
        parts.append(text + ".")
    whole, packed = file_bytes(run, "float"), file_bytes(run, "packed safetensors")
    if whole and packed:
        parts.append(
            f"Packed, it takes {size(packed)}, {ratio(whole, packed)} times less than the "
            f"teacher's {size(whole)}."
        )
    return " ".join(parts)


def _training(runs: Sequence[Contents], named: Sequence[_Run]) -> dict[str, Any] | None:
    charts = training_figures(runs)
    if not charts:
        return None
    warm_up = False
    for run in runs:
        first = {curve.name: curve.steps[0] for curve in run.curves if curve.steps}
        warm_up |= "student" in first and first["student"] > min(first.values())
    return {"warm_up": warm_up, "charts": charts, "legend": _legend(named)}


def _legend(named: Sequence[_Run]) -> list[tuple[int, str]]:
    return [(run.series, run.name) for run in named] if len(named) > 1 else []


def _images(runs: Sequence[Contents], named: Sequence[_Run]) -> list[dict[str, Any]]:
    return [
        {"run": run, "classes": [_class(c) for c in content.measured.classes]}
        for run, content in zip(named, runs, strict=True)
        if content.measured.classes
    ]


def _class(images: ClassImages) -> dict[str, Any]:
    height, width = images.mean.shape[:2]
    side = 2 * width if width <= SMALL else min(width, LARGEST)
    return {
        "name": images.name,
        "averaged": f"{images.averaged:,}",
        "mean": _source(images.mean),
        "images": [_source(image) for image in images.images],
        "width": width,
        "height": height,
        "side": side,
        # As high as two rows of small images.
        "mean_side": 2 * side + 3 if width <= SMALL else side,
        "style": "exact" if width <= SMALL else "reduced",
    }


def _source(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _norms(runs: Sequence[Contents], named: Sequence[_Run]) -> list[dict[str, Any]]:
    found = []
    for run, content in zip(named, runs, strict=True):
        norms, classes = content.measured.norms, content.measured.classes
        if norms:
            found.append(
                {
                    "run": run,
                    "charts": [norm_figure(norm, classes) for norm in norms],
                    "table": deviation_matrix(norms, classes),
                    "key": deviation_key(),
                }
            )
    return found


def _layers(runs: Sequence[Contents], named: Sequence[_Run]) -> dict[str, Any] | None:
    tables = [
        {
            "run": run,
            "caption": _layers_caption(content),
            "columns": LAYER_COLUMNS,
            "rows": layer_rows(content.measured.layers),
        }
        for run, content in zip(named, runs, strict=True)
        if content.measured.layers
    ]
    if not tables:
        return None
    return {
        "charts": layer_figures(runs),
        "legend": _legend(named),
        "tables": tables,
    }


def _layers_caption(run: Contents) -> str:
    measured = run.measured
    text = f"Every layer, in order of execution. Measured on {measured.images:,} generated images"
    if measured.sensitivity_images:
        text += f", sensitivity on {measured.sensitivity_images:,}"
    return text + "."


def _confusion(runs: Sequence[Contents], named: Sequence[_Run]) -> list[dict[str, Any]]:
    found = []
    for run, content in zip(named, runs, strict=True):
        confusion = content.measured.confusion
        if confusion is None or not (confusion.student or confusion.pairs):
            continue
        found.append(
            {
                "run": run,
                "matrix": confusion_matrix(confusion, confusion.student, "student"),
                "teacher_matrix": confusion_matrix(confusion, confusion.teacher, "teacher"),
                "key": confusion_key(),
                "pairs": pair_rows(confusion),
                "pairs_caption": "The student's most frequent mistakes, and how "
                "often the teacher makes them.",
            }
        )
    return found


def _facts(run: Contents) -> list[tuple[str, str]]:
    result = run.result
    facts = [
        ("Steps", f"{result.steps:,}" + ("" if result.finished else ", not finished")),
        ("Bits", f"weights {result.weight_bits}, activations {result.act_bits}"),
        ("Weights on average", f"{fixed_bits(result.average_weight_bits)} bits"),
        ("Weights in float", _in_float(result)),
        ("With their scales", _effective(result)),
        ("Ranges", _dynamic(result)),
        ("Start", run.start),
        ("Parts", run.parts),
        ("Seed", str(result.seed)),
        ("Training took", duration(result.training_seconds)),
        ("Measured on", result.evaluation),
        ("Environment", run.environment),
    ]
    return [(name, text) for name, text in facts if text and MISSING not in text]


def _in_float(result: Result) -> str:
    return f"{100 * result.float_weight_share:.2f}%" if result.float_weight_share else ""


def _effective(result: Result) -> str:
    """Return bits of weights and activations with what their ranges cost; empty if not known."""
    known = (
        ("weights", result.effective_weight_bits),
        ("activations", result.effective_act_bits),
    )
    parts = [f"{what} {fixed_bits(bits)}" for what, bits in known if bits is not None]
    return f"{', '.join(parts)} bits" if parts else ""


def _dynamic(result: Result) -> str:
    whose = {"act": "of activations", "weight": "of weights", "both": "of weights and activations"}
    if result.dynamic_ranges == "none":
        return ""
    return f"dynamic, {whose[result.dynamic_ranges]}: no integer runtime can compute with them"
