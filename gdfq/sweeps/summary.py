"""Summarize a sweep's runs: means over seeds, differences seed by seed, a choice."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gdfq.sweeps.contents import Comparison, Group, Paired, RunRow, Spread, Sweep, VariantRow
from gdfq.sweeps.plan import Plan, Variant


def summarize(
    plan: Plan,
    runs: Sequence[RunRow],
    measured: Sequence[Comparison],
    ray: bool = False,
    notes: Sequence[str] = (),
) -> Sweep:
    """Return the sweep of ``plan`` with what is known of its runs.

    Args:
        plan: which variants and seeds there are.
        runs: one per run of ``plan``; divergence and agreement are put into them.
        measured: on generated images.
        ray: whether runs were done at the same time.
        notes: what could not be measured.
    """
    for found in measured:
        for run in runs:
            if run.seed == found.seed and run.variant in found.divergence:
                run.divergence = found.divergence[run.variant]
                run.agreement = found.agreement[run.variant]
    rows = [_variant(plan, variant, runs) for variant in plan.variants]
    groups = [
        _group(name, [row for row in rows if row.group == name], runs) for name in plan.groups
    ]
    return Sweep(
        plan.recipe.name,
        plan.recipe.teacher.model,
        list(plan.seeds),
        rows,
        list(runs),
        groups,
        list(measured),
        ray,
        list(notes),
        plan.text,
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and standard deviation (of n - 1) of the known values; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(len(known), statistics.fmean(known), std)


def paired(to: str, values: dict[int, float], reference: dict[int, float]) -> Paired | None:
    """Return ``values`` less those of the reference, by seed; None if they share none."""
    differences = {s: value - reference[s] for s, value in values.items() if s in reference}
    found = spread(differences.values())
    if found is None:
        return None
    return Paired(to, differences, found, sum(d > 0 for d in differences.values()))


def _variant(plan: Plan, variant: Variant, runs: Sequence[RunRow]) -> VariantRow:
    own = [run for run in runs if run.variant == variant.name]
    done = [run for run in own if run.status == "finished"]
    reference = plan.references[variant.name]

    def of(value: Callable[[RunRow], float | None]) -> Spread | None:
        return spread(map(value, done))

    return VariantRow(
        name=variant.name,
        options={key: _text(value) for key, value in variant.options.items()},
        group=variant.bits,
        reference=variant.name in plan.references.values(),
        finished=len(done),
        failed=sum(run.status == "failed" for run in own),
        before=of(lambda run: run.before),
        after=of(lambda run: run.after),
        teacher=of(lambda run: run.teacher),
        lost=of(_lost),
        difference=None
        if reference == variant.name
        else paired(reference, _top1(runs, variant.name), _top1(runs, reference)),
        divergence=of(lambda run: run.divergence),
        agreement=of(lambda run: run.agreement),
        weight_bits=of(lambda run: run.weight_bits),
        seconds=of(lambda run: run.training_seconds),
    )


def _lost(run: RunRow) -> float | None:
    return None if run.teacher is None or run.after is None else run.teacher - run.after


def _top1(runs: Sequence[RunRow], variant: str) -> dict[int, float]:
    return {
        run.seed: run.after
        for run in runs
        if run.variant == variant and run.status == "finished" and run.after is not None
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _group(name: str, rows: Sequence[VariantRow], runs: Sequence[RunRow]) -> Group:
    """Choose the variant of the smallest mean divergence, once all runs are over."""
    names = [row.name for row in rows]
    own = [run for run in runs if run.variant in names]
    if len(names) == 1:
        return Group(name, names, None, 0, 0, "There is one variant of these bits.")
    if any(run.status in ("unfinished", "not started") for run in own):
        return Group(name, names, None, 0, 0, "Chosen when all runs of these bits are over.")
    by_seed = {
        seed: {run.variant: run.divergence for run in own if run.seed == seed}
        for seed in dict.fromkeys(run.seed for run in own)
    }
    if any(
        run.status == "finished" and all(value is None for value in by_seed[run.seed].values())
        for run in own
    ):
        note = "Not all students were compared on generated images."
        return Group(name, names, None, 0, 0, note)
    # A run that failed has no divergence, nor has a student whose logits are not finite.
    out = [n for n in names if any(found[n] is None for found in by_seed.values())]
    note = f"No candidates, as not all of their runs came to a sound end: {', '.join(out)}."
    candidates = {row.name: row.divergence for row in rows if row.name not in out}
    means = {n: found.mean for n, found in candidates.items() if found is not None}
    if len(means) < 2:
        return Group(name, names, None, 0, 0, f"{note} That leaves nothing to choose from.")
    chosen = min(means, key=means.__getitem__)
    lowest = sum(
        found[chosen] == min(value for value in found.values() if value is not None)
        for found in by_seed.values()
    )
    return Group(name, names, chosen, lowest, len(by_seed), note if out else "")
