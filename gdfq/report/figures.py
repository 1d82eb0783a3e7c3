"""The charts of a report, from the contents of its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gdfq.report.charts import Line, deviations_chart, is_number, line_chart
from gdfq.report.contents import ClassImages, Contents, LayerRow, NormStatistics
from gdfq.report.text import compact, fixed, percent

Legend = list[tuple[int, str]]

# A curve whose largest value is so many times its smallest is drawn on a logarithmic axis.
LOGARITHMIC_FROM = 20

CURVES = {
    "student": ("Student's loss", "what its recipe trains it with"),
    "generator": ("Generator's loss", "all of it"),
    "generator_ce": ("Generator's loss, of classes", "cross-entropy of the teacher's predictions"),
    "bns": ("Generator's loss, of statistics", "squared mismatch, without its weight"),
    "student_lr": ("Student's learning rate", ""),
    "generator_lr": ("Generator's learning rate", ""),
}  # fmt: skip


@dataclass
class Figure:
    """A chart with its caption, and the numbers it is drawn from as a table."""

    title: str
    note: str
    svg: Markup
    description: str
    legend: Legend
    x_label: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def training_figures(runs: Sequence[Contents]) -> list[Figure]:
    """Draw accuracy over training, losses and learning rates; one line per run."""
    figures = []
    accuracy = _accuracy_lines(runs)
    if accuracy:
        figures.append(
            _figure("Accuracy", "top-1", accuracy, "step", percent, legend=True, loss=False)
        )
    names = list(CURVES)
    found = {curve.name: curve.kind for run in runs for curve in run.curves}
    order = [n for n in names if n in found] + [n for n in found if n not in names]
    order.sort(key=lambda name: found[name] != "loss")
    for name in order:
        title, note = CURVES.get(name, (name, ""))
        lines = [
            Line(run.name if len(runs) > 1 else curve.kind, curve.steps, curve.values, i)
            for i, run in enumerate(runs)
            for curve in run.curves
            if curve.name == name and curve.steps
        ]
        if any(is_number(v) for line in lines for v in line.y):
            figures.append(_figure(title, note, lines, "step", compact4, legend=False))
    return figures


def _accuracy_lines(runs: Sequence[Contents]) -> list[Line]:
    if not any(run.points for run in runs):
        return []
    lines = [
        Line(
            run.name if len(runs) > 1 else "student",
            [p.step for p in run.points],
            [p.value for p in run.points],
            i,
        )
        for i, run in enumerate(runs)
        if run.points
    ]
    steps = [step for line in lines for step in line.x]
    teachers = {run.result.teacher for run in runs if run.result.teacher is not None}
    if len(teachers) == 1:
        lines.append(Line("teacher", steps[:1], [teachers.pop()], len(runs), flat=True))
    if len(runs) == 1 and runs[0].result.before is not None:
        lines.append(Line("before fine-tuning", steps[:1], [runs[0].result.before], 2, flat=True))
    return lines


@dataclass(frozen=True)
class _Measure:
    """A number of a layer's row, as a chart."""

    title: str
    note: str
    values: tuple[tuple[str, Callable[[LayerRow], float | None]], ...]
    shown: Callable[[float], str]
    logarithmic: bool = False


def _decibels(value: float) -> str:
    return fixed(value, 1, " dB")


def compact4(value: float) -> str:
    """Return four significant digits."""
    return compact(value, 4)


_WEIGHT_SQNR = ("weights", lambda row: row.weight_sqnr)
_ACT_SQNR = ("activations", lambda row: row.act_sqnr)
_AFTER = ("after fine-tuning", lambda row: row.mismatch_after)
_SENSITIVITY = _Measure(
    "Sensitivity",
    "nats that the predictions diverge by, this layer's weight alone quantized",
    (("sensitivity", lambda row: row.sensitivity),),
    compact,
    True,
)


def _share(value: float) -> str:
    return compact(value) + "%"


_CLIPPED = _Measure(
    "Clipped values",
    "percent of the activation outside its range",
    (("clipped", lambda row: None if row.clipped is None else 100 * row.clipped),),
    _share,
)
_ONE_RUN = (
    _Measure("SQNR", "decibels; higher is better", (_WEIGHT_SQNR, _ACT_SQNR), _decibels),
    _Measure(
        "Batch-norm mismatch",
        "lower is better",
        (
            ("teacher", lambda row: row.mismatch_teacher),
            ("before fine-tuning", lambda row: row.mismatch_before),
            _AFTER,
        ),
        compact,
        True,
    ),
    _SENSITIVITY,
    _CLIPPED,
)
_RUNS = (
    _Measure("SQNR of the weights", "decibels; higher is better", (_WEIGHT_SQNR,), _decibels),
    _Measure("SQNR of the activations", "decibels; higher is better", (_ACT_SQNR,), _decibels),
    _Measure("Batch-norm mismatch", "after fine-tuning; lower is better", (_AFTER,), compact, True),
    _SENSITIVITY,
    _CLIPPED,
)


