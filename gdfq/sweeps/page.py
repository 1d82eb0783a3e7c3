"""A sweep as one HTML file, in the form of a run's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from gdfq.report.charts import SERIES
from gdfq.report.figures import Figure
from gdfq.report.html import fill
from gdfq.report.spreads import Row, spread_chart
from gdfq.report.tables import Column, fixed_bits
from gdfq.report.text import MISSING, compact, duration, fixed, percent
from gdfq.runs.folder import PAGE
from gdfq.sweeps.contents import Paired, RunRow, Spread, Sweep, VariantRow

TOP1 = "Top\N{NON-BREAKING HYPHEN}1"
COLUMNS = [
    Column("Variant", text=True, first="ascending"),
    Column("Runs"),
    Column(TOP1, "before"),
    Column(TOP1, "after"),
    Column("Lost", "points", first="ascending"),
    Column("Difference", "points"),
    Column("Won", "seeds"),
    Column("Divergence", "1/1000 nat", first="ascending"),
    Column("Agreement", "percent"),
    Column("Weights", "bits"),
    Column("Time"),
]
RUN_COLUMNS = [
    Column("Variant", text=True, first="ascending"),
    Column("Seed", first="ascending"),
    Column(TOP1, "before"),
    Column(TOP1, "after"),
    Column("Divergence", "1/1000 nat", first="ascending"),
    Column("Agreement", "percent"),
    Column("Steps"),
    Column("Time"),
    Column("Report", text=True),
]


def render(sweep: Sweep) -> str:
    """Render the page of a sweep, with style, script and plots; it reads without the script.

    It links to the runs' own reports beside it.
    """
    charts = [
        {"name": group.name, "charts": _figures(sweep, group.variants)} for group in sweep.groups
    ]
    parts: dict[str, Any] = {"charts": [group for group in charts if group["charts"]]}
    sections = [("choice", "Choice"), ("variants", "Variants"), ("plots", "Plots")]
    sections += [("runs", "Runs"), ("facts", "Details")]
    return fill(
        "sweep.html",
        kicker="gdfq sweep",
        title=f"{sweep.recipe}: {_count(len(sweep.variants), 'variant')}",
        lead=_lead(sweep),
        warnings=_warnings(sweep),
        sections=[s for s in sections if s[0] != "plots" or parts["charts"]],
        choices=_choices(sweep),
        caption=_caption(sweep),
        columns=COLUMNS,
        rows=[_row(row, sweep) for row in sweep.variants],
        run_columns=RUN_COLUMNS,
        runs=[_run(run, sweep) for run in sweep.runs],
        facts=_facts(sweep),
        file=sweep.file,
        seeds=_legend(sweep),
        **parts,
    )


def plus_minus(value: Spread | None, shown: Callable[[float | None], str]) -> str:
    """Format mean and standard deviation, if there is one."""
    if value is None:
        return MISSING
    unit = "%" if shown is percent else ""
    text = shown(value.mean).removesuffix(unit)
    return text if value.std is None else f"{text} ± {shown(value.std).removesuffix(unit)}"


def two(value: float | None) -> str:
    """Format two digits behind the point."""
    return fixed(value, 2)


def signed(value: float | None) -> str:
    """Format two digits behind the point, and the sign of positive numbers."""
    return f"+{two(value)}" if value is not None and value > 0 else two(value)


def thousandths(value: float | None) -> str:
    """Format nats in thousandths."""
    return compact(None if value is None else 1000 * value)


def difference(value: Paired | None) -> str:
    """Format mean and standard deviation of the differences to the reference."""
    if value is None:
        return MISSING
    mean = signed(value.spread.mean)
    return mean if value.spread.std is None else f"{mean} ± {two(value.spread.std)}"


def won(value: Paired | None) -> str:
    """Format the number of seeds won, of those that both have."""
    return MISSING if value is None else f"{value.won} of {value.spread.n}"


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}{'' if number == 1 else 's'}"


def _lead(sweep: Sweep) -> str:
    done = sum(run.status == "finished" for run in sweep.runs)
    runs = _count(len(sweep.runs), "run")
    state = f"{runs}, all finished" if done == len(sweep.runs) else f"{done} of {runs} finished"
    return (
        f"{sweep.model}, quantized without its training data in "
        f"{_count(len(sweep.variants), 'variant')}, each with {_count(len(sweep.seeds), 'seed')}: "
        f"{state}."
    )


def _warnings(sweep: Sweep) -> list[tuple[str, str]]:
    found = []
    for run in sweep.runs:
        name = f"{run.variant}, seed {run.seed}"
        if run.status == "failed":
            found.append((name, f"This run failed at step {run.steps or 0:,}: {run.reason}"))
        elif run.status == "unfinished":
            why = f": {run.reason}" if run.reason else ""
            found.append((name, f"This run has not finished{why}."))
    waiting = sum(run.status == "not started" for run in sweep.runs)
    if waiting:
        found.append(("", f"{_count(waiting, 'run')} not started yet."))
    evaluations = sorted({run.evaluation for run in sweep.runs if run.evaluation})
    if len(evaluations) > 1:
        found.append(("", f"Accuracy was measured differently: {'; '.join(evaluations)}."))
    return found + [("", note) for note in sweep.notes]


def _choices(sweep: Sweep) -> list[dict[str, Any]]:
    rows = {row.name: row for row in sweep.variants}
    found = []
    for group in sweep.groups:
        chosen = None if group.chosen is None else rows[group.chosen]
        cells = [
            MISSING if chosen is None else plus_minus(chosen.divergence, thousandths),
            MISSING if chosen is None else f"{group.lowest} of {group.seeds}",
            MISSING if chosen is None else plus_minus(chosen.agreement, two),
            MISSING if chosen is None else plus_minus(chosen.after, two),
        ]
        found.append(
            {"bits": group.name, "chosen": group.chosen, "note": group.note, "cells": cells}
        )
    return found


def _caption(sweep: Sweep) -> str:
    evaluations = {run.evaluation for run in sweep.runs if run.evaluation}
    if not any(row.after for row in sweep.variants) and len(evaluations) == 1:
        return f"Mean ± standard deviation over seeds. Top-1 was not measured: {evaluations.pop()}."
    on = evaluations.pop() if len(evaluations) == 1 else "test images"
    text = f"Mean ± standard deviation over seeds. Top-1 in percent, measured on {on}"
    teacher = [row.teacher for row in sweep.variants if row.teacher is not None]
    if teacher:
        text += f"; the teacher's is {plus_minus(teacher[0], two)}"
    return text + "."


def _row(row: VariantRow, sweep: Sweep) -> dict[str, Any]:
    def mean(value: Spread | None) -> float | None:
        return None if value is None else value.mean

    what = [row.group, *(f"{key} = {value}" for key, value in row.options.items()
            if key not in ("weight_bits", "act_bits"))]  # fmt: skip
    paired = row.difference
    cells = [
        (f"{row.finished} of {len(sweep.seeds)}", float(row.finished)),
        (plus_minus(row.before, two), mean(row.before)),
        (plus_minus(row.after, two), mean(row.after)),
        (plus_minus(row.lost, two), mean(row.lost)),
        (
            "reference" if row.reference and paired is None else difference(paired),
            None if paired is None else paired.spread.mean,
        ),
        (won(paired), None if paired is None else float(paired.won)),
        (plus_minus(row.divergence, thousandths), mean(row.divergence)),
        (plus_minus(row.agreement, two), mean(row.agreement)),
        (fixed_bits(mean(row.weight_bits)), mean(row.weight_bits)),
        (duration(mean(row.seconds)), mean(row.seconds)),
    ]
    chosen = {group.chosen for group in sweep.groups}
    to = "" if paired is None or _one_reference(sweep) else f"to {paired.to}"
    return {"name": row.name, "what": what, "cells": cells, "chosen": row.name in chosen, "to": to}


def _one_reference(sweep: Sweep) -> bool:
    return len({row.difference.to for row in sweep.variants if row.difference is not None}) < 2


def _run(run: RunRow, sweep: Sweep) -> dict[str, Any]:
    number = [row.name for row in sweep.variants].index(run.variant)
    status = "" if run.status == "finished" else run.status
    report = f"{quote(run.folder)}/{PAGE}" if run.report else ""
    cells = [
        (str(run.seed), float(run.seed)),
        (two(run.before), run.before),
        (two(run.after), run.after),
        (thousandths(run.divergence), run.divergence),
        (two(run.agreement), run.agreement),
        (MISSING if run.steps is None else f"{run.steps:,}", run.steps),
        (duration(run.training_seconds), run.training_seconds),
    ]
    return {
        "name": run.variant, "number": number, "status": status, "cells": cells, "report": report,
    }  # fmt: skip


def _legend(sweep: Sweep) -> list[tuple[int, str]]:
    """Return the seeds' markers, if there are enough."""
    if not 1 < len(sweep.seeds) <= SERIES:
        return []
    return [(i, f"seed {seed}") for i, seed in enumerate(sweep.seeds)]


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    total = sum(run.training_seconds or 0.0 for run in sweep.runs)
    images = sorted({found.images for found in sweep.measured})
    environments = sorted({run.environment for run in sweep.runs if run.environment})
    facts = [
        ("Recipe", sweep.recipe),
        ("Teacher", sweep.model),
        ("Seeds", ", ".join(map(str, sweep.seeds))),
        ("Training took", f"{duration(total)}, all runs added up" if total else ""),
        (
            "Done",
            "over Ray: runs shared machines, so their times cannot be compared"
            if sweep.ray
            else "one run after another",
        ),
        (
            "Compared on",
            f"{', '.join(f'{n:,}' for n in images)} generated images per seed" if images else "",
        ),
        ("Environment", "; ".join(environments)),
    ]
    return [(name, text) for name, text in facts if text]


# ---- charts ----


def _figures(sweep: Sweep, variants: Sequence[str]) -> list[Figure]:
    """Draw top-1, differences to the reference and divergence of variants of the same bits."""
    rows = [row for row in sweep.variants if row.name in variants]
    runs = {(run.variant, run.seed): run for run in sweep.runs if run.status == "finished"}

    def of(value: Callable[[RunRow], float | None]) -> Callable[[VariantRow, int], float | None]:
        def find(row: VariantRow, seed: int) -> float | None:
            run = runs.get((row.name, seed))
            return None if run is None else value(run)

        return find

    def to_reference(row: VariantRow, seed: int) -> float | None:
        return None if row.difference is None else row.difference.by_seed.get(seed)

    def milli(value: Spread | None) -> Spread | None:
        if value is None:
            return None
        return Spread(value.n, 1000 * value.mean, None if value.std is None else 1000 * value.std)

    figures = [
        _figure(
            "Top-1 after fine-tuning", "percent; higher is better", sweep,
            [(row, row.after) for row in rows], of(lambda run: run.after), two,
        ),
        _figure(
            "Difference to the reference", "points of top-1, seed by seed", sweep,
            [(row, _from_reference(row)) for row in rows if any(r.difference for r in rows)],
            to_reference, signed, zero=True,
        ),
        _figure(
            "Divergence on generated images", "thousandths of a nat; lower is better", sweep,
            [(row, milli(row.divergence)) for row in rows],
            of(lambda run: None if run.divergence is None else 1000 * run.divergence), compact,
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def _from_reference(row: VariantRow) -> Spread | None:
    """Return a variant's differences to the reference, whose own are 0."""
    if row.difference is not None:
        return row.difference.spread
    return Spread(0, 0.0, None) if row.reference else None


def _figure(
    title: str,
    note: str,
    sweep: Sweep,
    rows: Sequence[tuple[VariantRow, Spread | None]],
    value: Callable[[VariantRow, int], float | None],
    shown: Callable[[float | None], str],
    zero: bool = False,
) -> Figure | None:
    chosen = {group.chosen for group in sweep.groups}
    drawn = [
        Row(
            row.name,
            [(f"seed {seed}", value(row, seed)) for seed in sweep.seeds],
            spread.mean,
            spread.std,
            row.name in chosen,
        )
        for row, spread in rows
        if spread is not None
    ]
    if not drawn:
        return None
    low, high = min(drawn, key=lambda row: row.mean), max(drawn, key=lambda row: row.mean)
    description = f"Means from {shown(low.mean)} ({low.name}) to {shown(high.mean)} ({high.name})."
    if len(drawn) == 1:
        description = f"{low.name}: mean {shown(low.mean)}."
    return Figure(
        title,
        note,
        spread_chart(
            title, drawn, note.partition(";")[0], description=description, shown=shown, zero=zero
        ),
        description,
        [],
        "variant",
        [*(f"seed {seed}" for seed in sweep.seeds), "mean", "standard deviation"],
        [
            (
                row.name,
                [*(shown(v) for _, v in row.points), shown(row.mean), _deviation(row, shown)],
            )
            for row in drawn
        ],
    )


def _deviation(row: Row, shown: Callable[[float | None], str]) -> str:
    """Format a row's deviation like its values, without a sign."""
    return shown(row.std).removeprefix("+")