def layer_figures(runs: Sequence[Contents]) -> list[Figure]:
    """Draw numbers over the layers; runs of the same layers are drawn over each other."""
    groups: dict[tuple[str, ...], list[tuple[int, Contents]]] = {}
    for i, run in enumerate(runs):
        names = tuple(row.name for row in run.measured.layers)
        if names:
            groups.setdefault(names, []).append((i, run))
    figures = []
    for names, members in groups.items():
        together = len(groups) == 1
        for measure in _ONE_RUN if len(runs) == 1 else _RUNS:
            lines = [
                line
                for i, run in members
                for k, (name, value) in enumerate(measure.values)
                if (
                    line := _layer_line(
                        name if len(runs) == 1 else run.name,
                        run.measured.layers,
                        value,
                        k if len(runs) == 1 else i,
                    )
                ).x
            ]
            if not lines:
                continue
            note = measure.note
            if not together:
                note += "; " + ", ".join(run.name for _, run in members)
            figures.append(
                _figure(
                    measure.title,
                    note,
                    lines,
                    "layer",
                    measure.shown,
                    legend=len(measure.values) > 1,
                    loss=measure.logarithmic,
                    x_names=names,
                )
            )
    return figures


def _layer_line(
    name: str, rows: Sequence[LayerRow], value: Callable[[LayerRow], float | None], series: int
) -> Line:
    points = [(i, v) for i, row in enumerate(rows) if is_number(v := value(row))]
    return Line(name, [i for i, _ in points], [v for _, v in points], series)


def norm_figure(norm: NormStatistics, classes: Sequence[ClassImages]) -> Figure:
    """Draw how far a batch norm's input on generated images is from what the teacher stores."""
    names = [c.name for c in classes][: len(norm.by_class)]
    overall = deviations(norm, norm.generated)
    by_class = [deviations(norm, means) for means in norm.by_class[: len(names)]]
    shown = len(norm.generated)
    of = (
        f"{shown} channels"
        if shown == norm.channels
        else f"first {shown} of {norm.channels} channels"
    )
    sizes = [(abs(v), c) for c, v in enumerate(overall) if v is not None]
    description = "No channel has a deviation to compare with."
    if sizes:
        mean = math.sqrt(sum(v * v for v, _ in sizes) / len(sizes))
        largest, channel = max(sizes)
        description = (
            f"The means are {fixed(mean, 2)} standard deviations from the stored ones (root mean "
            f"square over channels), at most {fixed(largest, 2)} (channel {channel})."
        )
    rows = [
        (
            str(c),
            [
                compact(norm.running_mean[c]),
                compact(norm.running_std[c]),
                compact(norm.generated[c]),
                *(fixed(row[c], 2) for row in [overall, *by_class]),
            ],
        )
        for c in range(shown)
    ]
    return Figure(
        norm.name,
        of,
        deviations_chart(norm.name, overall, by_class, names, description=description),
        description,
        [],
        "channel",
        ["stored mean", "stored deviation", "generated mean", "all classes, in deviations", *names],
        rows,
    )


def deviations(norm: NormStatistics, means: Sequence[float]) -> list[float | None]:
    """Return deviations from the stored means, in stored standard deviations; None if that is 0."""
    return [
        (mean - stored) / std if std > 0 and math.isfinite(mean) else None
        for mean, stored, std in zip(means, norm.running_mean, norm.running_std, strict=True)
    ]


def _figure(
    title: str,
    note: str,
    lines: Sequence[Line],
    x_label: str,
    shown: Callable[[float], str],
    *,
    legend: bool,
    loss: bool = True,
    x_names: Sequence[str] | None = None,
) -> Figure:
    values = [v for line in lines for v in line.y if is_number(v)]
    low, high = min(values), max(values)
    logarithmic = loss and low > 0 and high / low > LOGARITHMIC_FROM
    if logarithmic:
        note = f"{note}; logarithmic" if note else "logarithmic"
    description = _describe(lines, shown, x_label, x_names)
    svg = line_chart(
        title,
        lines,
        "layers, first to last" if x_names else x_label,
        description=description,
        logarithmic=logarithmic,
        x_names=x_names,
        format_y=shown,
    )
    curves = [line for line in lines if not line.flat]
    by_x = [dict(zip(line.x, line.y, strict=True)) for line in curves]
    xs = sorted({x for line in curves for x in line.x})
    rows = [
        (
            x_names[int(x)] if x_names else f"{x:,}",
            [shown(v) if (v := known.get(x)) is not None else fixed(None, 0) for known in by_x],
        )
        for x in xs
    ]
    return Figure(
        title,
        note,
        svg,
        description,
        [(line.series, line.name) for line in lines] if legend else [],
        x_label,
        [line.name for line in curves],
        rows,
    )


def _describe(
    lines: Sequence[Line],
    shown: Callable[[float], str],
    x_label: str,
    x_names: Sequence[str] | None,
) -> str:
    parts = []
    for line in lines:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if is_number(y)]
        if not points:
            continue
        if line.flat:
            parts.append(f"{line.name}: {shown(points[0][1])}")
        elif x_names:
            low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
            parts.append(
                f"{line.name}: from {shown(low[1])} ({x_names[int(low[0])]}) to "
                f"{shown(high[1])} ({x_names[int(high[0])]})"
            )
        else:
            ends = (f"{shown(y)} at {x_label} {x:,}" for x, y in (points[0], points[-1]))
            parts.append(f"{line.name}: {', '.join(ends)}")
    return "; ".join(parts) + "."
